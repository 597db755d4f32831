"""Reading a data set's images for a build: unreadable ones are named,
and only stop it when that was asked for.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from pcexport.datasets import ImageRef
from pcexport.datasets.videos import VideoFrames
from pcexport.errors import BuildError
from pcrun.errors import SourceError
from pcrun.images.image_io import decode_image, has_alpha
from pcrun.types import UInt8Array

Warn = Callable[[str], None]

# A 16-bit image whose brightest pixel is below this is probably 12-bit data in a 16-bit file.
_DARK_16BIT_LEVEL = 4096


class ImageReader:
    """Reads images one by one and keeps account of them.

    Attributes:
        warn: called with what a person should know.
        copies: files that hold the same bytes as another one read before, and that one.
        skipped: how many were left out.
    """

    def __init__(self, root: Path, *, white_level_16bit: int, strict: bool, warn: Warn) -> None:
        self._root = root
        self._white_level = white_level_16bit
        self._strict = strict
        self.warn = warn
        self._digest = hashlib.sha256()
        self._videos = VideoFrames()
        # Tiles of one image follow each other: the last image that was cut, by its path and frame.
        self._whole: tuple[ImageRef, UInt8Array] | None = None
        self._first_with: dict[bytes, Path] = {}
        self.copies: dict[Path, Path] = {}
        self.skipped = 0
        self._remarked: set[str] = set()

    @property
    def content_sha256(self) -> str:
        """SHA-256 over name, size and bytes of every image read so far, in order; of tiles and frames of
        videos, the bytes are those of their pixels."""
        return self._digest.hexdigest()

    def read_all(self, images: Iterable[ImageRef]) -> Iterator[tuple[ImageRef, UInt8Array | None]]:
        """Yield every image with its (height, width, 3) uint8 BGR pixels, or None where it was left out.

        Raises:
            BuildError: with `strict`, at the first unreadable image.
        """
        for image in images:
            try:
                yield image, self.read(image)
            except SourceError as error:
                if self._strict:
                    raise BuildError(f"{error} (--strict stops at the first unreadable image.)") from error
                self.skipped += 1
                self.warn(f"left out: {error}")
                yield image, None

    def read(self, image: ImageRef) -> UInt8Array:
        """Read one image, (height, width, 3) uint8 BGR; SourceError names the file."""
        if image.frame is None and image.tile is None:
            pixels, data = self._read_file(image.path)
            first = self._first_with.setdefault(hashlib.sha256(data).digest(), image.path)
            if first != image.path:
                self.copies[image.path] = first
        else:
            pixels = self._read_part(image)
            data = pixels.tobytes()
        path = image.path
        name = path.relative_to(self._root) if path.is_relative_to(self._root) else Path(path.name)
        # fsencode: Linux file names may hold bytes that are not UTF-8.
        self._digest.update(os.fsencode(name.as_posix() + image.part) + f"\0{len(data)}\0".encode())
        self._digest.update(data)
        return pixels

    def _read_file(self, path: Path) -> tuple[UInt8Array, bytes]:
        """Pixels and bytes of an image file."""
        try:
            data = path.read_bytes()
            pixels = decode_image(data, white_level_16bit=self._white_level)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror or error}).") from error
        except SourceError as error:
            raise SourceError(f"{path}: {error}") from error
        self._remark(path, data)
        return pixels, data

    def _read_part(self, image: ImageRef) -> UInt8Array:
        """Pixels of a frame of a video, of a tile, or of a tile of a frame."""
        whole = ImageRef(image.path, frame=image.frame)
        if self._whole is None or self._whole[0] != whole:
            pixels = (
                self._read_file(image.path)[0]
                if image.frame is None
                else self._videos.read(image.path, image.frame)
            )
            self._whole = whole, pixels
        pixels = self._whole[1]
        if image.tile is None:
            return pixels
        x, y, width, height = image.tile
        tile = pixels[y : y + height, x : x + width]
        if tile.shape[:2] != (height, width):
            raise SourceError(
                f"{image.path} has {pixels.shape[1]}x{pixels.shape[0]} px, which does not hold the tile "
                f"{image.tile} (x, y, width, height). Expected a larger image; copy it again."
            )
        return np.ascontiguousarray(tile)

    def _remark(self, path: Path, data: bytes) -> None:
        """Warn of the first image of each odd kind: a whole data set of them is one line."""
        if "alpha" not in self._remarked and has_alpha(data):
            self._remarked.add("alpha")
            self.warn(f"{path}: its alpha channel is ignored (further such images are not named)")
        if "dark" in self._remarked:
            return
        if self._white_level > _DARK_16BIT_LEVEL and _may_be_16bit(data):
            raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if raw is not None and raw.dtype == np.uint16 and raw.max() < _DARK_16BIT_LEVEL:
                self._remarked.add("dark")
                self.warn(
                    f"{path}: a 16-bit image whose largest value is {raw.max()}; if its camera has 12 bits, "
                    "pass --white-level-16bit 4095 (further such images are not named)"
                )


def _may_be_16bit(data: bytes) -> bool:
    is_16bit_png = data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24 and data[24] == 16
    return is_16bit_png or data[:4] in (b"II*\0", b"MM\0*")
