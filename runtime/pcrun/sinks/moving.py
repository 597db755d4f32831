"""Frames with their results as moving pictures: an annotated video, a window."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from pcrun.errors import BackendError, SinkError
from pcrun.files import make_folder
from pcrun.images.overlay import shrunk
from pcrun.sinks.pictures import overlay_of

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

_CODEC = "mp4v"
_WINDOW = "pcrun"
_LARGEST_WINDOW_PX = 1280


class VideoSink:
    """An MP4 of all frames with map, regions and verdict."""

    def __init__(self, path: Path, *, fps: float) -> None:
        """Prepare; the file is opened with the first frame, whose size all others must have.

        Args:
            path: .mp4; replaced when it is there.
            fps: frames a second when it is played.

        Raises:
            SinkError: its folder cannot be made, or it is no .mp4.
        """
        if path.suffix.lower() != ".mp4":
            raise SinkError(f"{path} does not end in .mp4. Expected a name that does.")
        make_folder(path.parent)
        self.name = f"video {path}"
        self.lost = 0
        self._path = path
        self._fps = fps
        self._writer: Any = None
        self._size: tuple[int, int] | None = None

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        if verdict.image is None or verdict.result is None:
            return
        picture = overlay_of(verdict, verdict.image, verdict.result)
        size = (picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2)  # the codec wants even sides
        if self._writer is None:
            self._open(size)
        if size != self._size:
            self.lost += 1
            raise SinkError(f"a frame of {size[0]}x{size[1]} px does not fit into a video of {self._size} px")
        self._writer.write(picture[: size[1], : size[0]])

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""

    def close(self) -> None:
        """See `Sink.close`."""
        if self._writer is not None:
            self._writer.release()

    def _open(self, size: tuple[int, int]) -> None:
        writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*_CODEC), self._fps, size)
        if not writer.isOpened():
            self.lost += 1
            raise SinkError(f"{self._path} cannot be written as MP4 ({size[0]}x{size[1]} px).")
        self._writer, self._size = writer, size


class WindowSink:
    """A window on this machine's screen; closing it or pressing q ends the run."""

    name = "window"

    def __init__(self, stop: Callable[[], None]) -> None:
        """Look whether there can be a window.

        Args:
            stop: ends the run as a person wants it.

        Raises:
            BackendError: there is no screen, or this OpenCV has no windows.
        """
        self.lost = 0
        self._stop = stop
        screen = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
        # Without one, the library behind the window ends the process.
        if sys.platform.startswith("linux") and not screen:
            raise BackendError("There is no screen to show a window on. Leave --show out, or set $DISPLAY.")
        try:
            cv2.namedWindow(_WINDOW, cv2.WINDOW_AUTOSIZE)
        except cv2.error as error:
            raise BackendError(
                "This OpenCV has no windows (opencv-python-headless). Put opencv-python in its place, or "
                "leave --show out."
            ) from error

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        if verdict.image is None or verdict.result is None:
            return
        cv2.imshow(_WINDOW, shrunk(overlay_of(verdict, verdict.image, verdict.result), _LARGEST_WINDOW_PX))
        closed = cv2.getWindowProperty(_WINDOW, cv2.WND_PROP_VISIBLE) < 1
        if cv2.waitKey(1) & 0xFF in (ord("q"), 27) or closed:
            self._stop()

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""

    def close(self) -> None:
        """See `Sink.close`."""
        cv2.destroyWindow(_WINDOW)
