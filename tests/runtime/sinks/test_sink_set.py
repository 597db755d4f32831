"""Sinks fail on their own, and everybody hears of it once."""

from typing import Any

import numpy as np
import pytest

from pcrun.errors import SinkError
from pcrun.pipeline.pipeline import Verdict
from pcrun.sinks.sink_set import SinkSet
from pcrun.sources import Event, Frame
from pcrun.sources.view import FrameView
from tests.runtime.sinks.results import make_result


class FakeSink:
    def __init__(self, name: str) -> None:
        self.name, self.lost, self.broken, self.closed = name, 0, False, False
        self.records: list[dict[str, Any]] = []

    def verdict(self, verdict: Verdict, record: dict[str, Any]) -> None:
        self._take(record)

    def event(self, record: dict[str, Any]) -> None:
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        if self.broken:
            self.lost += 1
            raise SinkError(f"{self.name} is broken")
        self.records.append(record)

    def close(self) -> None:
        self.closed = True
        if self.broken:
            raise SinkError(f"{self.name} could not finish")

    def frames(self) -> list[int]:
        return [record["frame"] for record in self.records if "frame" in record]

    def events(self) -> list[tuple[str, str]]:
        return [(record["event"], record["source"]) for record in self.records if "event" in record]


def verdict(index: int, *, anomalous: bool = False, alarm: bool | None = None) -> Verdict:
    manifest: Any = type("Manifest", (), {"name": "bottle"})
    detector: Any = type("Detector", (), {"manifest": manifest})
    frame = Frame("camera:0", index, np.zeros((4, 4, 3), np.uint8), None, 0.1, 1.0, 1.0)
    return Verdict(
        frame, frame.image, FrameView(), make_result(anomalous=anomalous), None, detector, 0, 5.0, alarm
    )


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def sinks() -> tuple[FakeSink, FakeSink]:
    return FakeSink("file"), FakeSink("broker")


@pytest.fixture
def sink_set(sinks: tuple[FakeSink, FakeSink], said: list[str]) -> SinkSet:
    return SinkSet(sinks, strict=False, say=said.append)


def test_every_sink_gets_everything(sink_set: SinkSet, sinks: tuple[FakeSink, FakeSink]) -> None:
    sink_set.event(Event("connected", "camera:0", {"width": 4}))
    sink_set.verdict(verdict(0, anomalous=True))
    for sink in sinks:
        event, record = sink.records
        assert event["event"] == "connected" and event["width"] == 4
        assert record["verdict"] == "anomalous" and record["age_ms"] == 5.0


def test_one_that_fails_stops_nobody_and_is_reported_once(
    sink_set: SinkSet, sinks: tuple[FakeSink, FakeSink], said: list[str]
) -> None:
    file, broker = sinks
    broker.broken = True
    for index in range(5):
        sink_set.verdict(verdict(index))
    assert file.frames() == [0, 1, 2, 3, 4] and file.events() == [("sink_failed", "broker")]
    broker.broken = False
    sink_set.verdict(verdict(5))
    assert broker.frames() == [5] and ("sink_recovered", "broker") in broker.events()
    assert file.events()[-1] == ("sink_recovered", "broker")
    assert next(r for r in file.records if r.get("event") == "sink_recovered")["lost"] == 5
    assert len(said) == 2 and "broker is broken" in said[0] and "5 records were lost" in said[1]


def test_all_failing_at_once_is_no_endless_loop(
    sink_set: SinkSet, sinks: tuple[FakeSink, FakeSink], said: list[str]
) -> None:
    for sink in sinks:
        sink.broken = True
    for index in range(3):
        sink_set.verdict(verdict(index))
    assert len(said) == 2


def test_strict_ends_the_run(sinks: tuple[FakeSink, FakeSink], said: list[str]) -> None:
    sinks[1].broken = True
    with pytest.raises(SinkError, match="broker is broken"):
        SinkSet(sinks, strict=True, say=said.append).verdict(verdict(0))


def test_a_camera_that_stays_away_is_said_once(
    sink_set: SinkSet, sinks: tuple[FakeSink, FakeSink], said: list[str]
) -> None:
    away = Event("lost", "camera:0", {"reason": "no answer", "retry_in_s": 10.0})
    for event in (away, away, away, Event("lost", "camera:1", {"reason": "no answer"})):
        sink_set.event(event)
    assert [line.partition(" (")[0] for line in said] == ["camera:0: lost", "camera:1: lost"]
    assert [record["source"] for record in sinks[0].records] == ["camera:0", "camera:1"]
    sink_set.event(Event("lost", "camera:0", {"reason": "wrong password"}))
    sink_set.event(Event("reconnected", "camera:0", {}))
    sink_set.event(away)
    assert [line.partition(" (")[0] for line in said[2:]] == [
        "camera:0: lost", "camera:0: reconnected", "camera:0: lost",
    ]  # fmt: skip


def test_what_happens_to_the_run_is_said_in_words(sink_set: SinkSet, said: list[str]) -> None:
    sink_set.event(Event("reloaded", "pcrun", {"bundles": ["a", "b"], "digests": ["12", "34"]}))
    assert said == ["reloaded (bundles a, b, digests 12, 34)"]


def test_a_batch_that_lost_something_is_told_once(sinks: tuple[FakeSink, FakeSink], said: list[str]) -> None:
    for sink in sinks:
        sink.broken = True
    with pytest.raises(SinkError) as error:
        SinkSet(sinks, strict=True, say=said.append).close()
    assert said == [] and len(str(error.value).split("; ")) == len(sinks)


def test_all_are_closed_even_when_one_cannot_finish(
    sink_set: SinkSet, sinks: tuple[FakeSink, FakeSink], said: list[str]
) -> None:
    sinks[0].broken = True
    sink_set.close()
    assert sinks[0].closed and sinks[1].closed and "could not finish" in said[0]


def test_counts(sink_set: SinkSet) -> None:
    for index in range(6):
        sink_set.verdict(verdict(index, anomalous=index % 2 == 0, alarm=index > 3))
    sink_set.event(Event("failed", "watch:x", {"reason": "gone"}))
    assert sink_set.counts == {"normal": 3, "anomalous": 3, "error": 0}
    assert (sink_set.alarms, sink_set.failed_sources) == (2, 1)


@pytest.mark.parametrize("name, heard", [("lost", True), ("reconnected", True), ("dropped", False)])
def test_people_hear_of_what_they_should_look_at(
    sink_set: SinkSet, said: list[str], name: str, heard: bool
) -> None:
    sink_set.event(Event(name, "camera:0", {"reason": "the cable"}))
    assert bool(said) == heard


def test_bundles_are_named_where_there_are_several(sinks: tuple[FakeSink, FakeSink]) -> None:
    SinkSet(sinks, strict=False, say=print, name_bundles=True).verdict(verdict(0))
    SinkSet(sinks, strict=False, say=print).verdict(verdict(1))
    assert [record.get("bundle") for record in sinks[0].records] == ["bottle", None]
