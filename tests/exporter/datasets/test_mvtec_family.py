"""MVTec AD, its two successors, and BTAD: folders by class, masks in a tree beside them."""

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
    load_masks,
    normal_names,
    write_image,
    write_mask,
)

BOX = (3, 2, 5, 4)


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "bottle"
    for value, name in enumerate(("train/good/001", "train/good/000", "test/good/000", "test/crack/000")):
        write_image(root / f"{name}.png", 10 * value)
    write_mask(root / "ground_truth/crack/000_mask.png", box=BOX)
    return root


@pytest.fixture
def loco(tmp_path: Path) -> Path:
    root = tmp_path / "juice"
    for name in ("train/good/000", "validation/good/000", "test/good/000"):
        write_image(root / f"{name}.png")
    for name in ("logical_anomalies/000", "logical_anomalies/001", "structural_anomalies/000"):
        write_image(root / f"test/{name}.png")
    write_mask(root / "ground_truth/logical_anomalies/000/000.png", box=(1, 1, 2, 3))
    write_mask(root / "ground_truth/logical_anomalies/000/001.png", box=(3, 1, 2, 3), value=250)
    write_mask(root / "ground_truth/structural_anomalies/000/000.png", box=BOX)
    return root


@pytest.fixture
def ad2(tmp_path: Path) -> Path:
    root = tmp_path / "vial"
    for name in ("train/good/000", "validation/good/000", "test_public/good/000", "test_public/bad/001"):
        write_image(root / f"{name}_regular.png")
    write_mask(root / "test_public/ground_truth/bad/001_regular_mask.png", box=BOX)
    write_image(root / "test_private/002_regular.png")
    write_image(root / "test_private_mixed/003_mixed.png")
    return root


@pytest.fixture
def btad(tmp_path: Path) -> Path:
    root = tmp_path / "01"
    for value, name in enumerate(("train/ok/0001", "train/ok/0000", "test/ok/0000", "test/ko/0000")):
        write_image(root / f"{name}.bmp", 10 * value)
    write_mask(root / "ground_truth/ko/0000.png", box=BOX)
    return root


def test_mvtec_pixels_and_masks_come_through_the_functions_of_the_build(mvtec: Path) -> None:
    dataset = found(mvtec, "mvtec")
    assert normal_names(dataset) == ["train/good/000.png", "train/good/001.png"]
    assert grey_values(dataset, *dataset.normal, *(t.ref for t in dataset.test)) == [10, 0, 30, 20]
    assert boxes(dataset) == [BOX, None]


def test_mvtec_masks_may_be_named_like_their_images(mvtec: Path) -> None:
    mask = mvtec / "ground_truth/crack/000_mask.png"
    mask.rename(mask.with_name("000.png"))
    assert boxes(found(mvtec, "mvtec")) == [BOX, None]


def test_mvtec_masks_are_found_through_links_to_folders(mvtec: Path, tmp_path: Path) -> None:
    (mvtec / "ground_truth/crack").rename(tmp_path / "elsewhere")
    (mvtec / "ground_truth/crack").symlink_to(tmp_path / "elsewhere")
    assert boxes(found(mvtec, "mvtec")) == [BOX, None]


def test_mvtec_masks_without_images_are_counted_and_the_first_is_named(mvtec: Path) -> None:
    write_mask(mvtec / "ground_truth/crack/007_mask.png", box=BOX)
    write_mask(mvtec / "ground_truth/dent/000_mask.png", box=BOX)
    with pytest.raises(BuildError, match=r"2 masks in .* belong to no image, the first crack/007_mask\.png"):
        find_dataset(str(mvtec))


def test_mvtec_a_mask_that_marks_a_good_image_contradicts_its_folder(mvtec: Path) -> None:
    mask = write_mask(mvtec / "ground_truth/good/000_mask.png")
    dataset = found(mvtec, "mvtec")
    assert [mask is not None and bool(mask.any()) for mask in load_masks(dataset)] == [True, False]
    write_mask(mask, box=BOX)
    with pytest.raises(BuildError, match=r"marks 20 pixels, but its image 000\.png is labelled normal"):
        load_masks(dataset)


def test_two_masks_that_differ_in_their_suffix_are_refused(mvtec: Path) -> None:
    write_mask(mvtec / "ground_truth/crack/000_mask.bmp", box=BOX)
    with pytest.raises(BuildError, match="two masks of one name"):
        find_dataset(str(mvtec))


def test_loco_builds_from_both_normal_folders_and_unites_the_masks(loco: Path) -> None:
    dataset = found(loco, "mvtec_loco")
    assert normal_names(dataset) == ["train/good/000.png", "validation/good/000.png"]
    assert labels(dataset) == [
        ("test/good/000.png", None),
        ("test/logical_anomalies/000.png", "logical_anomalies"),
        ("test/logical_anomalies/001.png", "logical_anomalies"),
        ("test/structural_anomalies/000.png", "structural_anomalies"),
    ]
    assert boxes(dataset) == [None, (1, 1, 4, 3), None, BOX]


def test_loco_is_recognised_by_its_mask_folders_too(loco: Path) -> None:
    (loco / "test/logical_anomalies").rename(loco / "test/logic")
    (loco / "ground_truth/logical_anomalies").rename(loco / "ground_truth/logic")
    (loco / "test/structural_anomalies").rename(loco / "test/structure")
    (loco / "ground_truth/structural_anomalies").rename(loco / "ground_truth/structure")
    assert {defect for _, defect in labels(found(loco, "mvtec_loco"))} == {None, "logic", "structure"}


def test_loco_masks_without_images_are_refused(loco: Path) -> None:
    (loco / "test/structural_anomalies/000.png").unlink()
    with pytest.raises(BuildError, match=r"the first structural_anomalies/000/000\.png"):
        find_dataset(str(loco))


def test_ad2_reads_the_public_test_and_ignores_the_private_ones(ad2: Path) -> None:
    dataset = found(ad2, "mvtec_ad2")
    assert normal_names(dataset) == ["train/good/000_regular.png", "validation/good/000_regular.png"]
    assert labels(dataset) == [
        ("test_public/bad/001_regular.png", "bad"),
        ("test_public/good/000_regular.png", None),
    ]
    assert boxes(dataset) == [BOX, None]


def test_ad2_masks_without_images_are_refused(ad2: Path) -> None:
    (ad2 / "test_public/bad/001_regular.png").unlink()
    with pytest.raises(BuildError, match=r"the first bad/001_regular_mask\.png"):
        find_dataset(str(ad2))


def test_btad_reads_bmp_images_with_png_masks(btad: Path) -> None:
    dataset = found(btad, "btad")
    assert normal_names(dataset) == ["train/ok/0000.bmp", "train/ok/0001.bmp"]
    assert labels(dataset) == [("test/ko/0000.bmp", "ko"), ("test/ok/0000.bmp", None)]
    assert grey_values(dataset, *dataset.normal) == [10, 0]
    assert boxes(dataset) == [BOX, None]


def test_btad_masks_without_images_are_refused(btad: Path) -> None:
    (btad / "test/ko/0000.bmp").unlink()
    with pytest.raises(BuildError, match=r"1 masks .* the first ko/0000\.png"):
        find_dataset(str(btad))
