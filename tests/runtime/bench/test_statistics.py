"""Summaries against numpy, and bounds of percentiles that hold as often as they say."""

import numpy as np
import pytest

from pcrun.bench.statistics import drift, queries_needed, summarise, upper_bound


def test_figures_are_numpys() -> None:
    samples = np.random.default_rng(0).gamma(3, 4, 1001)
    summary = summarise(samples.tolist())
    assert summary.count == 1001
    expected = np.percentile(samples, (50, 90, 95, 99))
    assert (summary.median, summary.p90, summary.p95, summary.p99) == pytest.approx(expected)
    assert (summary.min, summary.max) == (samples.min(), samples.max())
    assert summary.mean == pytest.approx(samples.mean()) and summary.std == pytest.approx(samples.std(ddof=1))
    assert summary.variation == pytest.approx(summary.std / summary.mean)


def test_outliers_stay() -> None:
    assert summarise([1.0] * 99 + [5000.0]).max == 5000


def test_a_single_latency_has_no_spread() -> None:
    assert summarise([3.0]).std == 0


@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_the_needed_queries_are_the_fewest_that_bound_it(percentile: int) -> None:
    needed = queries_needed(percentile)
    samples = list(np.random.default_rng(1).random(needed))
    assert upper_bound(samples, percentile) == max(samples) or percentile == 50
    assert upper_bound(samples[1:], percentile) is None


@pytest.mark.parametrize("percentile", [90, 99])
def test_the_bound_holds_as_often_as_it_says(percentile: int) -> None:
    rng = np.random.default_rng(2)
    truth = -np.log(1 - percentile / 100)
    held = sum(
        bound is not None and bound >= truth
        for bound in (upper_bound(list(rng.exponential(size=600)), percentile) for _ in range(400))
    )
    # 95 %, less four standard deviations of 400 trials.
    assert held >= 400 * 0.95 - 4 * np.sqrt(400 * 0.95 * 0.05)


def test_a_machine_that_grows_slower_is_noticed() -> None:
    rng = np.random.default_rng(3)
    steady = 10 + rng.normal(0, 0.5, 300)
    assert drift(list(steady)) is None
    change = drift(list(steady * np.linspace(1, 1.4, 300)))
    assert change is not None and 0.2 < change < 0.35
