"""Drift: silent while scores are those of normal images, one event when they leave, one when they return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, ks_2samp

from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import BaselineSpec, SearchMeasurement, SearchSpec
from pcrun.detector import AnomalyDetector
from pcrun.errors import BundleError
from pcrun.pipeline.drift import P_VALUE, SHIFT, DriftWatch, ks_p_value
from pcrun.pipeline.pipeline import Line
from pcrun.records import RecordError, from_mapping
from pcrun.sources import Event, Frame
from tests.contract.damage import edit_manifest
from tests.contract.detectors import load
from tests.runtime.conftest import Run
from tests.runtime.pipeline.test_pipeline import DEFECT, NORMAL, Kept, Listed
from tests.runtime.pipeline.test_pipeline import run as run_lines

WINDOW = 50


class TestStatistic:
    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.floats(0, 10), min_size=1, max_size=40),
        st.lists(st.floats(0, 10), min_size=1, max_size=40),
    )
    def test_it_is_the_share_of_paths_counted_one_by_one(self, a: list[float], b: list[float]) -> None:
        """In whole numbers; ties included. SciPy's exact method gives up on some of these."""
        gap = max(abs(sum(x <= v for x in a) * len(b) - sum(x <= v for x in b) * len(a)) for v in [*a, *b])
        paths: dict[tuple[int, int], int] = {(-1, 0): 1}
        for i in range(len(a) + 1):
            for j in range(len(b) + 1):
                inside = abs(i * len(b) - j * len(a)) < gap
                paths[i, j] = (paths.get((i - 1, j), 0) + paths.get((i, j - 1), 0)) * inside
        expected = 1 - Fraction(paths[len(a), len(b)], comb(len(a) + len(b), len(a)))
        assert ks_p_value(np.array(a), np.array(b)) == pytest.approx(float(expected), rel=1e-9, abs=1e-13)

    @pytest.mark.parametrize("sizes", [(512, 200), (200, 512), (3, 200), (512, 500), (97, 89)])
    @pytest.mark.parametrize("shift", [0.0, 0.2, 0.6])
    def test_it_is_scipys_at_the_sizes_in_use(self, sizes: tuple[int, int], shift: float) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=sizes[0]), rng.normal(shift, size=sizes[1])
        expected = ks_2samp(a, b, method="exact").pvalue
        assert ks_p_value(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-13)

    def test_equal_samples_differ_for_certain_by_nothing(self) -> None:
        same = np.arange(30.0)
        assert ks_p_value(same, same) == 1.0

    @pytest.mark.parametrize("m, n", [(1, 1), (4, 7), (20, 20)])
    def test_samples_apart_have_the_two_orders_of_all(self, m: int, n: int) -> None:
        """All of one before all of the other: 2 of the (m + n choose m) orders."""
        got = ks_p_value(np.arange(m) + 100.0, np.arange(n) + 0.5)
        assert got == pytest.approx(min(1.0, 2 / comb(m + n, m)), rel=1e-3, abs=1e-15)


def stub(
    manifest: Any, *, exactness: str = "mask", ef: int | None = None, baseline: BaselineSpec | None
) -> Any:
    """What a watch asks a detector for."""
    scoring = dataclasses.replace(manifest.scoring, baseline=baseline)
    manifest = dataclasses.replace(manifest, scoring=scoring)
    return SimpleNamespace(manifest=manifest, exactness=exactness, settings=SimpleNamespace(ef=ef))


def baseline_of(
    scores: np.ndarray, patches: np.ndarray | None = None, method: str = "holdout"
) -> BaselineSpec:
    patches = scores if patches is None else patches
    return BaselineSpec(method, len(scores), tuple(np.sort(scores)), tuple(np.sort(patches)))


def result(image_score: float, patch: float | None = None) -> Any:
    patch_scores = np.full((2, 3), image_score if patch is None else patch, np.float32)
    return SimpleNamespace(image_score=image_score, patch_scores=patch_scores)


