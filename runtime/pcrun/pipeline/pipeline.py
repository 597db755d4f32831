"""Frames of one or several sources through the detector.

Each source is read and decoded in a thread of its own. The caller's thread takes a frame whenever it is free,
which is the newest one of a live source, judges it and hands it over: all sinks are called from one thread.
Where the embedder has a device of its own, another thread embeds the next frame meanwhile.
"""

import contextlib
import enum
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pcrun.detector import AnomalyDetector
from pcrun.errors import SourceError
from pcrun.pipeline.debounce import Debounce
from pcrun.pipeline.drift import DriftWatch
from pcrun.pipeline.feed import Feed
from pcrun.result import AnomalyResult
from pcrun.scoring.embedded import EmbeddedImage
from pcrun.sources import Event, Frame, Source
from pcrun.sources.view import FrameView
from pcrun.types import UInt8Array

_POLL_S = 0.2
# At most one event about dropped frames per source in so many seconds.
_DROPPED_EVERY_S = 1.0
_JOIN_S = 2.0


@dataclass(frozen=True)
class Verdict:
    """What is known about one frame when it leaves the pipeline.

    Attributes:
        frame: as the source gave it.
        image: (height, width, 3) uint8 BGR, the whole frame, upright; None when it could not be read.
        view: what of it was scored.
        result: of the inspected part, in its pixels; None for a frame that could not be scored.
        error: why not.
        detector: that scored it.
        dropped: frames of this source thrown away since the last verdict, because newer ones came.
        age_ms: from the moment the frame had been read to its verdict; None for sources that are not live.
        alarm: of `--debounce`; None without.
        line: number of its line in the run.
    """

    frame: Frame
    image: UInt8Array | None
    view: FrameView
    result: AnomalyResult | None
    error: str | None
    detector: AnomalyDetector
    dropped: int
    age_ms: float | None
    alarm: bool | None
    line: int = 0


@dataclass(eq=False)  # two lines may look alike
class Line:
    """One source and how its frames are judged.

    Attributes:
        source: where frames come from.
        detector: may be exchanged while the line runs; frames on their way are finished with the old one.
        view: turn and cut.
        debounce: smooths verdicts, or None.
        drift: compares scores with those of normal images, or None.
        scored, errors, dropped: frames so far.
    """

    source: Source
    detector: AnomalyDetector
    view: FrameView = field(default_factory=FrameView)
    debounce: Debounce | None = None
    drift: DriftWatch | None = None
    scored: int = 0
    errors: int = 0
    dropped: int = 0


class Receiver:
    """Gets what comes out; called from one thread."""

    def verdict(self, verdict: Verdict) -> None:
        """One frame is done."""

    def event(self, event: Event) -> None:
        """Something happened."""

    def idle(self) -> None:
        """Called some times a second, also when no frame comes."""


class _End(enum.Enum):
    END = enum.auto()


_END = _End.END


@dataclass(frozen=True)
class _Job:
    """A frame on its way: cut and, where stages overlap, embedded."""

    line: Line
    frame: Frame
    dropped: int
    detector: AnomalyDetector
    image: UInt8Array | None = None
    inspected: UInt8Array | None = None
    embedded: EmbeddedImage | None = None
    error: str | None = None


