"""Masks: what is marked, and what contradicts the label."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pcexport.datasets import ImageRef, TestImage
from pcexport.datasets.masks import load_mask
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import HW, box_of, write_mask, write_npy

BOX = (3, 2, 5, 4)


def defective(*masks: ImageRef, **kwargs) -> TestImage:
    return TestImage(Path("x.png"), "dent", masks, **kwargs)


def test_without_masks_there_is_none() -> None:
    assert load_mask(defective(), HW) is None
    assert load_mask(TestImage(Path("x.png"), None), HW) is None


@pytest.mark.parametrize("value, above, is_marked", [(128, 127, True), (127, 127, False), (1, 0, True)])
def test_pixels_above_the_limit_are_marked(tmp_path: Path, value: int, above: int, is_marked: bool) -> None:
    mask = ImageRef(write_mask(tmp_path / "m.png", box=BOX, value=value))
    image = defective(mask, mask_above=above)
    if is_marked:
        assert box_of(load_mask(image, HW)) == BOX
    else:
        with pytest.raises(BuildError, match=r"m\.png marks nothing.*above 127, the largest is 127"):
            load_mask(image, HW)


def test_a_mask_in_one_colour_counts(tmp_path: Path) -> None:
    pixels = np.zeros((*HW, 3), np.uint8)
    pixels[2:6, 3:8, 2] = 255
    assert cv2.imwrite(str(tmp_path / "red.png"), pixels)
    assert box_of(load_mask(defective(ImageRef(tmp_path / "red.png")), HW)) == BOX


def test_masks_are_united(tmp_path: Path) -> None:
    left = ImageRef(write_mask(tmp_path / "left.png", box=(3, 2, 2, 4)))
    right = ImageRef(write_mask(tmp_path / "right.png", box=(5, 2, 3, 4)))
    empty = ImageRef(write_mask(tmp_path / "empty.png"))
    assert box_of(load_mask(defective(left, empty, right), HW)) == BOX


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_arrays_mark_all_that_is_not_zero(tmp_path: Path, dtype: type) -> None:
    array = np.zeros(HW, dtype)
    array[2:6, 3:8] = 1
    mask = ImageRef(write_npy(tmp_path / "m.npy", array))
    assert box_of(load_mask(defective(mask), HW)) == BOX


def test_a_tile_of_a_mask_is_cut_out(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "m.png", box=BOX)
    assert box_of(load_mask(defective(ImageRef(path, (4, 0, 8, 4))), (4, 8))) == (0, 2, 4, 2)
    with pytest.raises(BuildError, match=r"has 16x12 px, which does not hold the tile \(12, 0, 8, 4\)"):
        load_mask(defective(ImageRef(path, (12, 0, 8, 4))), (4, 8))


def test_another_size_than_the_image_is_refused(tmp_path: Path) -> None:
    mask = ImageRef(write_mask(tmp_path / "m.png", (6, 8), BOX))
    with pytest.raises(BuildError, match=r"m\.png has 8x6 px, its image x\.png 16x12\. Expected a mask"):
        load_mask(defective(mask), HW)


def test_an_empty_mask_of_a_defective_image_is_refused(tmp_path: Path) -> None:
    mask = ImageRef(write_mask(tmp_path / "m.png"))
    with pytest.raises(BuildError, match=r"m\.png marks nothing, but its image x\.png is labelled 'dent'"):
        load_mask(defective(mask), HW)


def test_a_marked_mask_of_a_normal_image_is_refused_and_an_empty_one_is_read(tmp_path: Path) -> None:
    mask = ImageRef(write_mask(tmp_path / "m.png"))
    loaded = load_mask(TestImage(Path("x.png"), None, (mask,)), HW)
    assert loaded is not None and loaded.shape == HW and not loaded.any()
    write_mask(mask.path, box=BOX)
    with pytest.raises(BuildError, match=r"marks 20 pixels, but its image x\.png is labelled normal"):
        load_mask(TestImage(Path("x.png"), None, (mask,)), HW)


@pytest.mark.parametrize("name", ["gone.png", "text.png", "gone.npy", "text.npy"])
def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.png").write_bytes(b"text")
    (tmp_path / "text.npy").write_bytes(b"text")
    with pytest.raises(BuildError, match=rf"{name}.*Check|{name}.*Expected"):
        load_mask(defective(ImageRef(tmp_path / name)), HW)


def test_a_mask_without_its_frame_is_refused(tmp_path: Path) -> None:
    mask = ImageRef(write_npy(tmp_path / "m.npy", np.ones((2, *HW))), frame=2)
    with pytest.raises(BuildError, match=r"shape \(2, 12, 16\)\. Expected \(3 or more, height, width\)"):
        load_mask(defective(mask), HW)