class Fed:
    """A watch that is fed with numbers, and its events."""

    def __init__(self, detector: Any, window: int = WINDOW) -> None:
        self.watch = DriftWatch(window)
        self.detector = detector
        self.events: list[Event] = []

    def feed(self, scores: Any, patches: Any = None) -> list[Event]:
        patches = scores if patches is None else patches
        new = []
        for score, patch in zip(scores, patches, strict=True):
            new += self.watch.update("line", self.detector, result(float(score), float(patch)))
        self.events += new
        return new


@pytest.fixture(scope="module")
def manifest() -> Any:
    from tests.data.make_tiny_bundle import SCHEMA3_FIXTURE

    return Bundle.load(SCHEMA3_FIXTURE).manifest


@pytest.fixture
def scores() -> Callable[..., np.ndarray]:
    """Endless normal scores, as many as asked for."""
    rng = np.random.default_rng(7)
    return lambda count, factor=1.0: rng.lognormal(0.5, 0.1, count) * factor


class TestWatch:
    def test_scores_like_the_baseline_say_nothing(self, manifest: Any, scores: Any) -> None:
        fed = Fed(stub(manifest, baseline=baseline_of(scores(300))))
        fed.feed(scores(20 * WINDOW))
        assert fed.events == []

    def test_one_event_when_it_begins_and_one_when_it_ends(self, manifest: Any, scores: Any) -> None:
        baseline = baseline_of(scores(300))
        fed = Fed(stub(manifest, baseline=baseline))
        fed.feed(scores(2 * WINDOW))
        begun = fed.feed(scores(5 * WINDOW, 1.2))
        assert [(e.name, e.detail["statistic"]) for e in begun] == [
            ("drift", "image_score"),
            ("drift", "patch_median"),
        ]
        detail = begun[0].detail
        assert begun[0].source == "line" and detail["window"] == WINDOW
        assert detail["p_value"] < P_VALUE
        assert detail["median"] / detail["baseline_median"] == pytest.approx(1.2, rel=0.05)
        assert detail["baseline_median"] == pytest.approx(np.median(baseline.image_scores), rel=1e-5)
        assert [e.name for e in fed.feed(scores(5 * WINDOW))] == ["drift_ended"] * 2

    def test_lower_scores_are_drift_too(self, manifest: Any, scores: Any) -> None:
        fed = Fed(stub(manifest, baseline=baseline_of(scores(300))))
        assert {e.name for e in fed.feed(scores(2 * WINDOW, 0.8))} == {"drift"}

    def test_one_window_alone_says_nothing_whatever_it_holds(self, manifest: Any, scores: Any) -> None:
        fed = Fed(stub(manifest, baseline=baseline_of(scores(300))))
        for _ in range(3):
            fed.feed(scores(WINDOW, 5))
            fed.feed(scores(WINDOW))
        assert fed.events == []
        begun = fed.feed(scores(2 * WINDOW, 5))
        fed.feed(scores(WINDOW))
        fed.feed(scores(WINDOW, 5))
        assert [e.name for e in begun] == ["drift"] * 2 and fed.events == begun

    @pytest.mark.parametrize("images, still_bias", [(14, 0.86), (60, 0.91), (300, 0.92)])
    def test_what_a_kfold_baseline_is_too_high_is_no_drift(
        self, manifest: Any, images: int, still_bias: float
    ) -> None:
        normal = np.linspace(0.999, 1.001, images)
        for method, factor, drifts in (
            ("kfold", still_bias + 0.01, False),
            ("kfold", still_bias - 0.02, True),
            ("kfold", 1.06, True),
            ("holdout", still_bias + 0.01, True),
        ):
            fed = Fed(stub(manifest, baseline=baseline_of(normal, method=method)))
            events = fed.feed(np.linspace(0.999, 1.001, 2 * WINDOW) * factor, np.ones(2 * WINDOW))
            assert bool(events) == drifts, (method, factor)

    def test_each_statistic_for_itself(self, manifest: Any, scores: Any) -> None:
        fed = Fed(stub(manifest, baseline=baseline_of(scores(300), scores(300))))
        events = fed.feed(scores(2 * WINDOW), scores(2 * WINDOW, 1.3))
        assert [e.detail["statistic"] for e in events] == ["patch_median"]

    def test_a_significant_but_small_shift_is_none(self, manifest: Any) -> None:
        rng = np.random.default_rng(0)
        normal = rng.normal(1, 0.005, 300)
        fed = Fed(stub(manifest, baseline=baseline_of(normal)))
        shifted = rng.normal(1 + 0.8 * SHIFT, 0.005, 2 * WINDOW)
        assert ks_p_value(normal, shifted) < 1e-15
        assert fed.feed(shifted) == []
        assert fed.feed(shifted * 1.02) != []

    def test_a_large_but_insignificant_shift_is_none(self, manifest: Any) -> None:
        few = np.array([0.5, 1.0, 1.5, 2.0, 2.5])
        fed = Fed(stub(manifest, baseline=baseline_of(few)), window=20)
        window = np.linspace(0.8, 3.2, 20)
        assert np.median(window) / np.median(few) - 1 > 4 * SHIFT
        assert fed.feed(window) == fed.feed(window) == []

    def test_a_shift_at_the_limit_does_not_flicker(self, manifest: Any) -> None:
        rng = np.random.default_rng(0)
        fed = Fed(stub(manifest, baseline=baseline_of(rng.normal(1, 0.005, 300), np.ones(300))))
        at_limit = rng.normal(1 + SHIFT, 0.005, 40 * WINDOW)
        assert [e.name for e in fed.feed(at_limit, np.ones(40 * WINDOW))] == ["drift"]

    def test_some_defects_are_no_drift_and_many_are(self, manifest: Any, scores: Any) -> None:
        fed = Fed(stub(manifest, baseline=baseline_of(scores(300))))
        window = scores(WINDOW)
        window[::10] *= 3
        assert fed.feed(window) == fed.feed(window) == []
        window[::2] *= 3
        assert {e.name for e in [*fed.feed(window), *fed.feed(window)]} == {"drift"}

    def test_an_unfinished_window_is_not_judged(self, manifest: Any, scores: Any) -> None:
        fed = Fed(stub(manifest, baseline=baseline_of(scores(300))))
        assert fed.feed(scores(2 * WINDOW - 1, 3)) == []
        assert len(fed.feed(scores(1, 3))) == 2

    def test_another_detector_begins_anew(self, manifest: Any, scores: Any) -> None:
        baseline = baseline_of(scores(300))
        fed = Fed(stub(manifest, baseline=baseline))
        fed.feed(scores(2 * WINDOW, 1.2))
        fed.feed(scores(WINDOW - 1, 1.2))
        fed.detector = stub(manifest, baseline=baseline)
        assert fed.feed(scores(2 * WINDOW - 1, 1.2)) == []
        assert [e.name for e in fed.feed(scores(1, 1.2))] == ["drift", "drift"]

    def test_a_detector_without_baseline_is_not_watched(self, manifest: Any, scores: Any) -> None:
        fed = Fed(stub(manifest, baseline=None))
        assert fed.feed(scores(3 * WINDOW, 9)) == []

    def test_unverified_image_scores_are_not_watched(self, manifest: Any, scores: Any) -> None:
        fed = Fed(stub(manifest, exactness="none", baseline=baseline_of(scores(300))))
        assert {e.detail["statistic"] for e in fed.feed(scores(2 * WINDOW, 1.5))} == {"patch_median"}

    @pytest.mark.parametrize(
        "measured, ef, error",
        [
            (((4, 0.06), (16, 0.03)), 4, 0.06),
            (((4, 0.06), (16, 0.03)), 16, 0.03),
            (((4, 0.06), (16, 0.03)), 9, 0.06),  # not measured: the nearest smaller one
            (((4, 0.06), (16, 0.03)), None, 0.03),  # the bundle's own
            ((), None, 0.02),
            (((4, None), (16, None)), 16, 0.02),  # schema 1
        ],
    )
    def test_the_error_of_the_search_is_allowed_to_patches_alone(
        self, manifest: Any, measured: Any, ef: int | None, error: float
    ) -> None:
        rows = tuple(SearchMeasurement(width, 0.9, 0.1, mean) for width, mean in measured)
        manifest = dataclasses.replace(manifest, search=SearchSpec(16, rows, 2, 3))
        normal = np.linspace(0.999, 1.001, 300)
        for excess, drifts in ((SHIFT + error - 0.005, False), (SHIFT + error + 0.005, True)):
            fed = Fed(stub(manifest, ef=ef, baseline=baseline_of(normal)))
            events = fed.feed(np.ones(2 * WINDOW), normal[: 2 * WINDOW] * (1 + excess))
            assert bool(events) == drifts
        image = Fed(stub(manifest, ef=ef, baseline=baseline_of(normal)))
        assert image.feed(normal[: 2 * WINDOW] * (1 + SHIFT + 0.005), np.ones(2 * WINDOW)) != []

    @pytest.mark.parametrize("window", [-1, 0, 19, 10_001])
    def test_a_window_out_of_range(self, window: int) -> None:
        with pytest.raises(ValueError, match="window must be 20 to 10000"):
            DriftWatch(window)


