"""Pictures and targets on disk: what they are, when they are made anew, when they are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pcexport.distill.own_images import OwnImages
from pcexport.distill.pictures import make_picture
from pcexport.distill.student import aggregate
from pcexport.distill.targets import Targets, channel_statistics, normalised, prepare_targets
from pcexport.errors import BuildError
from pcexport.graph.embedding import PatchEmbedder
from pcexport.progress import Steps
from tests.exporter.distill.students import FACTS, SIZE, tiny_teacher

QUIET = Steps(quiet=True)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Targets]:
    folder = tmp_path_factory.mktemp("targets")
    return folder, prepare_targets(folder, tiny_teacher(), dict(FACTS), None, QUIET)


def test_the_pictures_are_those_of_the_seed_in_their_order(targets: tuple[Path, Targets]) -> None:
    wanted = np.stack([make_picture(0, number, SIZE) for number in range(12)])
    assert np.array_equal(targets[1].pictures, wanted)


def test_the_targets_are_the_teachers_patch_embeddings(targets: tuple[Path, Targets]) -> None:
    teacher = tiny_teacher()
    embedder = PatchEmbedder(teacher, aggregation="locally_aware", neighbourhood=3, grid_hw=None)
    wanted = embedder(torch.from_numpy(np.array(targets[1].pictures)))
    shallow, deep = (torch.from_numpy(np.array(m)).float() for m in (targets[1].shallow, targets[1].deep))
    # Targets are averaged already; a centre alone must stay as it is.
    finer = torch.nn.functional.interpolate(deep, scale_factor=2.0, mode="bilinear", align_corners=False)
    found = torch.cat([shallow, finer], 1).flatten(2).transpose(1, 2)
    assert torch.allclose(found, wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


def test_a_student_that_gives_the_teachers_maps_gives_its_embedding() -> None:
    teacher = tiny_teacher()
    pictures = torch.from_numpy(make_picture(0, 0, SIZE)[None])
    embedder = PatchEmbedder(teacher, aggregation="locally_aware", neighbourhood=3, grid_hw=None)
    maps = teacher.extractor(normalised(pictures, teacher))
    assert torch.allclose(aggregate(*maps).flatten(2).transpose(1, 2), embedder(pictures), atol=1e-5)


def test_targets_are_kept_for_the_same_facts_and_refused_for_others(targets: tuple[Path, Targets]) -> None:
    folder, _ = targets
    before = (folder / "pictures.bin").stat().st_mtime_ns
    prepare_targets(folder, tiny_teacher(), dict(FACTS), None, QUIET)
    assert (folder / "pictures.bin").stat().st_mtime_ns == before
    with pytest.raises(BuildError, match=r"of another call, which differs in seed\..*remove the folder"):
        prepare_targets(folder, tiny_teacher(), FACTS | {"seed": 1}, None, QUIET)


def test_targets_that_were_interrupted_are_made_anew(tmp_path: Path) -> None:
    facts = FACTS | {"pictures": 3}
    prepare_targets(tmp_path, tiny_teacher(), facts, None, QUIET)
    (tmp_path / "facts.json").unlink()
    (tmp_path / "pictures.bin").write_bytes(b"half")
    again = prepare_targets(tmp_path, tiny_teacher(), facts, None, QUIET)
    assert np.array_equal(again.pictures[2], make_picture(0, 2, SIZE))


def test_channel_statistics_are_those_of_all_values(targets: tuple[Path, Targets]) -> None:
    mean, std = channel_statistics(targets[1])
    values = targets[1].deep.astype(np.float64)
    split = targets[1].shallow.shape[1]
    assert np.allclose(mean[split:], values.mean((0, 2, 3)), rtol=1e-4)
    varying = values.std((0, 2, 3)) > 1e-6
    assert np.allclose(std[split:][varying], values.std((0, 2, 3))[varying], rtol=1e-3)
    assert (std > 0).all()


def _write_images(folder: Path) -> None:
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((50, 90, 3), 60 * i + 20, np.uint8))


def test_every_other_picture_is_a_crop_of_the_users_images(tmp_path: Path) -> None:
    _write_images(tmp_path / "parts")
    own = OwnImages.find((str(tmp_path / "parts"),))
    assert own is not None and len(own.paths) == 3
    facts = FACTS | {"pictures": 6, "own_sha256": own.sha256}
    made = prepare_targets(tmp_path / "targets", tiny_teacher(), facts, own, QUIET)
    assert np.array_equal(made.pictures[2], make_picture(0, 2, SIZE))
    for number in (1, 3, 5):
        assert np.ptp(made.pictures[number]) == 0 and made.pictures[number].max() in (20, 80, 140)


def test_no_folder_means_no_own_images() -> None:
    assert OwnImages.find(()) is None


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    _write_images(tmp_path / "parts")
    (tmp_path / "parts" / "1.png").write_bytes(b"not an image")
    with pytest.raises(BuildError, match=r"1\.png"):
        OwnImages.find((str(tmp_path / "parts"),))


def test_crops_differ_and_repeat(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for i in range(2):
        cv2.imwrite(str(tmp_path / "parts" / f"{i}.png"), noise)
    own = OwnImages.find((str(tmp_path / "parts"),))
    assert own is not None
    crops = [own.crop(0, number, SIZE) for number in range(8)]
    assert len({crop.tobytes() for crop in crops}) == 8
    assert np.array_equal(own.crop(0, 3, SIZE), crops[3])
    assert {crop.shape for crop in crops} == {(SIZE, SIZE, 3)}
