"""Reading a data set's images for a build: unreadable ones are named,
and only stop it when that was asked for.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from pcexport.errors import BuildError
from pcrun.errors import SourceError
from pcrun.image_io import decode_image, has_alpha
from pcrun.types import UInt8Array

Warn = Callable[[str], None]

# A 16-bit image whose brightest pixel is below this is probably 12-bit data in a 16-bit file.
_DARK_16BIT_LEVEL = 4096


class ImageReader:
    """Reads images one by one and keeps account: a digest of what was read, and how many were left out."""

    def __init__(self, root: Path, *, white_level_16bit: int, strict: bool, warn: Warn) -> None:
        self._root = root
        self._white_level = white_level_16bit
        self._strict = strict
        self._warn = warn
        self._digest = hashlib.sha256()
        self.skipped = 0

    @property
    def content_sha256(self) -> str:
        """SHA-256 over name, size and bytes of every image read so far, in order."""
        return self._digest.hexdigest()

    def read_all(self, paths: tuple[Path, ...]) -> Iterator[tuple[Path, UInt8Array | None]]:
        """Yield every path with its (height, width, 3) uint8 BGR image, or None for one that was left out.

        Raises:
            BuildError: with `strict`, at the first unreadable image.
        """
        for path in paths:
            try:
                yield path, self.read(path)
            except SourceError as error:
                if self._strict:
                    raise BuildError(f"{error} (--strict stops at the first unreadable image.)") from error
                self.skipped += 1
                self._warn(f"left out: {error}")
                yield path, None

    def read(self, path: Path) -> UInt8Array:
        """Read one image; SourceError names the file."""
        try:
            data = path.read_bytes()
            image = decode_image(data, white_level_16bit=self._white_level)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except SourceError as error:
            raise SourceError(f"{path}: {error}") from error
        self._remark(path, data)
        name = path.relative_to(self._root) if path.is_relative_to(self._root) else path.name
        # fsencode: Linux file names may hold bytes that are not UTF-8.
        self._digest.update(os.fsencode(Path(name).as_posix()) + f"\0{len(data)}\0".encode())
        self._digest.update(data)
        return image

    def _remark(self, path: Path, data: bytes) -> None:
        if has_alpha(data):
            self._warn(f"{path}: its alpha channel is ignored")
        if self._white_level > _DARK_16BIT_LEVEL and _may_be_16bit(data):
            raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if raw is not None and raw.dtype == np.uint16 and raw.max() < _DARK_16BIT_LEVEL:
                self._warn(
                    f"{path}: a 16-bit image whose largest value is {raw.max()}; if its camera has 12 bits, "
                    "pass --white-level-16bit 4095"
                )


def _may_be_16bit(data: bytes) -> bool:
    is_16bit_png = data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24 and data[24] == 16
    return is_16bit_png or data[:4] in (b"II*\0", b"MM\0*")
