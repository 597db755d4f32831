"""Thresholds from normal images alone: what is promised of the false-alarm rate is what happens."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from pcexport.calibration.false_alarm_rate import (
    HOLDOUT_MIN_IMAGES,
    CalibrationPlan,
    choose_threshold,
    images_needed,
    plan_calibration,
    shortage_warning,
)
from pcexport.calibration.thresholds import thinned
from pcexport.config import BuildConfig
from pcexport.errors import BuildError

RATES = st.floats(1e-4, 0.9)


def plan(images: int, **changed: object) -> CalibrationPlan:
    return plan_calibration(images, BuildConfig(**changed))


@given(n=st.integers(1, 2000), rate=RATES)
def test_the_threshold_is_the_lowest_score_that_keeps_the_expected_rate(n: int, rate: float) -> None:
    got = choose_threshold(list(range(n)), rate=rate, method="holdout")
    expected = (n + 1 - got.rank) / (n + 1)
    assert got.value == got.rank - 1  # the rank-th smallest of 0, 1, 2 ...
    assert got.false_alarm_rate_expected == pytest.approx(expected)
    if n >= images_needed(rate)[0]:
        assert expected <= rate + 1e-9
        if got.rank > 1:
            assert (n + 2 - got.rank) / (n + 1) > rate - 1e-9  # one rank lower would break it
    else:
        assert got.rank == n


@settings(max_examples=50)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), RATES)
def test_the_order_of_the_scores_does_not_matter(scores: list[float], rate: float) -> None:
    got = choose_threshold(scores, rate=rate, method="kfold")
    assert got == choose_threshold(sorted(scores, reverse=True), rate=rate, method="kfold")
    assert got.value == sorted(scores)[got.rank - 1]
    assert (got.method, got.images, got.false_alarm_rate_requested) == ("kfold", len(scores), rate)


@pytest.mark.parametrize("n, rate", [(20, 0.1), (99, 0.01), (150, 0.02), (500, 0.01), (50, 0.001)])
def test_over_many_splits_the_rate_is_as_expected_and_the_bound_holds_in_95_of_100(
    n: int, rate: float
) -> None:
    rng = np.random.default_rng(0)
    # Scores of normal images are drawn uniformly: then the true rate above a threshold t is 1 - t.
    picks = [choose_threshold(rng.random(n).tolist(), rate=rate, method="holdout") for _ in range(2500)]
    true_rates = np.array([1 - pick.value for pick in picks])
    expected, upper = picks[0].false_alarm_rate_expected, picks[0].false_alarm_rate_upper_95
    standard_error = true_rates.std() / math.sqrt(len(picks))
    assert true_rates.mean() == pytest.approx(expected, abs=4 * standard_error)
    # Not below, or it would be no bound; not far above, or it would say too little.
    assert 0.93 <= np.mean(true_rates <= upper) <= 0.97


def test_splits_of_real_scores_alarm_at_the_expected_rate() -> None:
    """Calibrate on some of a fixed set of tied, skewed scores and count the alarms on the rest."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.lognormal(size=600), 2)
    alarms, expected = [], []
    for _ in range(1500):
        shuffled = rng.permutation(scores)
        pick = choose_threshold(shuffled[:200].tolist(), rate=0.05, method="holdout")
        alarms.append(np.mean(shuffled[200:] > pick.value))
        expected.append(pick.false_alarm_rate_expected)
    # Ties make a strict ">" rarer, never more frequent.
    assert 0.8 * np.mean(expected) < np.mean(alarms) <= np.mean(expected) * 1.02


