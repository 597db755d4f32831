"""The demo's image set: layout, determinism, masks that tell the truth, refusals."""

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pcexport.demo.parts import DEFECT_NAMES, generate_parts, render_part
from pcrun.errors import PcError
from pcrun.types import FloatArray, UInt8Array

SMALL: dict[str, Any] = {"train": 3, "test_good": 2, "test_per_defect": 2, "size_px": 128}


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(5, spawn_key=key))


def _digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _grey(image: UInt8Array) -> FloatArray:
    return np.asarray(image.mean(axis=2, dtype=np.float32), np.float32)


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parts") / "Teile für #1"
    generate_parts(root, **SMALL)
    return root


def test_layout_counts_and_summary(tmp_path: Path) -> None:
    summary = generate_parts(tmp_path / "set", **SMALL)
    expected = {f"train/good/{i:03d}.png" for i in range(3)} | {f"test/good/{i:03d}.png" for i in range(2)}
    for name in DEFECT_NAMES:
        expected |= {f"test/{name}/{i:03d}.png" for i in range(2)}
        expected |= {f"ground_truth/{name}/{i:03d}_mask.png" for i in range(2)}
    assert set(_digests(tmp_path / "set")) == expected
    assert {p.name for p in (tmp_path / "set").iterdir()} == {"train", "test", "ground_truth"}
    assert set(DEFECT_NAMES) == {"scratch", "dent", "chip", "stain", "missing_hole"}
    assert (summary.train, summary.test_good, summary.test_defects) == (3, 2, dict.fromkeys(DEFECT_NAMES, 2))
    assert summary.images == 15
    assert summary.root == tmp_path / "set"


def test_files_are_colour_images_and_binary_masks(small_set: Path) -> None:
    for path in small_set.rglob("*.png"):
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        assert picture is not None
        if path.name.endswith("_mask.png"):
            assert picture.shape == (128, 128)
            assert set(np.unique(picture)) == {0, 255}
        else:
            assert picture.shape == (128, 128, 3)


def test_same_arguments_give_the_same_bytes(small_set: Path, tmp_path: Path) -> None:
    generate_parts(tmp_path / "again", **SMALL)
    assert _digests(tmp_path / "again") == _digests(small_set)


def test_another_seed_gives_other_images(small_set: Path, tmp_path: Path) -> None:
    generate_parts(tmp_path / "other", **SMALL, seed=1)
    ours, theirs = _digests(small_set), _digests(tmp_path / "other")
    assert not any(ours[name] == theirs[name] for name in ours)


def test_no_image_is_there_twice(small_set: Path) -> None:
    digests = _digests(small_set)
    assert len(set(digests.values())) == len(digests)


def test_fewer_images_leave_the_others_unchanged(small_set: Path, tmp_path: Path) -> None:
    generate_parts(tmp_path / "fewer", train=1, test_good=1, test_per_defect=1, size_px=128)
    whole = _digests(small_set)
    assert all(whole[name] == digest for name, digest in _digests(tmp_path / "fewer").items())


def test_without_defects_there_is_no_ground_truth(tmp_path: Path) -> None:
    generate_parts(tmp_path / "set", train=1, test_good=0, test_per_defect=0, size_px=128)
    assert list(_digests(tmp_path / "set")) == ["train/good/000.png"]


def test_good_part_has_an_empty_mask() -> None:
    image, mask = render_part(_rng(0), 320, None)
    assert image.shape == (320, 320, 3)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.shape == (320, 320)
    assert not mask.any()


@pytest.mark.parametrize("defect", DEFECT_NAMES)
def test_mask_covers_what_differs_from_the_good_twin(defect: str) -> None:
    """Blur and the gradient of the height carry a change a few pixels past the mask, and no further."""
    for index in range(4):
        image, mask = render_part(_rng(index), 320, defect)
        twin, _ = render_part(_rng(index), 320, None)
        difference = np.abs(_grey(image) - _grey(twin))
        near = cv2.dilate(mask, np.ones((11, 11), np.uint8)) > 0
        assert difference[~near].max() <= 1.0, index
        assert np.percentile(difference[mask > 0], 90) > 4.0, index


@pytest.mark.parametrize("defect", DEFECT_NAMES)
def test_mask_is_never_empty_and_never_large(defect: str) -> None:
    for index in range(15):
        _, mask = render_part(_rng(1, index), 128, defect)
        assert 0 < (mask > 0).mean() < 0.05, index


def test_defects_come_in_several_sizes() -> None:
    for defect in set(DEFECT_NAMES) - {"missing_hole"}:
        areas = [np.count_nonzero(render_part(_rng(2, i), 160, defect)[1]) for i in range(12)]
        assert max(areas) > 2.5 * min(areas), defect


def test_stain_is_coloured_and_steel_is_not() -> None:
    image, mask = render_part(_rng(3), 320, "stain")
    twin, _ = render_part(_rng(3), 320, None)
    red_minus_blue = [
        float(np.subtract(p[..., 2], p[..., 0], dtype=np.int16)[mask > 0].mean()) for p in (image, twin)
    ]
    assert red_minus_blue[0] > red_minus_blue[1] + 5


def test_missing_hole_is_bright_where_the_good_part_is_dark() -> None:
    image, mask = render_part(_rng(4), 320, "missing_hole")
    twin, _ = render_part(_rng(4), 320, None)
    core = cv2.erode(mask, np.ones((13, 13), np.uint8)) > 0
    assert _grey(image)[core].mean() > 4 * _grey(twin)[core].mean()


def test_good_parts_vary_but_little() -> None:
    """Seen coarsely, noise and texture average out: small next to the part's own contrast, yet not zero."""
    images = [_grey(render_part(_rng(5, i), 160, None)[0]) for i in range(10)]
    coarse = [cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA) for image in images]
    spread = np.std(coarse, axis=0)
    assert 1.0 < spread.mean() < 12.0
    assert np.mean(coarse, axis=0).std() > 4 * spread.mean()


def test_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(PcError, match="not an empty folder"):
        generate_parts(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PcError, match="not an empty folder"):
        generate_parts(tmp_path / "file", **SMALL)


def test_accepts_an_empty_folder(tmp_path: Path) -> None:
    assert generate_parts(tmp_path, train=1, test_good=0, test_per_defect=0, size_px=128).images == 1


def test_interrupted_run_leaves_the_folder_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pcexport.demo.parts._write_png", fail)
    with pytest.raises(KeyboardInterrupt):
        generate_parts(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train", 0),
        ("train", 2.0),
        ("train", True),
        ("test_good", -1),
        ("test_per_defect", -1),
        ("size_px", 127),
        ("size_px", 2049),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_refuses_bad_numbers_before_writing(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*allowed"):
        generate_parts(tmp_path / "set", **{**SMALL, name: value})
    assert not (tmp_path / "set").exists()


def test_refuses_an_unknown_defect() -> None:
    with pytest.raises(ValueError, match=r"'rust'; allowed: None, scratch"):
        render_part(_rng(0), 128, "rust")
