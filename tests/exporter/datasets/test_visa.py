"""VisA: one object of a table of all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pcexport.datasets import find_dataset
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import boxes, found, labels, normal_names, write_image, write_mask

HEADER = "object,split,label,image,mask"
ROWS = (
    "{0},train,normal,{0}/Data/Images/Normal/0001.JPG,",
    "{0},train,normal,{0}/Data/Images/Normal/0000.JPG,",
    "{0},test,normal,{0}/Data/Images/Normal/0002.JPG,",
    "{0},test,anomaly,{0}/Data/Images/Anomaly/000.JPG,{0}/Data/Masks/Anomaly/000.png",
)
BOX = (3, 2, 5, 4)


def write_table(root: Path, *rows: str) -> None:
    (root / "split_csv").mkdir(parents=True, exist_ok=True)
    (root / "split_csv" / "1cls.csv").write_text("\n".join((HEADER, *rows)) + "\n", encoding="utf-8")


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    root = tmp_path / "VisA"
    for name in ("candle", "pcb1"):
        for number in range(3):
            write_image(root / name / f"Data/Images/Normal/{number:04d}.JPG")
        write_image(root / name / "Data/Images/Anomaly/000.JPG")
        # The number of a class, not white.
        write_mask(root / name / "Data/Masks/Anomaly/000.png", box=BOX, value=2)
    write_table(root, *(row.format(name) for name in ("candle", "pcb1") for row in ROWS))
    return root


def test_an_object_is_read_in_the_order_of_the_table(visa: Path) -> None:
    dataset = found(visa / "candle", "visa")
    assert (dataset.name, dataset.root) == ("candle", visa / "candle")
    assert normal_names(dataset) == ["Data/Images/Normal/0001.JPG", "Data/Images/Normal/0000.JPG"]
    assert labels(dataset) == [
        ("Data/Images/Normal/0002.JPG", None),
        ("Data/Images/Anomaly/000.JPG", "anomaly"),
    ]
    assert boxes(dataset) == [None, BOX]


def test_a_relative_folder_is_an_object_too(visa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(visa / "pcb1")
    assert find_dataset(".").name == "pcb1"
    monkeypatch.chdir(visa)
    assert find_dataset("candle").name == "candle"


def test_the_root_is_read_where_it_holds_one_object(visa: Path) -> None:
    shutil.rmtree(visa / "candle")
    assert find_dataset(str(visa)).name == "pcb1"


def test_a_root_with_several_objects_lists_them(visa: Path) -> None:
    with pytest.raises(BuildError, match=r"holds 2 objects of VisA \(candle, pcb1\).*such as .*VisA/candle"):
        find_dataset(str(visa))


def test_a_folder_that_is_no_object_lists_them(visa: Path) -> None:
    write_image(visa / "candles" / "a.png")
    with pytest.raises(BuildError, match=r"has no object 'candles'\. Expected one of candle, pcb1"):
        find_dataset(str(visa / "candles"))


def test_without_the_table_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"Neither .* holds split_csv/1cls\.csv"):
        find_dataset(str(tmp_path), "visa")


def test_files_that_are_not_there_are_counted(visa: Path) -> None:
    (visa / "candle/Data/Images/Normal/0000.JPG").unlink()
    (visa / "candle/Data/Masks/Anomaly/000.png").unlink()
    with pytest.raises(BuildError, match=r"2 files that are not there, the first candle/.*/0000\.JPG"):
        find_dataset(str(visa / "candle"))


@pytest.mark.parametrize(
    "row",
    [
        "candle,test,anomaly,candle/Data/Images/Normal/0002.JPG,",
        "candle,test,normal,candle/Data/Images/Anomaly/000.JPG,",
        "candle,train,anomaly,candle/Data/Images/Anomaly/000.JPG,",
        "candle,test,normal,candle/Data/Images/Normal/0002.JPG,candle/Data/Masks/Anomaly/000.png",
    ],
)
def test_labels_that_contradict_folder_split_or_mask_are_refused(visa: Path, row: str) -> None:
    write_table(visa, ROWS[0].format("candle"), row)
    with pytest.raises(BuildError, match=r"1 rows .* a label that contradicts .* the first candle/Data"):
        find_dataset(str(visa / "candle"))


def test_unknown_labels_and_splits_are_refused(visa: Path) -> None:
    rows = [ROWS[0].format("candle"), "candle,valid,normal,a.JPG,", "candle,test,odd,b.JPG,"]
    write_table(visa, *rows)
    with pytest.raises(BuildError, match=r"2 rows .* the first a\.JPG"):
        find_dataset(str(visa / "candle"))


def test_an_image_twice_in_the_table_is_refused(visa: Path) -> None:
    write_table(visa, *(ROWS[0].format("candle") for _ in range(2)))
    with pytest.raises(BuildError, match=r"holds 1 images twice, the first .*0001\.JPG"):
        find_dataset(str(visa / "candle"))


def test_a_table_without_its_columns_is_refused(visa: Path) -> None:
    (visa / "split_csv/1cls.csv").write_text("object,split\ncandle,train\n", encoding="utf-8")
    with pytest.raises(BuildError, match="has no column 'image'"):
        find_dataset(str(visa / "candle"))
