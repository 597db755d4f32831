"""Images and masks in folders: what all layouts need."""

import os
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pcexport.datasets.types import ImageRef
from pcexport.errors import BuildError
from pcrun.images.suffixes import IMAGE_SUFFIXES

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

# Of data sets without a split, every fifth normal image is for the test.
_TEST_EVERY = 5


def is_image(path: Path) -> bool:
    """Whether a path has an image's name."""
    # Hidden files are leftovers of other programs (`._part.png`). A dangling link counts: it must be named.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def images_in(folder: Path) -> tuple[Path, ...]:
    """Image files directly in a folder, by name; none where there is no such folder."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(p for p in folder.iterdir() if is_image(p)))


def images_below(folder: Path) -> tuple[Path, ...]:
    """Image files at any depth, by path; links to folders are followed."""
    found = (Path(parent) / name for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    return tuple(sorted(p for p in found if is_image(p)))


def folders_in(folder: Path) -> tuple[Path, ...]:
    """Folders directly in a folder, by name; none where there is no such folder."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def refs(paths: Iterable[Path]) -> tuple[ImageRef, ...]:
    """Whole image files."""
    return tuple(ImageRef(path) for path in paths)


def name_of(root: Path) -> str:
    """A folder's own name, also of `.` and of links."""
    return root.resolve().name


def natural_order(path: Path) -> tuple[tuple[tuple[int, str], ...], str]:
    """A key that sorts `2.jpg` before `10.jpg`; names that count alike stay apart."""
    parts = re.findall(r"\d+|\D+", path.name)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts), path.name


def split_normals(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """The build's and the test's share of normal items: the 5th, 10th, 15th, ... are for the test."""
    test = list(items[_TEST_EVERY - 1 :: _TEST_EVERY])
    build = [item for number, item in enumerate(items, start=1) if number % _TEST_EVERY]
    return build, test


def repeated(items: Iterable[H]) -> list[H]:
    """The items that came before, in order."""
    seen: set[H] = set()
    again = []
    for item in items:
        if item in seen:
            again.append(item)
        seen.add(item)
    return again


def require_none(wrong: Sequence[object], fact: str, advice: str) -> None:
    """Refuse data that do not fit together.

    Args:
        wrong: what does not fit.
        fact: a sentence about it, with {n} where the number belongs and {first} where the first of them does.
        advice: what was expected and what to do.

    Raises:
        BuildError: there is any.
    """
    if wrong:
        # Not `format`: names of folders may hold braces.
        raise BuildError(f"{fact.replace('{n}', str(len(wrong))).replace('{first}', str(wrong[0]))} {advice}")


class MaskFolder:
    """The masks below a folder, and which of them belong to an image."""

    def __init__(self, root: Path) -> None:
        """Find them.

        Raises:
            BuildError: two files differ in their suffix only.
        """
        self._root = root
        self._masks: dict[Path, Path] = {}
        for path in images_below(root):
            name = path.relative_to(root).with_suffix("")
            if name in self._masks:
                raise BuildError(
                    f"{path} and {self._masks[name].name} are two masks of one name. Expected one of them; "
                    "remove the other."
                )
            self._masks[name] = path
        self._unused = dict(self._masks)

    def take(self, *names: str) -> tuple[ImageRef, ...]:
        """The masks of these names (below the folder, without suffix) that exist."""
        found = [Path(name) for name in names if Path(name) in self._masks]
        return self._taken(found)

    def take_inside(self, folder: str) -> tuple[ImageRef, ...]:
        """All masks directly in a folder below this one."""
        return self._taken([name for name in self._masks if name.parent == Path(folder)])

    def require_all_taken(self, places: str) -> None:
        """Refuse masks without an image.

        Args:
            places: where their images were looked for.

        Raises:
            BuildError: some mask was not taken.
        """
        require_none(
            [path.relative_to(self._root).as_posix() for path in self._unused.values()],
            f"{{n}} masks in {self._root} belong to no image, the first {{first}}.",
            f"Expected an image of the same name in {places}; copy the images, or remove the masks.",
        )

    def _taken(self, names: Sequence[Path]) -> tuple[ImageRef, ...]:
        for name in names:
            self._unused.pop(name, None)
        return refs(self._masks[name] for name in names)