@pytest.mark.parametrize("images", [20, 100, 512])
def test_false_alarms_are_as_rare_as_the_p_value_says(images: int) -> None:
    """Baseline and window of one distribution: p-values below p come at most p of the time."""
    rng = np.random.default_rng(0)
    repeats = 400
    p_values = np.array([ks_p_value(rng.random(images), rng.random(100)) for _ in range(repeats)])
    for limit in (0.05, 0.2):
        found = int((p_values <= limit).sum())
        assert binom.ppf(0.001, repeats, limit * 0.5) <= found <= binom.ppf(0.999, repeats, limit)


def test_hundreds_of_windows_of_normal_scores_raise_nothing(manifest: Any, scores: Any) -> None:
    fed = Fed(stub(manifest, baseline=baseline_of(scores(512), scores(512))))
    fed.feed(scores(500 * WINDOW), scores(500 * WINDOW))
    assert fed.events == []


class TestPipeline:
    def watched(self, bundle: Path, items: Any, window: int = 20, **arguments: Any) -> Kept:
        line = Line(Listed(items), load(bundle, **arguments), drift=DriftWatch(window))
        return run_lines(line)

    def test_events_come_after_the_verdict_that_filled_the_window(self, tiny_bundle: Path) -> None:
        kept = self.watched(tiny_bundle, [DEFECT] * 100)
        assert {(e.name, e.detail["statistic"]) for e in kept.events} >= {("drift", "image_score")}
        assert kept.order.index("drift") == kept.order.index("frame 39") + 1

    def test_frames_without_a_verdict_do_not_count(self, tiny_bundle: Path) -> None:
        items: list[Any] = []
        for _ in range(39):
            items += [DEFECT, Frame("x", 0, None, "not an image", 0.1)]
        kept = self.watched(tiny_bundle, items)
        assert len(kept.verdicts) == 78 and kept.events == []
        assert {e.name for e in self.watched(tiny_bundle, [*items, DEFECT]).events} == {"drift"}

    def test_a_reloaded_bundle_begins_anew(self, tiny_bundle: Path) -> None:
        line = Line(Listed([DEFECT] * 150), load(tiny_bundle), drift=DriftWatch(20))
        other = load(tiny_bundle)

        class Exchanging(Kept):
            def verdict(self, verdict: Any) -> None:
                super().verdict(verdict)
                if len(self.verdicts) == 50:
                    line.detector = other

        from pcrun.pipeline.pipeline import Pipeline

        kept = Exchanging()
        Pipeline([line], kept).run()
        images = [e for e in kept.events if e.detail["statistic"] == "image_score"]
        assert [e.name for e in images] == ["drift", "drift"]
        # At frame 39, and 40 frames after the change, which comes after frame 49 or a frame on its way.
        later = [n for n, name in enumerate(kept.order) if name == "drift"][-1]
        assert kept.order.index("drift") == kept.order.index("frame 39") + 1
        assert kept.order.index("frame 88") < later <= kept.order.index("frame 91")

    def test_without_a_watch_nothing_is_said(self, tiny_bundle: Path) -> None:
        assert run_lines(Line(Listed([DEFECT] * 300), load(tiny_bundle))).events == []


