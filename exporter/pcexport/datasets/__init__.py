"""Finding the normal images to build from, and the labelled ones to test on: one module per folder layout.

Listing the layouts loads neither numpy nor OpenCV; `pcexport --help` does it.
"""

import glob
from pathlib import Path

from pcexport.datasets.aitex import Aitex
from pcexport.datasets.btad import Btad
from pcexport.datasets.files import is_image, name_of, refs, repeated, require_none
from pcexport.datasets.flat import FlatFolder
from pcexport.datasets.frames import FrameFolders
from pcexport.datasets.good_bad import GoodBad
from pcexport.datasets.image_list import LIST_SUFFIXES, ImageList
from pcexport.datasets.ksdd import KolektorSdd
from pcexport.datasets.ksdd2 import KolektorSdd2
from pcexport.datasets.mtd import MagneticTiles
from pcexport.datasets.mvtec import MvtecAd
from pcexport.datasets.mvtec_ad2 import MvtecAd2
from pcexport.datasets.mvtec_loco import MvtecLoco
from pcexport.datasets.types import Dataset, ImageRef, Layout, TestImage, Tile
from pcexport.datasets.visa import Visa
from pcexport.errors import BuildError
from pcrun.images.suffixes import IMAGE_SUFFIXES

__all__ = ["LAYOUTS", "Dataset", "ImageRef", "Layout", "TestImage", "Tile", "find_dataset"]

_FLAT = FlatFolder()
_LIST = ImageList()
_ALL: tuple[Layout, ...] = (
    MvtecAd(),
    MvtecLoco(),
    MvtecAd2(),
    MagneticTiles(),
    Aitex(),
    Visa(),
    Btad(),
    KolektorSdd(),
    KolektorSdd2(),
    FrameFolders(),
    GoodBad(),
    _LIST,
    _FLAT,
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}

_GLOB_CHARACTERS = frozenset("*?[")


def find_dataset(data: str, layout: str = "auto", *, to_build: bool = True) -> Dataset:
    """Read a data folder, a glob or a list.

    Args:
        data: a folder, a glob pattern of normal images, or a list of images (CSV, JSONL).
        layout: a name in `LAYOUTS`, or "auto".
        to_build: whether there must be normal images to build from; otherwise test images will do.

    Raises:
        BuildError: nothing there, no known layout, no normal image in it, or data that do not fit together.
        SourceError: a video cannot be read.
    """
    if _GLOB_CHARACTERS & set(data) and not Path(data).exists():
        if layout not in ("auto", _FLAT.name):
            raise BuildError(
                f"{data!r} is a glob, which is layout 'flat', not {layout!r}. Give the data's folder."
            )
        return _require_images(_read_glob(data), data, to_build=to_build)
    root = Path(data)
    if root.is_file() and root.suffix.lower() in LIST_SUFFIXES and layout in ("auto", _LIST.name):
        return _require_images(_LIST.read(root), data, to_build=to_build)
    if root.is_file():
        raise BuildError(
            f"{data} is a file. Expected a folder of images, a quoted glob, or a list ending in "
            f"{' or '.join(LIST_SUFFIXES)}; give its folder."
        )
    if not root.is_dir():
        raise BuildError(
            f"There is no folder {data}. Expected a folder of images or a quoted glob; check the path."
        )
    chosen = _detect(root) if layout == "auto" else LAYOUTS[layout]
    return _require_images(chosen.read(root), data, to_build=to_build)


def _detect(root: Path) -> Layout:
    # Loose images beside a layout's folders are previews and the like.
    found = [known for known in _ALL if known is not _FLAT and known.matches(root)]
    if len(found) > 1:
        raise BuildError(
            f"{root} looks like {len(found)} layouts: {', '.join(known.name for known in found)}. Expected "
            "one; choose with --layout."
        )
    if found:
        return found[0]
    if _FLAT.matches(root):
        return _FLAT
    seen = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
    raise BuildError(
        f"{root} has no known layout (it holds: {seen}). Expected train/good/, MT_Free/, images directly "
        "in it, or another layout that `pcexport datasets` lists; give the folder that holds the images, or "
        "a quoted glob."
    )


def _require_images(dataset: Dataset, data: str, *, to_build: bool) -> Dataset:
    if not dataset.normal and (to_build or not dataset.test):
        raise BuildError(
            f"{data} holds no normal images where layout {dataset.layout} has them "
            f"({LAYOUTS[dataset.layout].normals}). Expected {', '.join(sorted(IMAGE_SUFFIXES))} files; check "
            "the folder or --layout."
        )
    require_none(
        repeated((*dataset.normal, *(image.ref for image in dataset.test))),
        f"{data} holds {{n}} images twice, the first {{first}}.",
        "Expected every image once, to build from or to test on; remove the other.",
    )
    return dataset


def _read_glob(pattern: str) -> Dataset:
    # Path.glob refuses absolute patterns.
    found = sorted(Path(p) for p in glob.glob(pattern, recursive=True))  # noqa: PTH207
    root = Path(*_literal_parts(pattern))
    return Dataset(name_of(root), _FLAT.name, root, refs(p for p in found if is_image(p)), ())


def _literal_parts(pattern: str) -> list[str]:
    parts: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if _GLOB_CHARACTERS & set(part):
            break
        parts.append(part)
    return parts
