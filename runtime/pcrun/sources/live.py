"""Live sources: kept alive for months. A silent camera is noticed, and opened anew until it answers.

Frames are read in a thread of their own, because a read can hang for as long as the driver likes. Only the
newest frame is kept. A frame is given once, and never made up: a camera that fails gives events.
"""

import threading
import time
from collections.abc import Iterator

import cv2

from pcrun.errors import SourceError
from pcrun.sources import Event, Frame
from pcrun.sources.opencv import Device, as_colour
from pcrun.types import UInt8Array

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
_POLL_S = 0.2
_LAST_READ_S = 1.0
READER_THREADS = "capture "


class LiveSource:
    """Newest frames of a device, reconnected with a growing wait whenever it fails or falls silent."""

    live = True

    def __init__(
        self,
        device: Device,
        *,
        stall_timeout_s: float = 5.0,
        fps: float | None = None,
        first_wait_s: float = FIRST_WAIT_S,
        longest_wait_s: float = LONGEST_WAIT_S,
    ) -> None:
        """Nothing is opened yet.

        Args:
            device: opened again and again.
            stall_timeout_s: a device that gives no frame for so long is given up and opened anew.
            fps: at most so many frames a second; None takes what comes.
            first_wait_s, longest_wait_s: before opening it again; each failure doubles the wait.
        """
        self.name = device.name
        self._device = device
        self._stall_timeout_s = stall_timeout_s
        self._period_s = 1 / fps if fps else 0.0
        self._first_wait_s = first_wait_s
        self._longest_wait_s = longest_wait_s

    def items(self, stop: threading.Event) -> Iterator[Frame | Event]:
        """See `Source.items`; ends only by `stop`."""
        index, wait_s, times_connected = 0, self._first_wait_s, 0
        while not stop.is_set():
            reader = _Reader(self._device, index)
            try:
                for captured in reader.frames(stop, self._stall_timeout_s):
                    if reader.taken == 1:
                        yield self._connected(times_connected, captured.image)
                        times_connected += 1
                        wait_s = self._first_wait_s
                    index = captured.index + 1
                    yield captured.as_frame(self.name)
                    self._rest(captured.ready, stop)
            finally:
                # At the end of all, a read that will return soon is waited for.
                reader.give_up(wait_s=_LAST_READ_S if stop.is_set() else 0.0)
            if not stop.is_set():
                yield Event("lost", self.name, {"reason": reader.problem, "retry_in_s": round(wait_s, 3)})
                stop.wait(wait_s)
                wait_s = min(wait_s * 2, self._longest_wait_s)

    def _connected(self, times: int, image: UInt8Array) -> Event:
        height, width = image.shape[:2]
        name = "reconnected" if times else "connected"
        return Event(name, self.name, {"width": width, "height": height})

    def _rest(self, since: float, stop: threading.Event) -> None:
        rest = since + self._period_s - time.perf_counter()
        if self._period_s and rest > 0:
            stop.wait(rest)


class _Captured:
    """A frame as the reader took it."""

    def __init__(self, index: int, image: UInt8Array, decode_ms: float) -> None:
        self.index = index
        self.image = image
        self.decode_ms = decode_ms
        self.captured_at = time.time()
        self.ready = time.perf_counter()

    def as_frame(self, source: str) -> Frame:
        return Frame(source, self.index, self.image, None, self.decode_ms, self.captured_at, self.ready)


class _Reader:
    """Opens a device once and reads it in a thread until it fails or is given up.

    A read that hangs cannot be stopped from outside. The thread is left behind then, and ends with the read:
    it has the only reference to the capture object.

    Attributes:
        taken: frames given so far.
        problem: why there are no more.
    """

    def __init__(self, device: Device, first_index: int) -> None:
        self.taken = 0
        self.problem = "stopped"
        self._device = device
        self._next_index = first_index
        self._given_up = threading.Event()
        self._changed = threading.Condition()
        self._newest: _Captured | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._read, name=READER_THREADS + device.name, daemon=True)
        self._thread.start()

    def frames(self, stop: threading.Event, timeout_s: float) -> Iterator[_Captured]:
        """The newest frame each time, as long as one comes within the time-out."""
        deadline = time.monotonic() + timeout_s
        while not stop.is_set():
            with self._changed:
                if self._newest is None and not self._ended:
                    self._changed.wait(min(_POLL_S, max(0.0, deadline - time.monotonic())))
                captured, self._newest = self._newest, None
                ended = self._ended
            if captured is not None:
                self.taken += 1
                yield captured
                deadline = time.monotonic() + timeout_s
            elif ended:
                return
            elif time.monotonic() >= deadline:
                self.problem = f"no frame for {timeout_s:g} s"
                return

    def give_up(self, *, wait_s: float) -> None:
        """Stop reading, as soon as the current read returns; wait so long for that."""
        self._given_up.set()
        self._thread.join(wait_s)

    def _read(self) -> None:
        problem = None
        try:
            capture = self._device.open()
            try:
                problem = self._read_all(capture)
            finally:
                capture.release()
        except (SourceError, cv2.error) as error:
            problem = str(error).strip()
        with self._changed:
            if not self._given_up.is_set():
                self.problem = problem or "stopped"
            self._ended = True
            self._changed.notify_all()

    def _read_all(self, capture: cv2.VideoCapture) -> str | None:
        while not self._given_up.is_set():
            started = time.perf_counter()
            ok, image = capture.read()
            if not ok:
                return "it stopped delivering frames"
            # OpenCV may use the same memory for the next frame.
            decode_ms = (time.perf_counter() - started) * 1e3
            captured = _Captured(self._next_index, as_colour(image), decode_ms)
            self._next_index += 1
            with self._changed:
                self._newest = captured
                self._changed.notify_all()
        return None
