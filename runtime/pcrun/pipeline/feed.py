"""Sources in threads of their own, and what waits to be scored."""

import threading
from collections import deque

from pcrun.errors import SourceError
from pcrun.sources import Event, Frame, Source

# Frames of a file read ahead, so that decoding overlaps with scoring.
_READ_AHEAD = 2


class Feed:
    """Runs one source in a thread; holds the newest frame of a live one, the next ones of any other.

    Attributes:
        source: what is run.
        crash: what ended it that it did not foresee.
    """

    def __init__(self, source: Source, changed: threading.Condition, stop: threading.Event) -> None:
        """Prepare; `start` runs it.

        Args:
            source: whose `items` are taken.
            changed: notified whenever there is something to take; may serve several feeds.
            stop: ends the source.
        """
        self.source = source
        self.crash: Exception | None = None
        self._changed = changed
        self._stop = stop
        self._events: deque[Event] = deque()
        self._frames: deque[Frame] = deque()
        self._next_index = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"feed {source.name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether the source has ended and everything was taken (call with the condition held)."""
        return self._ended and not self._events and not self._frames

    def take_event(self) -> Event | None:
        """The next event (call with the condition held)."""
        return self._events.popleft() if self._events else None

    def take_frame(self) -> tuple[Frame, int] | None:
        """The next frame, and how many were dropped before it (call with the condition held)."""
        if not self._frames:
            return None
        frame = self._frames.popleft()
        self._changed.notify_all()
        dropped = frame.index - self._next_index if self.source.live else 0
        self._next_index = frame.index + 1
        return frame, dropped

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, at most so long."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            for item in self.source.items(self._stop):
                self._put(item)
                if self._stop.is_set():
                    break
        except SourceError as error:
            self._put(Event("failed", self.source.name, {"reason": str(error)}))
        except Exception as error:  # raised where somebody sees it
            self.crash = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, item: Frame | Event) -> None:
        with self._changed:
            if isinstance(item, Event):
                self._events.append(item)
            elif self.source.live:
                self._frames.clear()
                self._frames.append(item)
            else:
                while len(self._frames) >= _READ_AHEAD and not self._stop.is_set():
                    self._changed.wait(0.5)
                self._frames.append(item)
            self._changed.notify_all()
