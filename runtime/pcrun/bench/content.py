"""What is scored in a measurement: golden samples, files, or a video."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from pcrun.bundle.bundle import Bundle
from pcrun.errors import SourceError
from pcrun.images.image_io import decode_image
from pcrun.sources.files import expand_images
from pcrun.types import UInt8Array

# Frames of a video held in memory: enough for its content to vary.
_VIDEO_FRAMES = 120


@dataclass(frozen=True)
class Item:
    """One image to score.

    Attributes:
        name: for messages.
        data: the bytes of its file, which are decoded each time; None for a frame of a video.
        image: (height, width, 3) uint8 BGR, decoded before; None for a file.
    """

    name: str
    data: bytes | None = None
    image: UInt8Array | None = None


@dataclass(frozen=True)
class Content:
    """Items of a kind.

    Attributes:
        name: "golden samples, normal", "12 files" and so on.
        items: at least one.
    """

    name: str
    items: tuple[Item, ...]


def golden_contents(bundle: Bundle) -> list[Content]:
    """The bundle's golden samples, normal and defective apart: verification costs more on defects.

    Raises:
        SourceError: there are none.
    """
    samples = bundle.golden_samples().samples
    contents = []
    for label in ("normal", "defective"):
        items = tuple(Item(s.file, data=bundle.read(s.file)) for s in samples if s.label == label)
        if items:
            contents.append(Content(f"golden samples, {label}", items))
    if not contents:
        raise SourceError(
            "The bundle holds no golden samples. Give images to measure with --images or --video."
        )
    return contents


def file_content(paths: Sequence[str], *, white_level_16bit: int) -> Content:
    """Image files, folders and globs, read into memory; each must be readable.

    Raises:
        SourceError: one is not, or there is none.
    """
    files = [file for path in paths for file in expand_images(path)]
    items = []
    for file in files:
        try:
            data = file.read_bytes()
            decode_image(data, white_level_16bit=white_level_16bit)
        except (OSError, SourceError) as error:
            raise SourceError(f"{file}: {error}") from error
        items.append(Item(str(file), data=data))
    return Content(f"{len(items)} files", tuple(items))


def video_content(path: Path) -> Content:
    """The first frames of a video, decoded.

    Raises:
        SourceError: it has none.
    """
    capture = cv2.VideoCapture(str(path))
    items: list[Item] = []
    try:
        while len(items) < _VIDEO_FRAMES:
            ok, frame = capture.read()
            if not ok:
                break
            items.append(Item(f"{path.name} {len(items)}", image=frame))
    finally:
        capture.release()
    if not items:
        raise SourceError(f"{path} cannot be decoded as a video. Expected a video file.")
    return Content(f"{len(items)} frames of {path.name}", tuple(items))