class TestCommand:
    @pytest.fixture
    def many(self, tmp_path: Path) -> Path:
        import cv2

        folder = tmp_path / "many"
        folder.mkdir()
        for number in range(45):
            cv2.imwrite(str(folder / f"{number:02d}.png"), DEFECT)
        return folder

    def events(self, out: str) -> list[dict[str, Any]]:
        import json

        return [record for line in out.splitlines() if "event" in (record := json.loads(line))]

    def test_a_line_per_change_and_a_word_to_people(self, run: Run, tiny_bundle: Path, many: Path) -> None:
        options = ("--bundle", tiny_bundle, "--images", many, "--format", "jsonl", "--provider", "cpu")
        code, out, err = run(*options, "--drift-window", 20)
        assert code == 0
        event = self.events(out)[0]
        assert event["event"] == "drift" and event["statistic"] == "image_score" and event["window"] == 20
        assert f"{many}: drift (statistic image_score, p_value" in err
        assert self.events(run(*options, "--drift-window", 0)[1]) == []
        assert self.events(run(*options)[1]) == []  # 45 are fewer than 200

    def test_a_bundle_without_baseline_is_said_to_who_asked(
        self, run: Run, copied_bundle: Any, images: Path
    ) -> None:
        old = copied_bundle()
        edit_manifest(old, lambda m: m["scoring"].pop("baseline"))
        options = ("--bundle", old, "--images", images, "--provider", "cpu")
        assert "drift is not reported" in run(*options, "--drift-window", 50)[2]
        assert "drift" not in run(*options)[2] + run(*options, "--drift-window", 0)[2]

    @pytest.mark.parametrize("window", ["-1", "1", "19", "10001", "2.5", "many"])
    def test_a_window_that_is_none(self, run: Run, tiny_bundle: Path, images: Path, window: str) -> None:
        code, out, err = run("--bundle", tiny_bundle, "--images", images, "--drift-window", window)
        assert code == 2 and out == "" and "20 to 10000" in err


