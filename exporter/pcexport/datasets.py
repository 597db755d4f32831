"""Finding the normal images to build from, and the labelled ones to test on."""

import glob
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pcexport.errors import BuildError
from pcrun.image_io import IMAGE_SUFFIXES

_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class TestImage:
    """A labelled image; `mask` marks its defect where one was drawn."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    path: Path
    defect: str | None
    mask: Path | None = None

    @property
    def is_defective(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect is not None


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed order.

    Attributes:
        name: the folder's own name.
        layout: which reader found them.
        root: names are reported relative to it.
        normal: images to build from.
        test: labelled images, possibly none.
    """

    name: str
    layout: str
    root: Path
    normal: tuple[Path, ...]
    test: tuple[TestImage, ...]


def find_dataset(data: str, layout: str = "auto") -> Dataset:
    """Read a data folder or glob.

    Args:
        data: a folder, or a glob pattern of normal images.
        layout: "mvtec", "mtd", "flat" or "auto".

    Raises:
        BuildError: nothing there, no known layout, or no normal image in it.
    """
    if _GLOB_CHARACTERS & set(data) and not Path(data).exists():
        if layout not in ("auto", "flat"):
            raise BuildError(
                f"{data!r} is a glob, which is layout 'flat', not {layout!r}. Give the data's folder."
            )
        return _require_images(_read_glob(data), data)
    root = Path(data)
    if root.is_file():
        raise BuildError(f"{data} is a file. Expected a folder of images or a quoted glob; give its folder.")
    if not root.is_dir():
        raise BuildError(
            f"There is no folder {data}. Expected a folder of images or a quoted glob; check the path."
        )
    if layout == "auto":
        layout = _detect(root)
    return _require_images(LAYOUTS[layout](root), data)


def _detect(root: Path) -> str:
    if (root / "train" / "good").is_dir():
        return "mvtec"
    if (root / "MT_Free").is_dir():
        return "mtd"
    if _images_in(root):
        return "flat"
    seen = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    raise BuildError(
        f"{root} has no known layout (it holds: {seen}). Expected train/good/, MT_Free/, or images directly "
        "in it; give the folder that holds the images, or a quoted glob."
    )


def _require_images(dataset: Dataset, data: str) -> Dataset:
    if not dataset.normal:
        raise BuildError(
            f"{data} holds no normal images where layout {dataset.layout} has them "
            f"({_PLACES[dataset.layout]}). Expected {_suffixes()} files; check the folder or --layout."
        )
    return dataset


def _read_flat(root: Path) -> Dataset:
    return Dataset(root.resolve().name, "flat", root, _images_in(root), ())


def _read_glob(pattern: str) -> Dataset:
    # Path.glob refuses absolute patterns.
    found = sorted(Path(p) for p in glob.glob(pattern, recursive=True))  # noqa: PTH207
    images = tuple(p for p in found if _is_image(p))
    root = Path(*_literal_parts(pattern))
    return Dataset(root.resolve().name, "flat", root, images, ())


def _literal_parts(pattern: str) -> list[str]:
    parts: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if _GLOB_CHARACTERS & set(part):
            break
        parts.append(part)
    return parts


def _read_mvtec(root: Path) -> Dataset:
    test_root = root / "test"
    folders = sorted(p for p in test_root.iterdir() if p.is_dir()) if test_root.is_dir() else []
    test = tuple(
        _mvtec_test_image(root, folder.name, image) for folder in folders for image in _images_in(folder)
    )
    return Dataset(root.resolve().name, "mvtec", root, _images_in(root / "train" / "good"), test)


def _mvtec_test_image(root: Path, folder: str, image: Path) -> TestImage:
    if folder == "good":
        return TestImage(image, None)
    mask = root / "ground_truth" / folder / f"{image.stem}_mask.png"
    return TestImage(image, folder, mask if mask.is_file() else None)


def _read_mtd(root: Path) -> Dataset:
    normal_folder = root / "MT_Free" / "Imgs"
    all_normal = {p.name: p for p in _images_in(normal_folder) if p.suffix.lower() != ".png"}
    train, test_good = _mtd_split(root, all_normal)
    test = [TestImage(p, None) for p in test_good]
    for folder in sorted(root.glob("MT_*")):
        if folder.name == "MT_Free" or not folder.is_dir():
            continue
        for image in _images_in(folder / "Imgs"):
            # Masks stand beside the images, as PNG of the same name.
            if image.suffix.lower() != ".png":
                mask = image.with_suffix(".png")
                test.append(TestImage(image, folder.name, mask if mask.is_file() else None))
    return Dataset(root.resolve().name, "mtd", root, tuple(train), tuple(test))


def _mtd_split(root: Path, normal: dict[str, Path]) -> tuple[list[Path], list[Path]]:
    split_file = root / "split.json"
    if not split_file.is_file():
        return list(normal.values()), []
    try:
        split = json.loads(split_file.read_text(encoding="utf-8"))
        train, test = list(split["train_good"]), list(split["test_good"])
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"{split_file} is not a split ({error}). Expected lists `train_good` and `test_good`."
        ) from error
    names = [*train, *test]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise BuildError(
            f"{split_file} names {len(repeated)} images twice, the first {repeated[0]!r}. "
            "Expected every image in one of the two lists, once; correct the split."
        )
    missing = [name for name in names if name not in normal]
    if missing:
        raise BuildError(
            f"{split_file} names {len(missing)} images that MT_Free/Imgs lacks, the first {missing[0]!r}. "
            "Expected the complete data; copy them again or correct the split."
        )
    return [normal[name] for name in train], [normal[name] for name in test]


def _images_in(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(p for p in folder.iterdir() if _is_image(p)))


def _is_image(path: Path) -> bool:
    # Hidden files are leftovers of other programs (`._part.png`). A dangling link counts: it must be named.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


_PLACES = {"mvtec": "train/good/", "mtd": "MT_Free/Imgs/", "flat": "directly in it"}
LAYOUTS: dict[str, Callable[[Path], Dataset]] = {"mvtec": _read_mvtec, "mtd": _read_mtd, "flat": _read_flat}
