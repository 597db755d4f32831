"""Frames of video files by their number."""

from pathlib import Path

import cv2

from pcrun.errors import SourceError
from pcrun.sources.opencv import as_colour
from pcrun.types import UInt8Array


class VideoFrames:
    """Reads frames of videos, one video open at a time.

    Frames are counted from the start: seeking lands on another frame with some formats. In ascending order
    each is decoded once; a frame before the last one starts the video again.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._capture: cv2.VideoCapture | None = None
        self._next = 0

    def read(self, path: Path, frame: int) -> UInt8Array:
        """One frame, (height, width, 3) uint8 BGR.

        Raises:
            SourceError: there is no such video, or it has no such frame that can be decoded.
        """
        if path != self._path or frame < self._next:
            self.close()
            self._capture, self._path = _open(path), path
        assert self._capture is not None  # opened above, or before
        while self._next < frame and self._capture.grab():
            self._next += 1
        ok, image = self._capture.read() if self._next == frame else (False, None)
        if not ok or image is None:
            reached = self._next
            self.close()
            raise SourceError(
                f"{path} has no frame {frame} that can be decoded; it ended after {reached}. Expected a "
                "whole video; copy it again."
            )
        self._next += 1
        return as_colour(image)

    def close(self) -> None:
        """Let go of the open video."""
        if self._capture is not None:
            self._capture.release()
        self._path, self._capture, self._next = None, None, 0


def count_frames(path: Path) -> int:
    """How many frames of a video can be decoded; what its container announces may be off by some.

    Raises:
        SourceError: it cannot be opened, or ends before its announced length.
    """
    capture = _open(path)
    try:
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        frames = 0
        while capture.grab():
            frames += 1
    finally:
        capture.release()
    if frames < announced - max(2, announced // 100):
        raise SourceError(
            f"{path} ends after {frames} of {announced} frames. Expected a whole video; copy it again."
        )
    return frames


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise SourceError(f"There is no video file {path}. Check the path.")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        capture.release()
        raise SourceError(
            f"{path} cannot be opened as a video. Expected a format this OpenCV decodes (MP4, AVI, MKV)."
        )
    return capture
