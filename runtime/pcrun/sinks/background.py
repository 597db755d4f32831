"""What sinks that wait for somebody share: a thread of their own, and a queue that is bounded."""

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, TypeVar

from pcrun.errors import SinkError

_Item = TypeVar("_Item")

_CLOSE_S = 5.0


class Undeliverable(SinkError):
    """An item that will never be taken: it is lost, and the next one is tried."""


class BackgroundSink(ABC, Generic[_Item]):
    """Hands items on in a thread, in order; what cannot be delivered now is tried again until it can.

    Attributes:
        name, lost: see `Sink`.
    """

    def __init__(self, name: str, *, capacity: int, first_wait_s: float = 0.5, longest_wait_s: float = 30.0):
        """Start the thread.

        Args:
            name: for people.
            capacity: items that may wait; then the oldest is lost.
            first_wait_s, longest_wait_s: before an item is tried again; each failure doubles the wait.
        """
        self.name = name
        self.lost = 0
        self._capacity = capacity
        self._first_wait_s = first_wait_s
        self._longest_wait_s = longest_wait_s
        self._waiting: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    @abstractmethod
    def deliver(self, item: _Item) -> None:
        """Hand on one item; called in the sink's thread.

        Raises:
            Undeliverable: it will never be taken.
            SinkError: not now.
        """

    def put(self, item: _Item) -> None:
        """Let an item wait for its turn.

        Raises:
            SinkError: the sink does not work at the moment; the item waits all the same.
        """
        with self._changed:
            if len(self._waiting) >= self._capacity:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(item)
            self._changed.notify_all()
            if self._problem is not None:
                raise SinkError(self._problem)

    def close(self) -> None:
        """See `Sink.close`."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)
        with self._changed:
            left = len(self._waiting)
        if left:
            self.lost += left
            raise SinkError(f"{left} records are lost: {self._problem or 'there was no time for them'}")

    def _run(self) -> None:
        wait_s = self._first_wait_s
        deadline: float | None = None
        while True:
            with self._changed:
                while not self._waiting and not self._closing.is_set():
                    self._changed.wait()
                if not self._waiting:
                    return
                item = self._waiting[0]
            if self._closing.is_set():
                deadline = deadline or time.monotonic() + _CLOSE_S * 0.8
                if time.monotonic() > deadline:
                    return
            try:
                self.deliver(item)
            except Undeliverable as error:
                self._done(item, problem=str(error), lost=1)
            except SinkError as error:
                with self._changed:
                    self._problem = str(error)
                self._closing.wait(wait_s)
                if self._closing.is_set():
                    time.sleep(0.1)
                wait_s = min(wait_s * 2, self._longest_wait_s)
            else:
                self._done(item, problem=None, lost=0)
                wait_s = self._first_wait_s

    def _done(self, item: _Item, *, problem: str | None, lost: int) -> None:
        with self._changed:
            self._problem = problem
            self.lost += lost
            if self._waiting and self._waiting[0] is item:
                self._waiting.popleft()
            elif not lost:
                # It was pushed out and counted as lost while it was on its way.
                self.lost -= 1
