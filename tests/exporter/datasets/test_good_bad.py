"""Plain folders named by their label."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcexport.datasets import find_dataset
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import boxes, found, labels, normal_names, write_image, write_mask

BOX = (3, 2, 5, 4)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    root = tmp_path / "parts"
    for name in ("good/b", "good/a", "test_good/c", "bad/x", "bad/scratch/y", "bad/dent/z"):
        write_image(root / f"{name}.png")
    return root


def test_good_is_for_the_build_and_the_rest_for_the_test(parts: Path) -> None:
    dataset = found(parts, "good_bad")
    assert normal_names(dataset) == ["good/a.png", "good/b.png"]
    assert labels(dataset) == [
        ("test_good/c.png", None),
        ("bad/x.png", "bad"),
        ("bad/dent/z.png", "dent"),
        ("bad/scratch/y.png", "scratch"),
    ]
    assert boxes(dataset) == [None] * 4


@pytest.mark.parametrize("good, bad", [("ok", "ko"), ("normal", "anomalous"), ("good", "defective")])
def test_other_names_mean_the_same(tmp_path: Path, good: str, bad: str) -> None:
    for name in (f"{good}/a", f"test_{good}/b", f"{bad}/c"):
        write_image(tmp_path / f"{name}.png")
    dataset = found(tmp_path, "good_bad")
    assert normal_names(dataset) == [f"{good}/a.png"]
    assert labels(dataset) == [(f"test_{good}/b.png", None), (f"{bad}/c.png", bad)]


@pytest.mark.parametrize("folder", ["masks", "ground_truth"])
@pytest.mark.parametrize("names", [("x", "dent/z"), ("x_mask", "dent/z_mask"), ("bad/x", "bad/dent/z_mask")])
def test_masks_are_found_by_the_name_of_their_image(parts: Path, folder: str, names: tuple[str, ...]) -> None:
    for name in names:
        write_mask(parts / folder / f"{name}.png", box=BOX)
    assert boxes(found(parts, "good_bad")) == [None, BOX, BOX, None]


def test_masks_without_images_are_refused(parts: Path) -> None:
    write_mask(parts / "masks/dent/y.png", box=BOX)
    with pytest.raises(BuildError, match=r"1 masks in .*masks belong to no image, the first dent/y\.png"):
        find_dataset(str(parts))


def test_an_empty_mask_of_a_bad_image_contradicts_its_folder(parts: Path) -> None:
    write_mask(parts / "masks/x.png")
    with pytest.raises(BuildError, match=r"x\.png marks nothing, but its image x\.png is labelled 'bad'"):
        boxes(find_dataset(str(parts)))


@pytest.mark.parametrize("again", ["ok", "ko", "test_ok"])
def test_two_folders_of_one_meaning_are_refused(parts: Path, again: str) -> None:
    write_image(parts / again / "a.png")
    with pytest.raises(BuildError, match=rf"{again}/, which mean the same"):
        find_dataset(str(parts))


def test_a_lone_good_folder_is_not_enough(tmp_path: Path) -> None:
    """It may be the test folder of MVTec AD, whose other folders are defects."""
    for name in ("good/a", "crack/b"):
        write_image(tmp_path / f"{name}.png")
    with pytest.raises(BuildError, match="no known layout"):
        find_dataset(str(tmp_path))


@pytest.mark.parametrize("folder", ["good", "test_good"])
def test_a_mask_beside_a_normal_image_is_refused(parts: Path, folder: str) -> None:
    write_image(parts / folder / "both.jpg")
    write_mask(parts / folder / "both.png")
    with pytest.raises(BuildError, match=r"another file of the same name .*both\.jpg and both\.png"):
        find_dataset(str(parts))
