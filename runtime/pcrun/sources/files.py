"""Image files and video files: every frame, in order."""

import glob
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2

from pcrun.errors import SourceError
from pcrun.images.image_io import read_image
from pcrun.images.suffixes import IMAGE_SUFFIXES
from pcrun.sources import Frame
from pcrun.sources.opencv import as_colour

_GLOB_CHARACTERS = frozenset("*?[")


class ImageFiles:
    """Image files: single ones, folders (their images, sorted, folders below included) and glob patterns."""

    live = False

    def __init__(self, paths: Iterable[str | Path], *, white_level_16bit: int) -> None:
        """Expand `paths` at once.

        Raises:
            SourceError: a path does not exist, or a folder or pattern holds no image.
        """
        listed = [str(path) for path in paths]
        self.name = listed[0] if len(listed) == 1 else "images"
        self.paths = [file for path in listed for file in expand_images(path)]
        self._white_level = white_level_16bit

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.items`."""
        for index, path in enumerate(self.paths):
            if stop.is_set():
                return
            yield read_frame(path, index, white_level_16bit=self._white_level)


class VideoFile:
    """Every frame of a video file, in order."""

    live = False

    def __init__(self, path: str | Path, *, fps: float | None = None) -> None:
        """Open the file.

        Args:
            path: the file.
            fps: take so many frames per second of the video; None takes all.

        Raises:
            SourceError: it is missing or not a video that this OpenCV can decode.
        """
        self.name = str(path)
        if not Path(path).is_file():
            raise SourceError(f"There is no video file {path}. Check the path.")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SourceError(
                f"{path} cannot be opened as a video. Expected a format this OpenCV decodes (MP4, AVI, MKV)."
            )
        self._announced = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._stride = self._frames_per_taken(fps) if fps else 1.0

    def _frames_per_taken(self, fps: float) -> float:
        own = float(self._capture.get(cv2.CAP_PROP_FPS))
        if not own > 0:
            raise SourceError(f"{self.name} does not say its frame rate. Leave --fps out.")
        return max(1.0, own / fps)

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.items`."""
        index, taken = 0, 0
        try:
            while not stop.is_set():
                started = time.perf_counter()
                if not self._capture.grab():
                    break
                if index >= taken * self._stride:
                    ok, image = self._capture.retrieve()
                    if not ok:
                        break
                    taken += 1
                    yield Frame(
                        self.name, index, as_colour(image), None, (time.perf_counter() - started) * 1e3
                    )
                index += 1
        finally:
            self._capture.release()
        # OpenCV reports a damaged frame and the end alike; the container's frame count is exact to a frame
        # or two.
        if not stop.is_set() and index < self._announced - max(2, self._announced // 100):
            reason = (
                f"the video ended after {index} of {self._announced} frames; "
                "the file is damaged. Copy it again."
            )
            yield Frame(self.name, index, None, reason, 0.0)


def read_frame(path: Path, index: int, *, white_level_16bit: int) -> Frame:
    """Read an image file as a frame; one that cannot be read says why."""
    started = time.perf_counter()
    try:
        image, error = read_image(path, white_level_16bit=white_level_16bit), None
    except SourceError as problem:
        image, error = None, str(problem)
    return Frame(str(path), index, image, error, (time.perf_counter() - started) * 1e3)


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
        found = sorted(p for p in given.rglob("*") if is_image(p))
    elif _GLOB_CHARACTERS & set(path):
        matches = glob.glob(path, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
        found = sorted(p for p in map(Path, matches) if is_image(p))
    else:
        raise SourceError(f"There is no file or folder {path}. Check the path.")
    if not found:
        raise SourceError(
            f"{path} holds no images. Expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return found


def is_image(path: Path) -> bool:
    """Whether a path looks like an image file to be scored."""
    # Hidden files are leftovers of other programs (`._part.png`). A dangling link counts: it must be named.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
