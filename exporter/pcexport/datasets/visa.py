"""VisA: one table splits all objects."""

import csv
from pathlib import Path

from pcexport.datasets.files import refs, require_none
from pcexport.datasets.types import Dataset, TestImage
from pcexport.errors import BuildError

_TABLE = Path("split_csv") / "1cls.csv"
_COLUMNS = {"object", "split", "label", "image", "mask"}
# Masks hold the number of the defect's class.
_MARKED_ABOVE = 0
_CONTRARY = {"normal": "Anomaly", "anomaly": "Normal"}

_Row = dict[str, str]


class Visa:
    """VisA (Zou et al., 2022), one of its objects; its table names the classes of no defect."""

    name = "visa"
    title = "VisA"
    expects = """\
OBJECT/                           is DATA, such as VisA/candle; or VisA, if it holds one object
split_csv/1cls.csv                object,split,label,image,mask; beside OBJECT/
OBJECT/Data/Images/Normal/*.JPG   images, as the table names them
OBJECT/Data/Masks/Anomaly/*.png   masks; any pixel that is not 0 is marked"""
    normals = "the rows `train,normal` of split_csv/1cls.csv"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return _table_of(root) is not None

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        table = _table_of(root)
        if table is None:
            raise BuildError(
                f"Neither {root} nor the folder above it holds {_TABLE}. Expected VisA as published; give an "
                "object's folder in it."
            )
        rows = _read_rows(table)
        base = table.parent.parent
        wanted = _object_of(root, base, sorted({row["object"] for row in rows}))
        own = [row for row in rows if row["object"] == wanted]
        _check(own, base, table)
        normal = refs(base / row["image"] for row in own if row["split"] == "train")
        test = tuple(_test_image(row, base) for row in own if row["split"] == "test")
        return Dataset(wanted, self.name, base / wanted, normal, test)


def _table_of(root: Path) -> Path | None:
    if (root / _TABLE).is_file():
        return root / _TABLE
    # Not resolved: a link to an object's folder stands where its table is.
    beside = root.absolute().parent / _TABLE
    return beside if beside.is_file() else None


def _object_of(root: Path, base: Path, objects: list[str]) -> str:
    """The object that is meant: the folder's own name, or the only one there is."""
    if base.absolute() != root.absolute():
        name = root.absolute().name
        if name in objects:
            return name
        raise BuildError(
            f"{_TABLE} beside {root} has no object {name!r}. Expected one of {', '.join(objects)}; give its "
            "folder."
        )
    present = [name for name in objects if (root / name).is_dir()]
    if len(present) == 1:
        return present[0]
    raise BuildError(
        f"{root} holds {len(present)} objects of VisA ({', '.join(present) or 'none of its table'}). "
        f"Expected one; give its folder, such as {root / (present or objects or ['candle'])[0]}."
    )


def _read_rows(table: Path) -> list[_Row]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = sorted(_COLUMNS - set(reader.fieldnames or ()))
            rows = [{key: row[key] or "" for key in _COLUMNS} for row in reader] if not missing else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BuildError(
            f"{table} cannot be read ({error}). Expected VisA's table; copy it again."
        ) from error
    if missing:
        raise BuildError(
            f"{table} has no column {missing[0]!r}. Expected {','.join(sorted(_COLUMNS))}; copy it again."
        )
    return rows


def _check(rows: list[_Row], base: Path, table: Path) -> None:
    """Refuse rows that contradict themselves, their folders or the files that are there."""
    advice = "Expected VisA as published; copy images and table again, or correct the rows."
    require_none(
        [r["image"] for r in rows if r["split"] not in ("train", "test") or r["label"] not in _CONTRARY],
        f"{{n}} rows of {table} have another split than train and test or another label than normal and "
        "anomaly, the first {first}.",
        advice,
    )
    require_none(
        [
            r["image"]
            for r in rows
            if _CONTRARY[r["label"]] in Path(r["image"]).parts
            or (r["label"] == "anomaly" and r["split"] == "train")
            or (r["label"] == "normal" and r["mask"])
        ],
        f"{{n}} rows of {table} have a label that contradicts their folder, split or mask, the first "
        "{first}.",
        advice,
    )
    named = [name for r in rows for name in (r["image"], r["mask"]) if name]
    require_none(
        [name for name in named if not (base / name).is_file()],
        f"{table} names {{n}} files that are not there, the first {{first}}.",
        advice,
    )


def _test_image(row: _Row, base: Path) -> TestImage:
    if row["label"] == "normal":
        return TestImage(base / row["image"], None)
    masks = refs([base / row["mask"]]) if row["mask"] else ()
    return TestImage(base / row["image"], "anomaly", masks, mask_above=_MARKED_ABOVE)
