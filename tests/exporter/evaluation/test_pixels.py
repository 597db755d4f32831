"""Pixels counted in bins: order kept, nothing lost, bounded memory."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.metrics import roc_auc_score

from pcexport.evaluation import curves
from pcexport.evaluation.pixels import PixelTable, bins_of, count_pixels


def test_bins_keep_the_order_at_any_scale() -> None:
    scores = np.sort(np.random.default_rng(0).lognormal(sigma=20, size=10_000)).astype(np.float32)
    bins = bins_of(scores)
    assert (np.diff(bins) >= 0).all()
    assert len(np.unique(bins)) > 5_000


def test_values_in_one_bin_differ_by_a_fifth_of_a_percent_at_most() -> None:
    scores = np.linspace(1, 4, 100_000).astype(np.float32)
    bins = bins_of(scores)
    widths = [np.ptp(scores[bins == number]) / scores[bins == number][0] for number in np.unique(bins)]
    assert max(widths) < 0.002


def test_every_pixel_is_counted_once() -> None:
    rng = np.random.default_rng(1)
    heat = rng.gamma(2, size=(40, 50)).astype(np.float32)
    mask = rng.random((40, 50)) < 0.2
    counts = count_pixels(heat, mask, 2.0)
    assert counts.normal.sum() == (~mask).sum() and counts.defective.sum() == mask.sum()
    assert counts.overlaps.sum() == pytest.approx(counts.regions)
    assert counts.true == ((heat > 2) & mask).sum()
    assert counts.false == ((heat > 2) & ~mask).sum()
    assert counts.missed == ((heat <= 2) & mask).sum()


def test_corners_connect_a_region() -> None:
    mask = np.eye(8, dtype=bool)
    mask[0, 7] = True
    assert count_pixels(np.ones((8, 8), np.float32), mask, 2.0).regions == 2


def test_what_nobody_looked_at_has_the_lowest_score() -> None:
    heat = np.full((4, 4), np.nan, np.float32)
    heat[0, 0] = 3
    counts = count_pixels(heat, np.ones((4, 4), bool), 1.0)
    assert counts.first_bin == 0 and counts.defective[0] == 15 and counts.missed == 15


def test_pixel_auroc_equals_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    maps, masks = [], []
    for _ in range(8):
        mask = rng.random((30, 30)) < 0.1
        maps.append((rng.gamma(3, size=mask.shape) + 2 * mask).astype(np.float32))
        masks.append(mask)
    table = PixelTable.of([count_pixels(h, m, 1.0) for h, m in zip(maps, masks, strict=True)])
    value = curves.auroc(table.defective.sum(0), table.normal.sum(0))
    expected = roc_auc_score(np.concatenate(masks, None), np.concatenate(maps, None))
    assert value == pytest.approx(expected, abs=1e-4)


def test_memory_does_not_depend_on_the_size_of_the_map() -> None:
    rng = np.random.default_rng(3)
    counts = count_pixels(
        rng.uniform(0.5, 4, (1024, 1024)).astype(np.float32), np.zeros((1024, 1024), bool), 2
    )
    assert counts.normal.nbytes + counts.defective.nbytes + counts.overlaps.nbytes < 40_000