def promise_kept(scores: np.ndarray, *, rate: float, splits: int = 300) -> tuple[float, float, float, float]:
    """Calibrate on 100 of a fixed set of scores and count the alarms on the others, many times.

    Returns:
        The rate observed and the rate expected, on average; the share of splits whose alarms are not above
        what the 95 % bound allows; the share that would be allowed were the expected rate the bound. Alarms
        of the others are a draw from the true rate, so "not above" is a binomial test at 5 %.
    """
    rng = np.random.default_rng(0)
    observed, expected, within, within_expected = [], [], [], []
    for _ in range(splits):
        shuffled = rng.permutation(scores)
        pick = choose_threshold(shuffled[:100].tolist(), rate=rate, method="holdout")
        others = shuffled[100:]
        alarms = int((others > pick.value).sum())
        observed.append(alarms / len(others))
        expected.append(pick.false_alarm_rate_expected)
        within.append(alarms <= binom.ppf(0.95, len(others), pick.false_alarm_rate_upper_95))
        within_expected.append(alarms <= binom.ppf(0.95, len(others), pick.false_alarm_rate_expected))
    means = (float(np.mean(values)) for values in (observed, expected, within, within_expected))
    return next(means), next(means), next(means), next(means)


@pytest.mark.parametrize("shape", ["normal", "skewed", "two kinds of parts"])
def test_a_promised_five_percent_is_kept_over_many_splits(shape: str) -> None:
    rng = np.random.default_rng(1)
    scores = {
        "normal": rng.normal(1.7, 0.1, 1000),
        "skewed": rng.lognormal(0.5, 0.4, 1000),
        "two kinds of parts": np.concatenate([rng.normal(1.4, 0.05, 800), rng.normal(2.0, 0.2, 200)]),
    }[shape]
    observed, expected, within, within_expected = promise_kept(scores, rate=0.05)
    assert expected <= 0.05
    assert observed == pytest.approx(expected, rel=0.05)
    assert within >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 300)
    # The bound is needed: the expected rate would be exceeded far more often than one time in twenty.
    assert within_expected < 0.85


@pytest.mark.parametrize("n, rank", [(1, 1), (14, 14), (299, 296), (1000, 990), (40, 20)])
def test_the_bound_is_the_exact_binomial_one(n: int, rank: int) -> None:
    rate = (n + 1 - rank) / (n + 1)
    got = choose_threshold(list(range(n)), rate=rate, method="holdout")
    assert got.rank == rank
    # At the bound p, n+1-rank or more of n scores exceed the (1-p)-quantile with probability 95 %.
    assert binom.sf(n - rank, n, got.false_alarm_rate_upper_95) == pytest.approx(0.95, abs=1e-6)


def test_too_few_images_take_the_largest_score_and_say_what_that_supports() -> None:
    got = choose_threshold([3.0, 1.0, 2.0], rate=0.01, method="kfold")
    assert (got.value, got.rank, got.false_alarm_rate_expected) == (3.0, 3, 0.25)
    assert got.false_alarm_rate_upper_95 == pytest.approx(1 - 0.05 ** (1 / 3))


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001])
def test_images_needed_by_direct_computation(rate: float) -> None:
    expected, bound = images_needed(rate)
    # A new score exceeds the largest of n with probability 1 / (n + 1).
    assert expected == next(n for n in range(1, 10_000) if 1 / (n + 1) <= rate + 1e-12)
    # None of n scores lies in the top `rate`: then the largest score would have a higher rate than asked for.
    assert bound == next(n for n in range(1, 10_000) if binom.pmf(0, n, rate) <= 0.05)


def test_images_needed_for_one_percent_are_the_known_99_and_299() -> None:
    assert images_needed(0.01) == (99, 299)


@given(rate=st.floats(0.001, 0.9))
@settings(max_examples=60)
def test_images_needed_is_enough_and_one_less_is_not(rate: float) -> None:
    expected, bound = images_needed(rate)
    assert choose_threshold([0.0] * expected, rate=rate, method="x").false_alarm_rate_expected <= rate + 1e-9
    assert choose_threshold([0.0] * bound, rate=1e-9, method="x").false_alarm_rate_upper_95 <= rate + 1e-9
    if bound > 1:
        fewer = choose_threshold([0.0] * (bound - 1), rate=1e-9, method="x")
        assert fewer.false_alarm_rate_upper_95 > rate - 1e-9


