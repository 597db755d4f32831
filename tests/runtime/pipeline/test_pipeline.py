"""Frames through the pipeline: all of a file, the newest of a camera, in order, each with its own verdict."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcrun.detector import AnomalyDetector
from pcrun.errors import SourceError
from pcrun.pipeline.debounce import Debounce
from pcrun.pipeline.pipeline import Line, Pipeline, Receiver, Verdict
from pcrun.sources import Event, Frame
from pcrun.sources.view import FrameView, Roi

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import smooth_image, with_defect  # noqa: E402

NORMAL = smooth_image(np.random.default_rng(3))
DEFECT = with_defect(NORMAL)


class Listed:
    """Gives items; a live one with a pause before each."""

    def __init__(
        self, items: Sequence[Any], *, live: bool = False, pause_s: float = 0.0, name: str = "listed"
    ):
        self.name, self.live = name, live
        self._items, self._pause_s = items, pause_s
        self.given = 0

    def items(self, stop: threading.Event) -> Iterator[Frame | Event]:
        index = 0
        for item in self._items:
            if stop.is_set():
                return
            time.sleep(self._pause_s)
            if isinstance(item, Event | Frame):
                yield item
                continue
            if isinstance(item, Exception):
                raise item
            now = time.time() if self.live else None
            yield Frame(self.name, index, item, None, 0.1, now, time.perf_counter())
            index += 1
            self.given = index


class Kept(Receiver):
    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self.events: list[Event] = []
        self.order: list[str] = []
        self.threads: set[int] = set()

    def verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self.order.append(f"frame {verdict.frame.index}")
        self.threads.add(threading.get_ident())

    def event(self, event: Event) -> None:
        self.events.append(event)
        self.order.append(event.name)
        self.threads.add(threading.get_ident())

    def indexes(self) -> list[int]:
        return [verdict.frame.index for verdict in self.verdicts]


@pytest.fixture
def detector(tiny_bundle: Path) -> AnomalyDetector:
    return AnomalyDetector.load(tiny_bundle, provider="cpu", threads=1)


class SlowDetector:
    """Takes its time for the second half of a verdict."""

    def __init__(self, detector: AnomalyDetector, score_s: float, embed_s: float = 0.0) -> None:
        self.manifest = detector.manifest
        self._detector, self._score_s, self._embed_s = detector, score_s, embed_s

    def embed(self, image: np.ndarray) -> Any:
        time.sleep(self._embed_s)
        return self._detector.embed(image)

    def score(self, embedded: Any) -> Any:
        time.sleep(self._score_s)
        return self._detector.score(embedded)


def run(*lines: Line, **options: Any) -> Kept:
    kept = Kept()
    Pipeline(lines, kept, **options).run()
    return kept


class TestFiles:
    def test_every_frame_in_order_with_its_own_verdict(self, detector: AnomalyDetector) -> None:
        images = [DEFECT if n % 3 == 0 else NORMAL for n in range(30)]
        kept = run(Line(Listed(images), detector))
        assert kept.indexes() == list(range(30))
        assert [v.result.is_anomalous for v in kept.verdicts if v.result] == [n % 3 == 0 for n in range(30)]
        expected = detector(DEFECT)
        assert kept.verdicts[0].result is not None
        assert kept.verdicts[0].result.image_score == expected.image_score
        assert np.array_equal(kept.verdicts[0].result.anomaly_map, expected.anomaly_map)

    def test_a_slow_detector_loses_nothing_of_a_file(self, detector: AnomalyDetector) -> None:
        slow: Any = SlowDetector(detector, 0.02)
        kept = run(Line(Listed([NORMAL] * 20), slow))
        assert kept.indexes() == list(range(20))
        assert all(v.dropped == 0 and v.age_ms is None for v in kept.verdicts)

    def test_stages_overlap(self, detector: AnomalyDetector) -> None:
        slow: Any = SlowDetector(detector, 0.05, 0.05)
        started = time.perf_counter()
        kept = run(Line(Listed([NORMAL] * 20), slow), overlap=True)
        # One after the other would take 2 s.
        assert time.perf_counter() - started < 1.7
        assert kept.indexes() == list(range(20))

    def test_an_unreadable_frame_has_no_verdict(self, detector: AnomalyDetector) -> None:
        broken = Frame("b.png", 1, None, "b.png: not an image", 0.1)
        kept = run(Line(Listed([NORMAL, broken, DEFECT]), detector))
        first, second, third = kept.verdicts
        assert first.result and third.result
        assert second.result is None and second.error == "b.png: not an image"

    def test_frames_at_most(self, detector: AnomalyDetector) -> None:
        kept = run(Line(Listed([NORMAL] * 50), detector), max_frames=7)
        assert kept.indexes() == list(range(7))

    def test_everything_arrives_in_the_callers_thread(self, detector: AnomalyDetector) -> None:
        kept = run(Line(Listed([Event("connected", "x"), NORMAL]), detector))
        assert kept.threads == {threading.get_ident()}
        assert kept.order == ["connected", "frame 0"]


class TestLive:
    def test_the_newest_frame_and_all_accounted_for(self, detector: AnomalyDetector) -> None:
        slow: Any = SlowDetector(detector, 0.03)
        source = Listed([NORMAL] * 100, live=True, pause_s=0.005)
        kept = run(Line(source, slow))
        dropped = sum(verdict.dropped for verdict in kept.verdicts)
        assert dropped > 20
        # The very last ones may have come when it was over.
        assert len(kept.verdicts) + dropped == kept.indexes()[-1] + 1 >= 98
        assert sum(e.detail["frames"] for e in kept.events if e.name == "dropped") == dropped
        (totals,) = [e.detail for e in kept.events if e.name == "stopped"]
        assert totals == {"scored": len(kept.verdicts), "errors": 0, "dropped": dropped}

    def test_staleness_is_bounded(self, detector: AnomalyDetector) -> None:
        slow: Any = SlowDetector(detector, 0.03)
        kept = run(Line(Listed([NORMAL] * 100, live=True, pause_s=0.005), slow))
        ages = [verdict.age_ms or 0.0 for verdict in kept.verdicts]
        # Its own score, and the 5 ms in which it was the newest. A queue of one would add 30 ms.
        assert min(ages) >= 30 and float(np.median(ages)) < 55

    def test_events_about_drops_are_few(self, detector: AnomalyDetector) -> None:
        slow: Any = SlowDetector(detector, 0.02)
        kept = run(Line(Listed([NORMAL] * 100, live=True, pause_s=0.005), slow))
        assert 1 <= sum(event.name == "dropped" for event in kept.events) <= 3

    def test_a_duration_ends_it(self, detector: AnomalyDetector) -> None:
        started = time.monotonic()
        run(Line(Listed([NORMAL] * 10_000, live=True, pause_s=0.01), detector), duration_s=0.4)
        assert 0.3 < time.monotonic() - started < 2

    def test_a_stop_from_another_thread_ends_it(self, detector: AnomalyDetector) -> None:
        kept = Kept()
        line = Line(Listed([NORMAL] * 10_000, live=True, pause_s=0.01), detector)
        pipeline = Pipeline([line], kept)
        threading.Timer(0.3, pipeline.stop).start()
        pipeline.run()
        assert kept.verdicts and kept.events[-1].name == "stopped"

    def test_no_source_at_all_at_the_start_is_an_error(self, detector: AnomalyDetector) -> None:
        dead = [Event("lost", name, {"reason": f"{name} is not there"}) for name in ("a", "b")]
        lines = [Line(Listed([event], live=True, name=event.source), detector) for event in dead]
        with pytest.raises(SourceError, match=r"[ab] is not there"):
            run(*lines)

    def test_one_source_that_lives_is_enough(self, detector: AnomalyDetector) -> None:
        dead = Listed([Event("lost", "dead", {"reason": "no"})], live=True, name="dead")
        alive = Listed([Event("connected", "alive"), NORMAL], live=True, name="alive", pause_s=0.1)
        alive_first = run(Line(alive, detector), Line(dead, detector))
        assert len(alive_first.verdicts) == 1


class TestSeveralSources:
    def test_each_has_its_own_verdicts_and_smoothing(self, detector: AnomalyDetector) -> None:
        lines = [
            Line(Listed([DEFECT] * 10, name="bad"), detector, debounce=Debounce(2, 3)),
            Line(Listed([NORMAL] * 10, name="good"), detector, debounce=Debounce(2, 3)),
        ]
        kept = run(*lines)
        for name, alarms in (("bad", [False] + [True] * 9), ("good", [False] * 10)):
            of_source = [v for v in kept.verdicts if v.frame.source == name]
            assert [v.frame.index for v in of_source] == list(range(10))
            assert [v.alarm for v in of_source] == alarms

    def test_a_fast_source_does_not_starve_a_slow_one(self, detector: AnomalyDetector) -> None:
        slow: Any = SlowDetector(detector, 0.01)
        fast = Line(Listed([NORMAL] * 300, live=True, pause_s=0.001, name="fast"), slow)
        slowly = Line(Listed([NORMAL] * 10, live=True, pause_s=0.03, name="slow"), slow)
        kept = run(fast, slowly)
        assert sum(v.frame.source == "slow" for v in kept.verdicts) >= 9

    def test_a_source_that_fails_leaves_the_others_alone(self, detector: AnomalyDetector) -> None:
        failing = Listed([NORMAL, SourceError("the folder is gone")], name="failing")
        kept = run(Line(failing, detector), Line(Listed([NORMAL] * 5), detector))
        assert [(e.name, e.source) for e in kept.events] == [("failed", "failing")]
        assert len(kept.verdicts) == 6

    def test_a_bug_in_a_source_is_not_swallowed(self, detector: AnomalyDetector) -> None:
        with pytest.raises(ZeroDivisionError):
            run(Line(Listed([NORMAL, ZeroDivisionError()]), detector))


class TestView:
    def test_regions_of_interest_are_scored_alone(self, detector: AnomalyDetector) -> None:
        big = np.full((100, 120, 3), 255, np.uint8)
        big[20 : 20 + DEFECT.shape[0], 30 : 30 + DEFECT.shape[1]] = DEFECT
        view = FrameView(0, Roi(30, 20, DEFECT.shape[1], DEFECT.shape[0]))
        (verdict,) = run(Line(Listed([big]), detector, view)).verdicts
        assert verdict.result is not None and verdict.image is not None
        assert verdict.result.image_score == detector(DEFECT).image_score
        assert verdict.image.shape == big.shape

    @pytest.mark.parametrize("degrees", [90, 180, 270])
    def test_turned_frames(self, detector: AnomalyDetector, degrees: int) -> None:
        turned = np.ascontiguousarray(np.rot90(DEFECT, degrees // 90))  # counter-clockwise
        (verdict,) = run(Line(Listed([turned]), detector, FrameView(degrees))).verdicts
        assert verdict.result is not None
        assert verdict.result.image_score == detector(DEFECT).image_score

    def test_a_frame_of_another_size_is_an_error_and_the_next_goes_on(
        self, detector: AnomalyDetector
    ) -> None:
        view = FrameView(0, Roi(40, 30, 8, 2))
        small = np.zeros((20, 30, 3), np.uint8)
        kept = run(Line(Listed([NORMAL, small, NORMAL]), detector, view))
        assert [v.result is None for v in kept.verdicts] == [False, True, False]
        assert "does not lie in the frame of 30x20 px" in str(kept.verdicts[1].error)

    def test_a_black_frame_has_a_verdict(self, detector: AnomalyDetector) -> None:
        (verdict,) = run(Line(Listed([np.zeros_like(NORMAL)]), detector)).verdicts
        assert verdict.result is not None and np.isfinite(verdict.result.image_score)


class TestExchange:
    def test_a_new_detector_takes_over_between_two_frames(self, detector: AnomalyDetector) -> None:
        other = AnomalyDetector.load(detector.bundle, provider="cpu", threads=1, threshold=1e9)  # type: ignore[arg-type]
        line = Line(Listed([DEFECT] * 200, live=False), detector)

        class Exchanging(Kept):
            def verdict(self, verdict: Verdict) -> None:
                super().verdict(verdict)
                if len(self.verdicts) == 20:
                    line.detector = other

        kept = Exchanging()
        Pipeline([line], kept).run()
        anomalous = [v.result.is_anomalous for v in kept.verdicts if v.result]
        assert len(anomalous) == 200
        # Those on their way keep the old one; afterwards there is no way back.
        changed = anomalous.index(False)
        assert 20 <= changed <= 24 and not any(anomalous[changed:])


def test_an_error_of_the_embedder_reaches_the_caller(detector: AnomalyDetector) -> None:
    class Broken(SlowDetector):
        def embed(self, image: np.ndarray) -> Any:
            raise RuntimeError("the GPU fell off")

    broken: Any = Broken(detector, 0)
    with pytest.raises(RuntimeError, match="fell off"):
        run(Line(Listed([NORMAL] * 5), broken))


def test_an_error_of_the_receiver_ends_all_threads(detector: AnomalyDetector) -> None:
    class Failing(Kept):
        def verdict(self, verdict: Verdict) -> None:
            raise ValueError("no")

    before = threading.active_count()
    with pytest.raises(ValueError, match="no"):
        Pipeline([Line(Listed([NORMAL] * 50), detector)], Failing()).run()
    deadline = time.monotonic() + 3
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before