class TestSpec:
    @pytest.mark.parametrize(
        "changed, words",
        [
            ({"image_scores": []}, "must hold 1 to 512 numbers"),
            ({"patch_medians": [1.0] * 4}, "at most one an image"),
            ({"images": 9999, "image_scores": [1.0] * 513}, "must hold 1 to 512"),
            ({"image_scores": [2.0, 1.0]}, "must be ascending"),
            ({"patch_medians": [-0.5, 1.0]}, "not negative"),
            ({"patch_medians": [0.5, "1"]}, "expected a number"),
        ],
    )
    def test_what_is_no_baseline_is_refused(self, changed: dict[str, Any], words: str) -> None:
        sound = {"method": "kfold", "images": 3, "image_scores": [1, 2], "patch_medians": [0.5, 0.5]}
        assert from_mapping(BaselineSpec, sound, where="b").image_scores == (1.0, 2.0)
        with pytest.raises(RecordError, match=words):
            from_mapping(BaselineSpec, sound | changed, where="b")

    def test_a_bundle_with_a_bad_one_is_refused(self, tiny_bundle: Path) -> None:
        edit_manifest(tiny_bundle, lambda m: m["scoring"]["baseline"]["image_scores"].reverse())
        with pytest.raises(BundleError, match=r"scoring\.baseline.*ascending"):
            AnomalyDetector.load(tiny_bundle)


def test_the_tiny_bundle_has_a_baseline_of_its_normal_images(tiny_bundle: Path) -> None:
    scoring = Bundle.load(tiny_bundle).manifest.scoring
    assert scoring.baseline is not None and scoring.threshold is not None
    assert scoring.baseline.image_scores[-1] == scoring.threshold.value
    detector = load(tiny_bundle)
    lowest, highest = scoring.baseline.patch_medians[0], scoring.baseline.patch_medians[-1]
    assert lowest * 0.5 < float(np.median(detector(NORMAL).patch_scores)) < highest * 2
