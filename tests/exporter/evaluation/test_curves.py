"""Ranking metrics against scikit-learn, and AUPRO against a slow implementation of its own definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score

from pcexport.evaluation import curves


def counted(
    scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positives and negatives per distinct score."""
    weights = np.ones(len(scores)) if weights is None else weights
    distinct, which = np.unique(scores, return_inverse=True)
    positives = np.bincount(which, weights * truth, len(distinct))
    negatives = np.bincount(which, weights * ~truth, len(distinct))
    return positives, negatives, distinct


labelled = st.lists(
    st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 3)), min_size=2, max_size=60
).filter(lambda rows: {truth for _, truth, weight in rows if weight} == {True, False})


@settings(max_examples=200, deadline=None)
@given(labelled)
def test_they_equal_scikit_learns_with_ties_and_weights(rows: list[tuple[int, bool, int]]) -> None:
    scores, truth, weights = (np.array(column) for column in zip(*rows, strict=True))
    positives, negatives, _ = counted(scores, truth, weights)
    weighted = {"sample_weight": weights}
    assert curves.auroc(positives, negatives) == pytest.approx(roc_auc_score(truth, scores, **weighted))
    expected = average_precision_score(truth, scores, **weighted)
    assert curves.average_precision(positives, negatives) == pytest.approx(expected)
    precision, recall, _ = precision_recall_curve(truth, scores, **weighted)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert curves.best_f1(positives, negatives)[0] == pytest.approx(f1.max())


def test_the_best_threshold_has_the_f1_score_that_is_said() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(200) < 0.4
    scores = np.round(rng.normal(size=200) + truth, 1)
    positives, negatives, distinct = counted(scores, truth)
    f1, where = curves.best_f1(positives, negatives)
    assert f1_score(truth, scores >= distinct[where]) == pytest.approx(float(f1))


def test_resamples_are_rows() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(50) % 2 == 0
    scores = rng.normal(size=50)
    weights = rng.integers(0, 3, size=(7, 50)).astype(float)
    rows = [counted(scores, truth, row) for row in weights]
    together = [np.stack(parts) for parts in zip(*((p, n) for p, n, _ in rows), strict=True)]
    one_by_one = [float(curves.auroc(p, n)) for p, n, _ in rows]
    np.testing.assert_allclose(curves.auroc(*together), one_by_one)


def test_what_is_not_defined_is_nan() -> None:
    none, some = np.zeros(4), np.ones(4)
    assert np.isnan(curves.auroc(none, some)) and np.isnan(curves.auroc(some, none))
    assert np.isnan(curves.average_precision(none, some))
    assert np.isnan(curves.best_f1(none, some)[0])
    assert np.isnan(curves.aupro(none, np.array(0.0), some, 0.3))


def slow_aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """The definition: every score as a threshold, every region looked at by itself."""
    from scipy.ndimage import label

    labels = [label(mask, np.ones((3, 3)))[0] for mask in masks]
    points = [(0.0, 0.0)]
    outside = sum(int((~mask).sum()) for mask in masks)
    for threshold in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        shares = []
        for heat, regions in zip(maps, labels, strict=True):
            shares += [float((heat[regions == n] >= threshold).mean()) for n in range(1, regions.max() + 1)]
        false = sum(int(((h >= threshold) & ~m).sum()) for h, m in zip(maps, masks, strict=True))
        points.append((false / outside, float(np.mean(shares))))
    rates, overlaps = np.array(points).T
    grid = np.union1d(rates[rates < limit], [limit])
    # At a rate that several thresholds have, the curve is at the last of them, and comes from the first.
    area = 0.0
    for left, right in itertools.pairwise(grid):
        start = overlaps[rates <= left].max()
        following = rates > left
        end_rate, end = rates[following][0], overlaps[following][0]
        share = (right - left) / (end_rate - left)
        area += (right - left) * (start + start + (end - start) * share) / 2
    return area / limit


@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_aupro_equals_its_definition(seed: int, limit: float) -> None:
    from pcexport.evaluation.pixels import PixelTable, count_pixels

    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for number in range(6):
        mask = np.zeros((24, 30), bool)
        for _ in range(number % 3):
            y, x = rng.integers(0, 18, 2)
            mask[y : y + rng.integers(2, 6), x : x + rng.integers(2, 6)] = True
        heat = rng.gamma(2.0, size=mask.shape).astype(np.float32) + mask * rng.gamma(2.0)
        maps.append(heat.astype(np.float32))
        masks.append(mask)
    table = PixelTable.of([count_pixels(h, m, 1.0) for h, m in zip(maps, masks, strict=True)])
    value = curves.aupro(table.overlaps.sum(0), table.regions.sum(), table.normal.sum(0), limit)
    assert value == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-3)
