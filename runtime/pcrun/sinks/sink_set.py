"""All sinks of a run: each may fail on its own without stopping the line."""

import time
from collections.abc import Callable, Iterable, Sequence

from pcrun.errors import SinkError
from pcrun.pipeline.pipeline import Receiver, Verdict
from pcrun.sinks import Sink
from pcrun.sinks.record import VERDICTS, event_record, result_record
from pcrun.sinks.text import described
from pcrun.sources import RUN_ITSELF, Event

# Events that somebody at a terminal, or a service's log, should show as well.
_FOR_PEOPLE = (
    "lost", "reconnected", "failed", "reloaded", "reload_failed", "threshold_changed", "drift", "drift_ended",
)  # fmt: skip


class SinkSet(Receiver):
    """Hands each verdict and event to every sink.

    A sink that fails is reported once to all others, tried again with each record, and reported when it works
    again, with the number of records it lost.

    Attributes:
        counts: verdicts by name.
        alarms: verdicts with an alarm of smoothed verdicts.
        failed_sources: sources that ended by an error.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        strict: bool,
        say: Callable[[str], None],
        name_bundles: bool = False,
        on_idle: Sequence[Callable[[], Iterable[Event] | None]] = (),
    ) -> None:
        """Take over the sinks.

        Args:
            sinks: in the order in which they are called.
            strict: whether a failing sink ends the run, as for a batch of files that can be run again.
            say: tells a person what is wrong with a sink.
            name_bundles: whether records name the bundle.
            on_idle: called whenever the run gets round to it, some times a second; may tell of events.
        """
        self._sinks = list(sinks)
        self._strict = strict
        self._say = say
        self._name_bundles = name_bundles
        self._on_idle = on_idle
        # Of failing sinks, by number: what they had lost before.
        self._failing: dict[int, int] = {}
        # Of sources that are away, by name.
        self._lost_because: dict[str, object] = {}
        self.counts = dict.fromkeys(VERDICTS, 0)
        self.alarms = 0
        self.failed_sources = 0

    def verdict(self, verdict: Verdict) -> None:
        """See `Receiver.verdict`."""
        live = verdict.age_ms is not None
        record = result_record(
            verdict.frame,
            verdict.result,
            view=verdict.view,
            error=verdict.error,
            age_ms=verdict.age_ms,
            dropped=verdict.dropped if live else None,
            alarm=verdict.alarm,
            bundle=verdict.detector.manifest.name if self._name_bundles else None,
        )
        self.counts[record["verdict"]] += 1
        self.alarms += bool(verdict.alarm)
        self._hand(lambda sink: sink.verdict(verdict, record))

    def idle(self) -> None:
        """See `Receiver.idle`."""
        for work in self._on_idle:
            for event in work() or ():
                self.event(event)

    def event(self, event: Event) -> None:
        """See `Receiver.event`."""
        if self._repeats(event):
            return
        record = event_record(event, time.time())
        if event.name in _FOR_PEOPLE:
            whose = "" if event.source == RUN_ITSELF else f"{record['source']}: "
            self._say(f"{whose}{described(record)}")
        self.failed_sources += event.name == "failed"
        self._hand(lambda sink: sink.event(record))

    def _repeats(self, event: Event) -> bool:
        """Whether it is no news: a camera that is away is tried again and again, for days."""
        reason = event.detail.get("reason") if event.name == "lost" else None
        before, self._lost_because[event.source] = self._lost_because.get(event.source), reason
        return reason is not None and reason == before

    def close(self, *, quiet: bool = False) -> None:
        """Close all sinks; `quiet` after another error, which is the one to be told.

        Raises:
            SinkError: one of them lost something, and that is not allowed.
        """
        problems = []
        for sink in self._sinks:
            try:
                sink.close()
            except SinkError as error:
                problems.append(_named(error, sink))
        if quiet or not problems:
            return
        if self._strict:
            raise SinkError("; ".join(problems))
        for problem in problems:
            self._say(problem)

    def _hand(self, call: Callable[[Sink], None]) -> None:
        news: list[tuple[Sink, Event]] = []
        for number, sink in enumerate(self._sinks):
            before = sink.lost
            try:
                call(sink)
            except SinkError as error:
                if self._strict:
                    raise SinkError(_named(error, sink)) from error
                if number not in self._failing:
                    self._failing[number] = before
                    news.append((sink, Event("sink_failed", sink.name, {"reason": str(error)})))
                    self._say(_named(error, sink))
            else:
                if number in self._failing:
                    lost = sink.lost - self._failing.pop(number)
                    news.append((sink, Event("sink_recovered", sink.name, {"lost": lost})))
                    self._say(f"{sink.name} works again; {lost} records were lost")
        for sink, event in news:
            self._tell(event, skip=sink if event.name == "sink_failed" else None)

    def _tell(self, event: Event, *, skip: Sink | None) -> None:
        record = event_record(event, time.time())
        for number, sink in enumerate(self._sinks):
            if sink is skip or number in self._failing:
                continue
            try:
                sink.event(record)
            except SinkError:
                # Reported with the next record.
                continue


def _named(error: SinkError, sink: Sink) -> str:
    """What went wrong, and with which sink."""
    return str(error) if sink.name in str(error) else f"{sink.name}: {error}"
