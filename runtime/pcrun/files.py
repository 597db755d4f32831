"""Writing files so that nobody ever sees half of one."""

import contextlib
import os
from pathlib import Path

from pcrun.errors import SinkError


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary name beside it, then a rename.

    Raises:
        SinkError: it cannot be written.
    """
    # Not the `tempfile` module: its files are for their owner's eyes only.
    temporary = path.with_name(f".pcrun-{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise SinkError(
            f"{path} cannot be written ({error.strerror or error}). Choose another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        SinkError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"The folder {folder} cannot be made ({error.strerror or error}). Choose another place."
        ) from error
