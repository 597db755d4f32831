"""Pictures for the live page, painted when somebody looks, and never often enough to hold up the line."""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pcrun.errors import SinkError
from pcrun.images.image_io import encode_jpeg
from pcrun.images.overlay import draw_small_overlay, shrunk
from pcrun.page.state import LineState
from pcrun.types import UInt8Array

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

_FRAME_PX = 960
_GALLERY_PX = 360
_QUALITY = 80
# Between two pictures of a line, however many people look.
_FRAME_EVERY_S = 0.1
_GALLERY_EVERY_S = 0.2


class FramePainter:
    """The current frame of one line as JPEG; a picture serves all who ask for it."""

    def __init__(self, line: LineState) -> None:
        self._line = line
        self._lock = threading.Lock()
        # By "with heatmap": number of the frame, when it was painted, picture.
        self._painted: dict[bool, tuple[int, float, bytes]] = {}

    def jpeg(self, *, heatmap: bool) -> tuple[int, bytes] | None:
        """Number and picture of the newest frame, or of one a moment ago; None before the first."""
        latest = self._line.latest()
        if latest is None or latest[1].image is None:
            return None
        number, verdict = latest
        with self._lock:
            painted = self._painted.get(heatmap)
            if painted is None or (number != painted[0] and time.monotonic() - painted[1] >= _FRAME_EVERY_S):
                painted = (number, time.monotonic(), paint(verdict, _FRAME_PX, heatmap=heatmap))
                self._painted[heatmap] = painted
        return painted[0], painted[2]


class GalleryPainter:
    """Paints anomalous frames in a thread of its own; those that are gone before their turn are left out."""

    def __init__(self, lines: Sequence[LineState]) -> None:
        """Start the thread."""
        self._lines = lines
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page pictures", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(2)

    def _run(self) -> None:
        while not self._stopping.wait(_GALLERY_EVERY_S):
            for line in self._lines:
                anomaly = line.unpainted()
                if anomaly is not None and anomaly.verdict is not None:
                    anomaly.jpeg = paint(anomaly.verdict, _GALLERY_PX, heatmap=True)
                    anomaly.verdict = None


def paint(verdict: "Verdict", largest_px: int, *, heatmap: bool) -> bytes:
    """A verdict's frame as JPEG, at most so large; as it is where there is no result.

    Raises:
        SinkError: it has no image, or that cannot be encoded.
    """
    if verdict.image is None:
        raise SinkError("a frame that could not be read cannot be painted")
    picture: UInt8Array
    if heatmap and verdict.result is not None:
        spec = verdict.detector.manifest.preprocess
        picture = draw_small_overlay(verdict.image, verdict.result, spec, verdict.view, largest_px)
    else:
        picture = shrunk(verdict.image, largest_px)
    return encode_jpeg(picture, _QUALITY)
