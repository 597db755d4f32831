"""AITEX: strips cut into tiles, labelled by their part of the mask."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcexport.datasets import find_dataset
from pcexport.datasets.aitex import TILE_PX
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import (
    box_of,
    found,
    grey_values,
    mask_of,
    write_image,
    write_mask,
)

STRIP_HW = (256, 4096)
TILES = 16


def write_strip(path: Path, width: int = STRIP_HW[1]) -> Path:
    """A strip whose tile i has the grey value 10 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = (np.arange(width) // TILE_PX * 10).astype(np.uint8)
    assert cv2.imwrite(str(path), np.tile(columns, (STRIP_HW[0], 1)))
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six normal strips of two fabrics; a defect in tile 2, and one across tiles 4 and 5 in two masks."""
    root = tmp_path_factory.mktemp("aitex") / "aitex"
    strip = write_strip(root / "NODefect_images/fabric_a/0001_000_01.png")
    for name in ("a/0002_000_01", "a/0003_000_01", "a/0004_000_01", "b/0005_000_02", "b/0006_000_02"):
        copy = root / f"NODefect_images/fabric_{name}.png"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(strip, copy)
    (root / "Defect_images").mkdir()
    for name in ("0010_006_01", "0011_019_02"):
        shutil.copy(strip, root / f"Defect_images/{name}.png")
    write_mask(root / "Mask_images/0010_006_01_mask.png", STRIP_HW, (2 * TILE_PX + 30, 20, 11, 7))
    write_mask(root / "Mask_images/0011_019_02_mask1.png", STRIP_HW, (5 * TILE_PX - 8, 50, 8, 5))
    write_mask(root / "Mask_images/0011_019_02_mask2.png", STRIP_HW, (5 * TILE_PX, 50, 4, 5))
    return root


@pytest.fixture
def aitex(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "aitex"))


def test_every_fifth_normal_strip_is_for_the_test_as_a_whole(drawn: Path) -> None:
    dataset = found(drawn, "aitex")
    build = [image.path.stem for image in dataset.normal]
    assert build == sorted(build) and len(build) == 5 * TILES
    assert "0005_000_02" not in build
    held_back = [image for image in dataset.test if "NODefect" in str(image.path)]
    assert [image.path.stem for image in held_back] == ["0005_000_02"] * TILES
    assert not any(image.is_defective for image in held_back)


def test_tiles_are_read_from_left_to_right(drawn: Path) -> None:
    dataset = found(drawn, "aitex")
    assert [image.tile for image in dataset.normal[:2]] == [(0, 0, 256, 256), (256, 0, 256, 256)]
    assert grey_values(dataset, *dataset.normal[: TILES + 2]) == [*range(0, 160, 10), 0, 10]


def test_tiles_of_defective_strips_are_labelled_by_their_part_of_the_masks(drawn: Path) -> None:
    dataset = found(drawn, "aitex")
    by_strip = {
        stem: [image for image in dataset.test if image.path.stem == stem]
        for stem in ("0010_006_01", "0011_019_02")
    }
    assert [[image.defect for image in tiles] for tiles in by_strip.values()] == [
        [None, None, "006"] + [None] * 13,
        [None] * 4 + ["019", "019"] + [None] * 10,
    ]
    marked = [image for tiles in by_strip.values() for image in tiles if image.is_defective]
    assert [box_of(mask_of(dataset, image)) for image in marked] == [
        (30, 20, 11, 7),
        (248, 50, 8, 5),
        (0, 50, 4, 5),
    ]
    assert all(not image.masks for tiles in by_strip.values() for image in tiles if not image.is_defective)


def test_masks_are_united_before_a_tile_is_judged(aitex: Path) -> None:
    """A tile that only the second mask marks is defective, one that only the first marks too."""
    dataset = found(aitex, "aitex")
    tiles = [image.tile for image in dataset.test if image.defect == "019"]
    (aitex / "Mask_images/0011_019_02_mask2.png").unlink()
    fewer = [image.tile for image in found(aitex, "aitex").test if image.defect == "019"]
    assert fewer == tiles[:1]


def test_strips_without_a_usable_mask_are_not_tested_on_and_that_is_said(aitex: Path) -> None:
    shutil.copy(aitex / "Defect_images/0010_006_01.png", aitex / "Defect_images/0100_025_08.png")
    shutil.copy(aitex / "Defect_images/0010_006_01.png", aitex / "Defect_images/0106_010_03.png")
    write_mask(aitex / "Mask_images/0106_010_03_mask.png", STRIP_HW)
    dataset = found(aitex, "aitex")
    assert not any(image.path.stem[:4] in ("0100", "0106") for image in dataset.test)
    (remark,) = dataset.remarks
    assert remark.startswith("2 of 4 defective strips have no marked pixel") and "0100_025_08.png" in remark


def test_a_shorter_strip_gives_its_whole_tiles(aitex: Path) -> None:
    write_strip(aitex / "Defect_images/0010_006_01.png", width=3796)
    write_mask(aitex / "Mask_images/0010_006_01_mask.png", (256, 3796), (3600, 0, 4, 4))
    tiles = [image for image in found(aitex, "aitex").test if image.path.stem == "0010_006_01"]
    # 3796 = 14 * 256 + 212: the defect lies in the rest that no tile covers.
    assert len(tiles) == 14 and not any(image.is_defective for image in tiles)


def test_a_mask_of_another_size_is_refused(aitex: Path) -> None:
    write_mask(aitex / "Mask_images/0010_006_01_mask.png", (256, 2048), (30, 20, 4, 4))
    with pytest.raises(BuildError, match=r"have not its 4096x256 px, the first 0010_006_01_mask\.png"):
        find_dataset(str(aitex))


def test_a_mask_without_a_strip_is_refused(aitex: Path) -> None:
    write_mask(aitex / "Mask_images/0099_006_01_mask.png", STRIP_HW, (30, 20, 4, 4))
    with pytest.raises(BuildError, match=r"1 masks .* belong to no image, the first 0099_006_01_mask\.png"):
        find_dataset(str(aitex))


def test_a_strip_smaller_than_a_tile_is_refused(aitex: Path) -> None:
    write_image(aitex / "NODefect_images/fabric_a/0001_000_01.png", hw=(100, 4096))
    with pytest.raises(BuildError, match=r"0001_000_01\.png has 4096x100 px"):
        find_dataset(str(aitex))


def test_a_strip_that_is_no_png_is_refused(aitex: Path) -> None:
    (aitex / "NODefect_images/fabric_a/0001_000_01.png").write_bytes(b"text")
    with pytest.raises(BuildError, match=r"0001_000_01\.png is no PNG"):
        find_dataset(str(aitex))
