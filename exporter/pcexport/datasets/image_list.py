"""A list of images in a CSV or JSONL file, for data that lie in no layout."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcexport.datasets.files import name_of, refs, repeated, require_none
from pcexport.datasets.types import Dataset, ImageRef, TestImage
from pcexport.errors import BuildError
from pcrun.records import nearest_name

LIST_SUFFIXES = (".csv", ".jsonl")
_NAMES = tuple(f"images{suffix}" for suffix in LIST_SUFFIXES)
_REQUIRED = ("path", "split", "label")
_KEYS = (*_REQUIRED, "mask")
_SPLITS = ("train", "test")
_GOOD = frozenset({"good", "ok", "normal"})
# They could mean either; as the name of a class they are surely wrong.
_UNCLEAR = frozenset({"", "0", "1", "true", "false"})


@dataclass(frozen=True)
class _Entry:
    """One line of a list: where it stands, and what it says."""

    line: int
    path: str
    split: str
    label: str
    masks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path or 'without a path'!r} in line {self.line}"

    @property
    def is_good(self) -> bool:
        return self.label.lower() in _GOOD


class ImageList:
    """Entries in the order of the file."""

    name = "list"
    title = "CSV or JSONL list"
    expects = """\
images.csv, images.jsonl          the list; or DATA is the list itself, with any name
  path                            an image, relative to the list
  split                           train (to build from) or test
  label                           good (or ok, normal), bad, or the class of the defect
  mask                            its mask; optional; several as a JSON list"""
    normals = "entries with split `train` and label `good`"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return any((root / name).is_file() for name in _NAMES)

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`; `root` may also be the list itself."""
        file = root if root.is_file() else _list_in(root)
        if file is None:
            return Dataset(name_of(root), self.name, root, (), ())
        base = file.parent
        entries = _read_csv(file) if file.suffix.lower() == ".csv" else _read_jsonl(file)
        _check(entries, base, file)
        normal = refs(base / entry.path for entry in entries if entry.split == "train")
        test = tuple(_test_image(entry, base) for entry in entries if entry.split == "test")
        return Dataset(name_of(base), self.name, base, normal, test)


def _list_in(root: Path) -> Path | None:
    found = [root / name for name in _NAMES if (root / name).is_file()]
    if len(found) > 1:
        raise BuildError(
            f"{root} holds {' and '.join(_NAMES)}. Expected one list; give the one that is meant."
        )
    return found[0] if found else None


def _test_image(entry: _Entry, base: Path) -> TestImage:
    masks = tuple(ImageRef(base / mask) for mask in entry.masks)
    return TestImage(base / entry.path, None if entry.is_good else entry.label, masks)


def _read_csv(file: Path) -> list[_Entry]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _require_commas(reader.fieldnames or (), file)
            _check_keys(reader.fieldnames or (), f"The first line of {file}")
            return [_entry(reader.line_num, row, file) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(
            f"{file} cannot be read as CSV ({error}). Expected UTF-8 text, a line per image; save it again."
        ) from error


def _require_commas(names: Sequence[str], file: Path) -> None:
    """Spreadsheets write semicolons where the comma is the decimal mark, and tabs when asked for text."""
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if any(separator in cell for cell in names):
            raise BuildError(
                f"{file} separates its columns by {name}. Expected commas; save it again as CSV with commas "
                "(spreadsheets ask for the separator)."
            )


def _read_jsonl(file: Path) -> list[_Entry]:
    entries = []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(
            f"{file} cannot be read ({error}). Expected UTF-8 text, a JSON object per line; save it again."
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BuildError(
                f"Line {number} of {file} is no JSON ({error}). Expected an object such as "
                '{"path": "a.png", "split": "train", "label": "good"}; correct it.'
            ) from error
        if not isinstance(row, dict):
            raise BuildError(
                f"Line {number} of {file} is no JSON object. Expected keys {_listed()}; correct it."
            )
        _check_keys(row, f"Line {number} of {file}")
        entries.append(_entry(number, row, file))
    return entries


def _check_keys(keys: Any, where: str) -> None:
    for key in keys:
        if key not in _KEYS:
            raise BuildError(
                f"{where} has an unknown key {key!r}.{nearest_name(str(key), list(_KEYS))} Expected "
                f"{_listed()}; correct or remove it."
            )
    missing = [key for key in _REQUIRED if key not in keys]
    if missing:
        raise BuildError(f"{where} lacks {missing[0]!r}. Expected {_listed()}; add it.")


def _listed() -> str:
    return ", ".join(_REQUIRED) + " and optionally mask"


def _entry(line: int, row: dict[Any, Any], file: Path) -> _Entry:
    mask = row.get("mask") or []
    masks = mask if isinstance(mask, list) else [mask]
    texts = [row[key] for key in _REQUIRED] + masks
    # csv gives the cells of lines that are too long or too short under None, or as None.
    if None in row or not all(isinstance(text, str) for text in texts):
        raise BuildError(
            f"Line {line} of {file} does not hold a text for each key. Expected {_listed()}; correct it."
        )
    path, split, label, *rest = (text.strip() for text in texts)
    return _Entry(line, path, split, label, tuple(text for text in rest if text))


def _check(entries: list[_Entry], base: Path, file: Path) -> None:
    """Refuse entries that are unclear, contradict themselves, come twice or name what is not there."""
    require_none(
        [entry for entry in entries if entry.split not in _SPLITS or not entry.path],
        f"{{n}} entries of {file} have no path or another split than train and test, the first {{first}}.",
        "Expected both; correct the list.",
    )
    require_none(
        [entry for entry in entries if entry.label.lower() in _UNCLEAR],
        f"{{n}} entries of {file} have an empty or unclear label, the first {{first}}.",
        "Expected `good`, `bad` or the name of the defect's class; correct the list.",
    )
    require_none(
        [entry for entry in entries if entry.split == "train" and not entry.is_good],
        f"{{n}} entries of {file} are defective images with split train, the first {{first}}.",
        "Expected normal images there: the memory bank is made from them; set their split to test.",
    )
    require_none(
        repeated(base / entry.path for entry in entries),
        f"{file} names {{n}} images twice, the first {{first}}.",
        "Expected every image once, to build from or to test on; correct the list.",
    )
    named = [name for entry in entries for name in (entry.path, *entry.masks)]
    require_none(
        [name for name in named if not (base / name).is_file()],
        f"{file} names {{n}} files that are not there, the first {{first}}.",
        "Expected paths relative to the list; correct them or copy the files.",
    )