class Pipeline:
    """Runs lines until their sources end, a limit is reached, or `stop` is called."""

    def __init__(
        self,
        lines: Sequence[Line],
        receiver: Receiver,
        *,
        max_frames: int | None = None,
        duration_s: float | None = None,
        overlap: bool = False,
    ) -> None:
        """Prepare; `run` does it.

        Args:
            lines: at least one.
            receiver: of verdicts and events.
            max_frames: end after so many verdicts, all lines together.
            duration_s: end after so long.
            overlap: embed a frame while the one before it is scored. For embedders on a GPU: on the same
                processor both only take each other's cores (docs/architecture.md has the measurement).
        """
        self._lines = lines
        self._receiver = receiver
        self._max_frames = max_frames
        self._duration_s = duration_s
        self._overlap = overlap
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._feeds = [Feed(line.source, self._changed, self._stopping) for line in lines]
        self._turn = 0
        self._posted: deque[Event] = deque()
        self._dead: set[str] = set()
        self._alive = False
        self._last_dropped: dict[str, tuple[float, int]] = {}

    def stop(self) -> None:
        """End soon: what was taken from a source is still judged. May be called from a signal handler."""
        self._stopping.set()

    def post(self, event: Event) -> None:
        """Hand an event to the receiver, in its thread. May be called from any other."""
        with self._changed:
            self._posted.append(event)
            self._changed.notify_all()

    def run(self) -> int:
        """Do it; gives the number of verdicts.

        Raises:
            SourceError: none of the sources can be opened.
            Exception: what the embedder, a sink that is not allowed to fail, or a source raised.
        """
        done = 0
        for feed in self._feeds:
            feed.start()
        try:
            for job in self._jobs_ahead() if self._overlap else self._jobs():
                if isinstance(job, Event):
                    self._refuse_dead_start(job)
                    self._receiver.event(job)
                elif self._max_frames is None or done < self._max_frames:
                    self._judge(job)
                    done += 1
                    if done == self._max_frames:
                        self.stop()
        finally:
            self.stop()
            for feed in self._feeds:
                # After an error too: a thread inside a decoder while Python ends would abort the process.
                # A read that hangs in a driver is not waited for: its thread ends with it.
                feed.join(_JOIN_S)
        self._report_totals()
        return done

    def _jobs(self) -> Iterator[_Job | Event]:
        """What there is to do, one after the other, in the caller's thread."""
        deadline = time.monotonic() + self._duration_s if self._duration_s else None
        while True:
            if deadline is not None and time.monotonic() >= deadline:
                self.stop()
            if not self._overlap:
                self._receiver.idle()
            taken = self._take()
            if taken is _END:
                return
            if isinstance(taken, Event):
                yield taken
            elif taken is not None:
                yield self._prepared(*taken)

    def _jobs_ahead(self) -> Iterator[_Job | Event]:
        """The same, with one more thread that is a frame ahead."""
        jobs: queue.Queue[_Job | Event | BaseException | None] = queue.Queue(maxsize=1)

        def prepare() -> None:
            try:
                for job in self._jobs():
                    jobs.put(job)
            except BaseException as error:  # raised in the caller's thread
                jobs.put(error)
            finally:
                jobs.put(None)

        preparer = threading.Thread(target=prepare, name="prepare", daemon=True)
        preparer.start()
        try:
            while True:
                self._receiver.idle()
                try:
                    job = jobs.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if job is None:
                    return
                if isinstance(job, BaseException):
                    raise job
                yield job
        finally:
            self.stop()
            # It must not wait for a place in the queue for ever.
            while preparer.is_alive():
                with contextlib.suppress(queue.Empty):
                    jobs.get(timeout=0.05)

    def _take(self) -> "tuple[Line, Frame, int] | Event | _End | None":
        """The next event, or the next frame of the line whose turn it is; None when none came in a while."""
        with self._changed:
            for attempt in range(2):
                if self._posted:
                    return self._posted.popleft()
                for feed in self._feeds:
                    if feed.crash is not None:
                        raise feed.crash
                    event = feed.take_event()
                    if event is not None:
                        return event
                if self._stopping.is_set():
                    return _END
                for step in range(len(self._feeds)):
                    number = (self._turn + step) % len(self._feeds)
                    taken = self._feeds[number].take_frame()
                    if taken is not None:
                        self._turn = number + 1
                        return self._lines[number], *taken
                if all(feed.finished for feed in self._feeds):
                    return _END
                if attempt == 0:
                    self._changed.wait(_POLL_S)
        return None

    def _prepared(self, line: Line, frame: Frame, dropped: int) -> _Job:
        detector = line.detector
        if frame.image is None:
            return _Job(line, frame, dropped, detector, error=frame.error)
        image = line.view.turn(frame.image)
        try:
            inspected = line.view.cut(image)
        except SourceError as error:  # the frame is not as the view needs it
            return _Job(line, frame, dropped, detector, image, error=str(error))
        embedded = detector.embed(inspected) if self._overlap else None
        return _Job(line, frame, dropped, detector, image, inspected, embedded)

    def _judge(self, job: _Job) -> None:
        line = job.line
        embedded = job.embedded
        if embedded is None and job.inspected is not None:
            embedded = job.detector.embed(job.inspected)
        result = job.detector.score(embedded) if embedded is not None else None
        live = line.source.live
        age_ms = (time.perf_counter() - job.frame.ready) * 1e3 if live else None
        alarm = None
        if line.debounce is not None:
            alarm = line.debounce.update(result.is_anomalous if result else None)
        line.scored += result is not None
        line.errors += result is None
        line.dropped += job.dropped
        self._receiver.verdict(
            Verdict(
                frame=job.frame,
                image=job.image,
                view=line.view,
                result=result,
                error=job.error,
                detector=job.detector,
                dropped=job.dropped,
                age_ms=age_ms,
                alarm=alarm,
                line=self._lines.index(line),
            )
        )
        if job.dropped:
            self._tell_dropped(line, job.dropped)
        if line.drift is not None and result is not None:
            for event in line.drift.update(line.source.name, job.detector, result):
                self._receiver.event(event)

    def _refuse_dead_start(self, event: Event) -> None:
        """A run none of whose sources can be opened is a mistake of the start, not a fault to wait out.

        Raises:
            SourceError: so it is.
        """
        if event.name == "lost":
            self._dead.add(event.source)
        elif event.name == "connected":
            self._alive = True
        if not self._alive and self._dead >= {line.source.name for line in self._lines}:
            raise SourceError(str(event.detail["reason"]))

    def _tell_dropped(self, line: Line, dropped: int) -> None:
        """Collected, so that a slow device does not fill its log."""
        since, frames = self._last_dropped.get(line.source.name, (-_DROPPED_EVERY_S, 0))
        frames += dropped
        now = time.monotonic()
        if now - since >= _DROPPED_EVERY_S:
            self._receiver.event(Event("dropped", line.source.name, {"frames": frames}))
            since, frames = now, 0
        self._last_dropped[line.source.name] = since, frames

    def _report_totals(self) -> None:
        for line in self._lines:
            if line.source.live:
                left = self._last_dropped.get(line.source.name, (0.0, 0))[1]
                if left:
                    self._receiver.event(Event("dropped", line.source.name, {"frames": left}))
                totals = {"scored": line.scored, "errors": line.errors, "dropped": line.dropped}
                self._receiver.event(Event("stopped", line.source.name, totals))