@pytest.mark.parametrize(
    "n, message",
    [
        (98, "98 normal images cannot support"),
        (99, "only .* is certain at 95 ?%"),
        (298, "299 images"),
        (299, None),
    ],
)
def test_the_shortage_warning_changes_where_the_numbers_change(n: int, message: str | None) -> None:
    got = shortage_warning(choose_threshold([0.0] * n, rate=0.01, method="holdout"))
    if message is None:
        assert got is None
    else:
        assert got is not None and re.search(message, got)


@pytest.mark.parametrize("images", [2, 3, 4, 5, 14, 99, 1001])
def test_folds_are_disjoint_and_cover_every_image(images: int) -> None:
    got = plan(images, calibration="kfold", folds=5)
    assert got.method == "kfold" and len(got.folds) == min(5, images)
    assert sorted(np.concatenate(got.folds)) == list(range(images))  # once each
    assert max(map(len, got.folds)) - min(map(len, got.folds)) <= 1
    np.testing.assert_array_equal(got.bank, np.arange(images))
    assert got.held_out == 0


@pytest.mark.parametrize("images", [2, 3, 10, 1001])
@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.999])
def test_held_out_images_are_not_in_the_bank_and_both_have_some(images: int, fraction: float) -> None:
    got = plan(images, calibration="holdout", holdout_fraction=fraction)
    (held,) = got.folds
    assert sorted([*got.bank, *held]) == list(range(images))
    assert len(held) >= 1 and len(got.bank) >= 1
    assert got.held_out == len(held) == max(1, min(images - 1, round(images * fraction)))


@pytest.mark.parametrize("method", ["kfold", "holdout"])
def test_ids_ascend_as_row_files_need_them(method: str) -> None:
    got = plan(50, calibration=method)
    for ids in (got.bank, *got.folds):
        assert (np.diff(ids) > 0).all() and ids.dtype == np.int64


@pytest.mark.parametrize("method", ["kfold", "holdout"])
def test_a_plan_is_reproducible_and_follows_the_seed(method: str) -> None:
    first, same, other = (plan(60, calibration=method, seed=seed).folds[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert first.tolist() != other.tolist()
    assert first.tolist() != list(range(len(first)))  # shuffled: images of a folder come in order of time


def test_auto_holds_out_only_where_there_are_many_images() -> None:
    assert plan(HOLDOUT_MIN_IMAGES - 1).method == "kfold"
    assert plan(HOLDOUT_MIN_IMAGES).method == "holdout"


def test_none_uses_every_image_for_the_bank() -> None:
    got = plan(5, calibration="none")
    assert (got.method, got.bank.tolist(), got.folds, got.held_out) == ("none", [0, 1, 2, 3, 4], (), 0)
    assert plan(1, calibration="none").bank.tolist() == [0]


@pytest.mark.parametrize("method", ["auto", "kfold", "holdout"])
def test_one_image_cannot_give_a_threshold(method: str) -> None:
    with pytest.raises(BuildError, match="1 normal image cannot give a threshold: at least 2"):
        plan(1, calibration=method)


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 1000, 5000])
def test_a_baseline_keeps_the_distribution_in_512_numbers(n: int) -> None:
    scores = np.random.default_rng(0).lognormal(size=n).tolist()
    kept = np.array(thinned(scores))
    assert len(kept) == min(n, 512) and (np.diff(kept) >= 0).all()
    ordered = np.sort(scores)
    if n <= 512:
        assert kept == pytest.approx(ordered, rel=1e-6)
        return
    # The share of scores up to each kept one is right to half a step of either.
    shares = np.searchsorted(ordered, kept * (1 + 1e-6), side="right") / n
    assert np.abs(shares - (np.arange(512) + 0.5) / 512).max() <= 0.5 / 512 + 1 / n
