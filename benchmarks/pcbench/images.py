"""Image files named on the command line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcrun.errors import SourceError
from pcrun.sources.files import expand_images

MIN_IMAGES = 6


def chosen_images(paths: Sequence[str], max_images: int, *, kind: str = "") -> list[Path]:
    """Image files, evenly spread where there are too many.

    Args:
        paths: image files, folders, globs, or @FILE with one of these a line.
        max_images: how many to use.
        kind: what they are called in an error, as "normal".

    Raises:
        SourceError: fewer than `MIN_IMAGES`, or a list that cannot be read.
    """
    files: list[Path] = []
    for entry in unlisted(paths):
        files += expand_images(entry)
    if len(files) < MIN_IMAGES:
        what = f"{kind} image" if kind else "image"
        count = f"{len(files)} {what}s are" if len(files) != 1 else f"1 {what} is"
        raise SourceError(f"{count} too few for a median. Expected at least {MIN_IMAGES}; name more.")
    if len(files) > max_images:
        files = [files[i] for i in np.linspace(0, len(files) - 1, max_images).astype(int)]
    return files


def unlisted(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths as they are given, and in the place of each @FILE the lines of that file.

    Raises:
        SourceError: a list that cannot be read.
    """
    return tuple(entry for path in paths for entry in _entries(path))


def _entries(path: str) -> list[str]:
    if not path.startswith("@"):
        return [path]
    try:
        return Path(path[1:]).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SourceError(
            f"The list {path[1:]} cannot be read ({error.strerror}). Check the path."
        ) from error
