"""Lists of images in CSV and JSONL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcexport.datasets import Dataset, find_dataset
from pcexport.errors import BuildError
from tests.exporter.datasets.helpers import boxes, found, labels, normal_names, write_image, write_mask

BOX = (3, 2, 5, 4)
ROWS = [
    {"path": "shots/b.png", "split": "train", "label": "good"},
    {"path": "shots/a.png", "split": "train", "label": "ok"},
    {"path": "shots/d.png", "split": "test", "label": "Good"},
    {"path": "shots/c.png", "split": "test", "label": "scratch", "mask": "drawn/c.png"},
    {"path": "shots/e.png", "split": "test", "label": "bad"},
]


def write_csv(path: Path, rows: list[dict[str, str]], header: str = "path,split,label,mask") -> Path:
    lines = [",".join(row.get(key, "") for key in header.split(",")) for row in rows]
    path.write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in "abcde":
        write_image(tmp_path / "parts" / f"shots/{name}.png")
    write_mask(tmp_path / "parts/drawn/c.png", box=BOX)
    return tmp_path / "parts"


def assert_read(dataset: Dataset) -> None:
    assert dataset.name == "parts"
    assert normal_names(dataset) == ["shots/b.png", "shots/a.png"]
    assert labels(dataset) == [("shots/d.png", None), ("shots/c.png", "scratch"), ("shots/e.png", "bad")]
    assert boxes(dataset) == [None, BOX, None]


def test_a_csv_list_is_read_in_its_order(data: Path) -> None:
    write_csv(data / "images.csv", ROWS)
    assert_read(found(data, "list"))


def test_a_jsonl_list_is_read_in_its_order(data: Path) -> None:
    write_jsonl(data / "images.jsonl", ROWS)
    assert_read(found(data, "list"))


@pytest.mark.parametrize("name", ["line3.csv", "line3.jsonl"])
@pytest.mark.parametrize("layout", ["auto", "list"])
def test_a_list_of_any_name_is_data_itself(data: Path, name: str, layout: str) -> None:
    path = data / name
    write_csv(path, ROWS) if path.suffix == ".csv" else write_jsonl(path, ROWS)
    assert_read(find_dataset(str(path), layout))


def test_a_csv_list_as_spreadsheets_write_it(data: Path) -> None:
    text = "\ufeffpath,split,label\r\n" + "".join(
        f'"{row["path"]}",{row["split"]}, {row["label"]}\r\n' for row in ROWS
    )
    (data / "images.csv").write_bytes(text.encode())
    dataset = found(data, "list")
    assert [defect for _, defect in labels(dataset)] == [None, "scratch", "bad"]


def test_several_masks_of_a_jsonl_entry_are_united(data: Path) -> None:
    write_mask(data / "drawn/more.png", box=(8, 2, 2, 4))
    write_jsonl(data / "images.jsonl", [*ROWS[:3], {**ROWS[3], "mask": ["drawn/c.png", "drawn/more.png"]}])
    assert boxes(found(data, "list")) == [None, (3, 2, 7, 4)]


def changed(number: int, **changes: str) -> list[dict[str, str]]:
    return [{**row, **changes} if index == number else row for index, row in enumerate(ROWS)]


@pytest.mark.parametrize("write, name", [(write_csv, "images.csv"), (write_jsonl, "images.jsonl")])
@pytest.mark.parametrize(
    "rows, message",
    [
        (
            changed(0, split="valid"),
            r"1 entries .* another split than train and test, the first 'shots/b\.png'",
        ),
        (changed(0, path=""), "1 entries .* have no path"),
        (changed(4, label=""), r"1 entries .* unclear label, the first 'shots/e\.png' in line"),
        (changed(4, label="1"), "1 entries .* unclear label"),
        (
            changed(1, label="bad"),
            r"1 entries .* defective images with split train, the first 'shots/a",
        ),
        (changed(4, path="shots/a.png"), r"names 1 images twice, the first .*shots/a\.png"),
        (changed(4, path="shots/z.png"), r"names 1 files that are not there, the first shots/z\.png"),
        (changed(3, mask="drawn/z.png"), r"names 1 files that are not there, the first drawn/z\.png"),
    ],
)
def test_entries_that_do_not_fit_are_counted_and_the_first_is_named(
    data: Path, write, name: str, rows: list[dict[str, str]], message: str
) -> None:
    write(data / name, rows)
    with pytest.raises(BuildError, match=message):
        find_dataset(str(data))


def test_a_misspelt_column_names_the_nearest_one(data: Path) -> None:
    write_csv(data / "images.csv", ROWS, header="path,split,label,masks")
    with pytest.raises(BuildError, match=r"unknown key 'masks'\. .*'mask'"):
        find_dataset(str(data))
    write_csv(data / "images.csv", ROWS, header="path,split")
    with pytest.raises(BuildError, match="lacks 'label'"):
        find_dataset(str(data))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("images.csv", "", "lacks 'path'"),
        ("images.csv", "path,split,label\na.png,train\n", "Line 2 .* does not hold a text for each key"),
        ("images.csv", "path,split,label\na.png,train,good,more\n", "Line 2 .* does not hold a text"),
        ("images.csv", 'path,split,label\n"a.png,train,good\n', "cannot be read as CSV"),
        ("images.jsonl", "{", "Line 1 .* is no JSON"),
        ("images.jsonl", "\n[1]\n", "Line 2 .* is no JSON object"),
        ("images.jsonl", '{"path": 1, "split": "train", "label": "good"}', "Line 1 .* a text for each key"),
        ("images.jsonl", '{"path": "a.png"}', "Line 1 .* lacks 'split'"),
    ],
)
def test_text_that_is_no_list_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(BuildError, match=message):
        find_dataset(str(tmp_path))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_bytes(b"path,split,label\n\xff\xfe\n")
        with pytest.raises(BuildError, match="cannot be read"):
            find_dataset(str(tmp_path / name))


def test_two_lists_in_a_folder_are_refused(data: Path) -> None:
    write_csv(data / "images.csv", ROWS)
    write_jsonl(data / "images.jsonl", ROWS)
    with pytest.raises(BuildError, match=r"holds images\.csv and images\.jsonl\. Expected one"):
        find_dataset(str(data))


def test_a_list_without_training_images_is_refused(data: Path) -> None:
    write_csv(data / "images.csv", ROWS[2:])
    with pytest.raises(BuildError, match="no normal images where layout list has them"):
        find_dataset(str(data))


@pytest.mark.parametrize("separator, name", [(";", "semicolons"), ("\t", "tabs")])
def test_a_csv_list_with_other_separators_is_named_as_such(data: Path, separator: str, name: str) -> None:
    path = write_csv(data / "images.csv", ROWS)
    path.write_text(path.read_text(encoding="utf-8").replace(",", separator), encoding="utf-8")
    with pytest.raises(BuildError, match=f"separates its columns by {name}. Expected commas"):
        find_dataset(str(data))
