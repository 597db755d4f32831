"""Magnetic Tile Defects: masks beside the images."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcexport.datasets import find_dataset
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import boxes, found, labels, write_image, write_mask


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    root = tmp_path / "tiles"
    write_image(root / "MT_Free/Imgs/a.jpg")
    write_mask(root / "MT_Free/Imgs/a.png")
    for name in ("x", "y"):
        write_image(root / f"MT_Crack/Imgs/{name}.jpg")
    write_mask(root / "MT_Crack/Imgs/x.png", box=(4, 3, 2, 2))
    return root


def test_masks_are_read(tiles: Path) -> None:
    assert boxes(found(tiles, "mtd")) == [(4, 3, 2, 2), None]


def test_faint_noise_in_a_mask_is_not_marked(tiles: Path) -> None:
    write_mask(tiles / "MT_Crack/Imgs/y.png", box=(0, 0, 9, 9), value=127)
    assert boxes(found(tiles, "mtd")) == [(4, 3, 2, 2), None]


def test_an_empty_mask_counts_as_none_and_that_is_said(tiles: Path) -> None:
    write_mask(tiles / "MT_Crack/Imgs/y.png")
    dataset = found(tiles, "mtd")
    assert labels(dataset)[1] == ("MT_Crack/Imgs/y.jpg", "MT_Crack")
    assert [len(image.masks) for image in dataset.test] == [1, 0]
    (remark,) = dataset.remarks
    assert remark.startswith("1 defective images have a mask that marks nothing, the first y.jpg")


def test_a_mask_without_an_image_is_refused(tiles: Path) -> None:
    write_mask(tiles / "MT_Crack/Imgs/z.png", box=(4, 3, 2, 2))
    with pytest.raises(BuildError, match=r"1 masks in .*MT_Crack/Imgs belong to no image, the first z\.png"):
        find_dataset(str(tiles))


def test_a_mask_that_cannot_be_read_is_named(tiles: Path) -> None:
    (tiles / "MT_Crack/Imgs/y.png").write_bytes(b"")
    with pytest.raises(BuildError, match=r"The mask .*y\.png: the file is empty"):
        find_dataset(str(tiles))
