"""Both Kolektor data sets: the mask beside each image is its label."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcexport.datasets import find_dataset
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import (
    boxes,
    found,
    grey_values,
    labels,
    normal_names,
    write_image,
    write_mask,
)

BOX = (3, 2, 5, 4)


@pytest.fixture
def ksdd(tmp_path: Path) -> Path:
    """Six parts of two surfaces; the second surface of the first and of the fifth part is defective."""
    root = tmp_path / "ksdd"
    for part in range(1, 7):
        for surface in range(2):
            stem = root / f"kos{part:02d}" / f"Part{surface}"
            write_image(stem.with_name(stem.name + ".jpg"), 10 * part)
            defect = BOX if surface == 1 and part in (1, 5) else None
            write_mask(stem.with_name(stem.name + "_label.bmp"), box=defect, value=1)
    return root


@pytest.fixture
def ksdd2(tmp_path: Path) -> Path:
    root = tmp_path / "ksdd2"
    for name, defect in (("train/10001", None), ("train/10000", None), ("train/10002", BOX)):
        write_image(root / f"{name}.png")
        write_mask(root / f"{name}_GT.png", box=defect)
    for name, defect in (("test/20000", BOX), ("test/20001", None)):
        write_image(root / f"{name}.png")
        write_mask(root / f"{name}_GT.png", box=defect)
    return root


def test_ksdd_keeps_normal_surfaces_of_every_fifth_part_for_the_test(ksdd: Path) -> None:
    dataset = found(ksdd, "ksdd")
    assert normal_names(dataset) == [
        "kos01/Part0.jpg",
        *(f"kos{part:02d}/Part{surface}.jpg" for part in (2, 3, 4, 6) for surface in range(2)),
    ]
    assert labels(dataset) == [
        ("kos05/Part0.jpg", None),
        ("kos01/Part1.jpg", "defect"),
        ("kos05/Part1.jpg", "defect"),
    ]
    assert grey_values(dataset, *(image.ref for image in dataset.test)) == [50, 10, 50]
    assert boxes(dataset) == [None, BOX, BOX]


def test_ksdd_images_without_a_label_are_refused(ksdd: Path) -> None:
    (ksdd / "kos03/Part1_label.bmp").unlink()
    with pytest.raises(BuildError, match=r"1 images in .*kos03 have no mask, the first Part1\.jpg"):
        find_dataset(str(ksdd))


def test_ksdd_labels_without_an_image_are_refused(ksdd: Path) -> None:
    (ksdd / "kos03/Part1.jpg").unlink()
    with pytest.raises(BuildError, match=r"1 masks in .*kos03 belong to no image, the first Part1_label"):
        find_dataset(str(ksdd))


def test_ksdd_a_label_that_cannot_be_read_is_named(ksdd: Path) -> None:
    (ksdd / "kos03/Part1_label.bmp").write_bytes(b"BM")
    with pytest.raises(BuildError, match=r"The mask .*kos03/Part1_label\.bmp"):
        find_dataset(str(ksdd))


def test_ksdd2_builds_from_normal_training_images_only(ksdd2: Path) -> None:
    dataset = found(ksdd2, "ksdd2")
    assert normal_names(dataset) == ["train/10000.png", "train/10001.png"]
    assert labels(dataset) == [("test/20000.png", "defect"), ("test/20001.png", None)]
    assert boxes(dataset) == [BOX, None]


@pytest.mark.parametrize(
    "removed, message",
    [
        ("test/20001_GT.png", r"1 images in .*test have no mask, the first 20001\.png"),
        ("train/10000.png", r"1 masks in .*train belong to no image, the first 10000_GT\.png"),
    ],
)
def test_ksdd2_images_and_masks_must_come_in_pairs(ksdd2: Path, removed: str, message: str) -> None:
    (ksdd2 / removed).unlink()
    with pytest.raises(BuildError, match=message):
        find_dataset(str(ksdd2))


def test_ksdd2_without_a_normal_training_image_is_refused(ksdd2: Path) -> None:
    for name in ("10000", "10001"):
        write_mask(ksdd2 / f"train/{name}_GT.png", box=BOX)
    with pytest.raises(BuildError, match=r"no normal images where layout ksdd2 has them \(train/, with"):
        find_dataset(str(ksdd2))
