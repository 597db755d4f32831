"""Thresholds changed while a line runs."""

from typing import Any

import pytest

from pcrun.bundle.manifest import ThresholdSpec
from pcrun.pipeline.thresholds import ThresholdChanges


class FakeDetector:
    def __init__(self) -> None:
        spec: Any = type("Spec", (), {})
        limits = {"threshold": make_spec(2.0), "pixel_threshold": make_spec(4.0)}
        scoring = type("Scoring", (), limits)
        self.manifest = type("Manifest", (spec,), {"scoring": scoring})
        self.threshold, self.pixel_threshold = 2.0, 4.0


def make_spec(value: float) -> ThresholdSpec:
    spec: Any = type("ThresholdSpec", (), {"value": value})
    return spec  # type: ignore[no-any-return]


def line(name: str, detector: FakeDetector) -> Any:
    source = type("Source", (), {"name": name})
    return type("Line", (), {"source": source, "detector": detector})


@pytest.fixture
def lines() -> list[Any]:
    shared = FakeDetector()
    return [line("left", shared), line("right", shared), line("top", FakeDetector())]


def test_nothing_changes_before_the_run_gets_round_to_it(lines: list[Any]) -> None:
    changes = ThresholdChanges(lines)
    changes.request(0, 3.0)
    assert lines[0].detector.threshold == 2.0
    changes.apply()
    assert lines[0].detector.threshold == 3.0


def test_the_pixel_threshold_moves_in_proportion_unless_it_was_given(lines: list[Any]) -> None:
    changes = ThresholdChanges(lines)
    changes.request(0, 3.0)
    changes.apply()
    assert lines[0].detector.pixel_threshold == 6.0
    fixed = ThresholdChanges(lines, pixel_threshold=1.5)
    fixed.request(0, 5.0)
    fixed.apply()
    assert lines[0].detector.pixel_threshold == 1.5


def test_every_line_of_the_same_bundle_has_an_event_and_no_other(lines: list[Any]) -> None:
    changes = ThresholdChanges(lines)
    changes.request(1, 3.0)
    events = changes.apply()
    assert [(event.name, event.source) for event in events] == [
        ("threshold_changed", "left"),
        ("threshold_changed", "right"),
    ]
    assert events[0].detail == {"threshold": 3.0, "pixel_threshold": 6.0, "before": 2.0}
    assert lines[2].detector.threshold == 2.0
    assert changes.apply() == []


def test_wishes_are_fulfilled_in_order(lines: list[Any]) -> None:
    changes = ThresholdChanges(lines)
    for value in (3.0, 5.0, 4.0):
        changes.request(2, value)
    assert [event.detail["before"] for event in changes.apply()] == [2.0, 3.0, 5.0]
    assert lines[2].detector.threshold == 4.0


@pytest.mark.parametrize(
    ("number", "value"), [(3, 1.0), (-1, 1.0), (0, float("nan")), (0, float("inf")), (0, 0.0), (0, -5.0)]
)
def test_what_cannot_be_is_refused_and_changes_nothing(lines: list[Any], number: int, value: float) -> None:
    changes = ThresholdChanges(lines)
    with pytest.raises(ValueError, match=r"line must be 0 to 2|finite"):
        changes.request(number, value)
    assert changes.apply() == []
