"""Where frames come from: image files, a video, a camera. One small class each behind one interface."""

import glob
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2

from pcrun.errors import SourceError
from pcrun.image_io import IMAGE_SUFFIXES, read_image
from pcrun.types import UInt8Array

_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class Frame:
    """One frame, or the reason why there is none.

    Attributes:
        source: file path, or "camera:0".
        index: position in the source, from 0.
        image: (height, width, 3) uint8 BGR, or None when it could not be read.
        error: why, when image is None.
        decode_ms: time spent reading and decoding.
    """

    source: str
    index: int
    image: UInt8Array | None
    error: str | None
    decode_ms: float


class Source(Protocol):
    """An iterable of frames."""

    def __iter__(self) -> Iterator[Frame]: ...


class ImageFiles:
    """Image files: single ones, folders (their images, sorted, folders below included) and glob patterns."""

    def __init__(self, paths: Iterable[str | Path], *, white_level_16bit: int) -> None:
        """Expand `paths` at once.

        Raises:
            SourceError: a path does not exist, or a folder or pattern holds no image.
        """
        self.paths = [file for path in paths for file in expand_images(str(path))]
        self._white_level = white_level_16bit

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            started = time.perf_counter()
            try:
                image, error = read_image(path, white_level_16bit=self._white_level), None
            except SourceError as problem:
                image, error = None, str(problem)
            yield Frame(str(path), index, image, error, (time.perf_counter() - started) * 1e3)


class VideoFile:
    """Every frame of a video file, in order."""

    def __init__(self, path: str | Path) -> None:
        """Open the file.

        Raises:
            SourceError: it is missing or not a video that this OpenCV can decode.
        """
        self._path = Path(path)
        if not self._path.is_file():
            raise SourceError(f"There is no video file {path}. Check the path.")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SourceError(
                f"{path} cannot be opened as a video. Expected a format this OpenCV decodes (MP4, AVI, MKV)."
            )
        self._announced = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        try:
            for frame in _captured(self._capture, str(self._path)):
                index += 1
                yield frame
        finally:
            self._capture.release()
        # OpenCV reports a damaged frame and the end alike; the container's frame count is exact to a frame
        # or two.
        if index < self._announced - max(2, self._announced // 100):
            reason = (
                f"the video ended after {index} of {self._announced} frames; "
                "the file is damaged. Copy it again."
            )
            yield Frame(str(self._path), index, None, reason, 0.0)


class Camera:
    """A local camera by number, until it fails or the caller stops."""

    def __init__(self, number: int) -> None:
        """Open the camera.

        Raises:
            SourceError: there is none with this number, or it is in use.
        """
        self._name = f"camera:{number}"
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise SourceError(
                f"Camera {number} cannot be opened. Expected a connected camera that no other program uses."
            )

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        try:
            for frame in _captured(self._capture, self._name):
                index += 1
                yield frame
        finally:
            self._capture.release()
        yield Frame(
            self._name, index, None, "the camera stopped delivering frames; check its cable and power.", 0.0
        )


def expand_images(path: str) -> list[Path]:
    """The image files behind one file, folder or glob pattern, sorted; hidden files are left out.

    Raises:
        SourceError: a folder that is not there, or nothing that looks like an image.
    """
    given = Path(path)
    # A named image that is not there becomes a frame with an error: the others of a list are still scored.
    named_image = given.suffix.lower() in IMAGE_SUFFIXES and not _GLOB_CHARACTERS & set(path)
    if given.is_file() or (named_image and not given.is_dir()):
        return [given]
    if given.is_dir():
        found = sorted(p for p in given.rglob("*") if _is_image(p))
    elif _GLOB_CHARACTERS & set(path):
        matches = glob.glob(path, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = sorted(p for p in map(Path, matches) if _is_image(p))
    else:
        raise SourceError(f"There is no file or folder {path}. Check the path.")
    if not found:
        raise SourceError(
            f"{path} holds no images. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return found


def _is_image(path: Path) -> bool:
    # Hidden files are leftovers of other programs (`._part.png`). A dangling link counts: it must be named.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _captured(capture: cv2.VideoCapture, name: str) -> Iterator[Frame]:
    index = 0
    while True:
        started = time.perf_counter()
        ok, image = capture.read()
        if not ok:
            return
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        yield Frame(name, index, image, None, (time.perf_counter() - started) * 1e3)
        index += 1
