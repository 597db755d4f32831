"""The scenario of a camera: frames come at a fixed rate whether or not somebody is ready for them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pcrun.bench.content import Item
from pcrun.bench.scenarios import endless
from pcrun.detector import AnomalyDetector
from pcrun.images.image_io import decode_image
from pcrun.pipeline.pipeline import Line, Pipeline, Receiver, Verdict
from pcrun.sources.live import LiveSource
from pcrun.types import UInt8Array


@dataclass(frozen=True)
class CameraResult:
    """What became of the frames.

    Attributes:
        fps: of the camera.
        frames: it gave.
        scored, dropped: of them; the rest came when it was over.
        age_ms: of each scored frame at its verdict.
    """

    fps: float
    frames: int
    scored: int
    dropped: int
    age_ms: list[float]


class PacedFrames:
    """A camera that shows images in turn, on time.

    Attributes:
        frames: shown so far.
    """

    name = "camera"

    def __init__(self, images: Sequence[UInt8Array], fps: float) -> None:
        self.frames = 0
        self._images = endless(images)
        self._fps = fps

    def open(self) -> Any:
        """See `pcrun.sources.opencv.Device.open`."""
        self._next = time.monotonic()
        return self

    def read(self) -> tuple[bool, UInt8Array | None]:
        """As `cv2.VideoCapture.read`, when the frame is due."""
        self._next += 1 / self._fps
        time.sleep(max(0.0, self._next - time.monotonic()))
        self.frames += 1
        return True, next(self._images)

    def release(self) -> None:
        """As `cv2.VideoCapture.release`."""


class _Ages(Receiver):
    def __init__(self) -> None:
        self.ages: list[float] = []

    def verdict(self, verdict: Verdict) -> None:
        assert verdict.age_ms is not None  # a live source
        self.ages.append(verdict.age_ms)


def run_camera(
    detector: AnomalyDetector, items: Sequence[Item], *, fps: float, duration_s: float
) -> CameraResult:
    """Judge a simulated camera's newest frames for so long, in the pipeline of `pcrun` itself."""
    white_level = detector.manifest.preprocess.white_level_16bit
    images = []
    for item in items:
        if item.image is not None:
            images.append(item.image)
        elif item.data is not None:
            images.append(decode_image(item.data, white_level_16bit=white_level))
    device = PacedFrames(images, fps)
    line = Line(LiveSource(device), detector)
    ages = _Ages()
    Pipeline([line], ages, duration_s=duration_s).run()
    return CameraResult(fps, device.frames, line.scored, line.dropped, ages.ages)
