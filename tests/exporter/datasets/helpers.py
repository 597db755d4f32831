"""Tiny copies of data sets, and reading them as a build and an evaluation do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pcexport.datasets import Dataset, ImageRef, TestImage, find_dataset
from pcexport.datasets.masks import load_mask
from pcexport.datasets.reader import ImageReader
from pcrun.types import BoolArray, UInt8Array

HW = (12, 16)
# x, y, width, height
Box = tuple[int, int, int, int]


def write_image(path: Path, value: int = 0, hw: tuple[int, int] = HW) -> Path:
    """An image file of one grey value."""
    return _write(path, np.full(hw, value, np.uint8))


def write_mask(path: Path, hw: tuple[int, int] = HW, box: Box | None = None, value: int = 255) -> Path:
    """A mask with one marked box, or none."""
    pixels = np.zeros(hw, np.uint8)
    if box:
        x, y, width, height = box
        pixels[y : y + height, x : x + width] = value
    return _write(path, pixels)


def _write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_npy(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def found(root: Path, layout: str) -> Dataset:
    """Read a data set whose layout is detected as this one; twice, because the order is fixed."""
    dataset = find_dataset(str(root))
    assert dataset.layout == layout
    assert dataset == find_dataset(str(root)) == find_dataset(str(root), layout)
    return dataset


def reader_of(dataset: Dataset) -> ImageReader:
    return ImageReader(dataset.root, white_level_16bit=65535, strict=True, warn=lambda text: None)


def normal_names(dataset: Dataset) -> list[str]:
    return [_name(image, dataset) for image in dataset.normal]


def labels(dataset: Dataset) -> list[tuple[str, str | None]]:
    return [(_name(image.ref, dataset), image.defect) for image in dataset.test]


def _name(image: ImageRef, dataset: Dataset) -> str:
    return image.path.relative_to(dataset.root).as_posix() + image.part


def pixels_of(dataset: Dataset, *images: ImageRef) -> list[UInt8Array]:
    """Pixels as the build reads them."""
    pixels = [image for _, image in reader_of(dataset).read_all(images)]
    assert all(image is not None for image in pixels)
    return [image for image in pixels if image is not None]


def grey_values(dataset: Dataset, *images: ImageRef) -> list[int]:
    """The one value that each image holds; images in lossy formats come near it."""
    return [round(float(image.mean())) for image in pixels_of(dataset, *images)]


def mask_of(dataset: Dataset, image: TestImage) -> BoolArray | None:
    """The mask as an evaluation loads it: beside the pixels of its image."""
    (pixels,) = pixels_of(dataset, image.ref)
    return load_mask(image, (pixels.shape[0], pixels.shape[1]))


def load_masks(dataset: Dataset) -> list[BoolArray | None]:
    return [mask_of(dataset, image) for image in dataset.test]


def box_of(mask: BoolArray | None) -> Box | None:
    """The box of a mask that marks exactly one."""
    if mask is None:
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert mask.sum() == len(rows) * len(columns)
    return (int(columns[0]), int(rows[0]), len(columns), len(rows))


def boxes(dataset: Dataset) -> list[Box | None]:
    return [box_of(mask) for mask in load_masks(dataset)]
