"""Ranking metrics from counts per score: one piece of code for images and pixels, points and resamples.

A set of scores is given as the distinct scores in rising order and, for each of them, how many positives
(defective images or pixels) and negatives have it. Resamples are further rows of such counts over the same
scores, so a thousand of them take one matrix product.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.float64]


def auroc(positives: Counts, negatives: Counts) -> Counts:
    """Area under the ROC curve; ties count half.

    Args:
        positives, negatives: (..., scores) counts, scores rising.

    Returns:
        (...) in 0 .. 1; NaN where one of the two is empty.
    """
    below = np.cumsum(negatives, axis=-1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=-1)
    pairs = positives.sum(axis=-1) * negatives.sum(axis=-1)
    return _ratio(wins, pairs)


def average_precision(positives: Counts, negatives: Counts) -> Counts:
    """Area under the precision-recall curve as a sum over its steps, as scikit-learn has it.

    Args:
        positives, negatives: (..., scores) counts, scores rising.

    Returns:
        (...) in 0 .. 1; NaN without positives.
    """
    true, false = _at_or_above(positives), _at_or_above(negatives)
    precision = _ratio(true, true + false, empty=1.0)
    return _ratio((precision * positives).sum(axis=-1), positives.sum(axis=-1))


def best_f1(positives: Counts, negatives: Counts) -> tuple[Counts, npt.NDArray[np.int64]]:
    """Largest F1 score over all thresholds, and which score it is: those from it on are called positive.

    Args:
        positives, negatives: (..., scores) counts, scores rising.

    Returns:
        (...) in 0 .. 1, NaN without positives; (...) position among the scores.
    """
    true, false = _at_or_above(positives), _at_or_above(negatives)
    total = positives.sum(axis=-1, keepdims=True)
    # 2 TP / (2 TP + FP + FN), and TP + FN is all of them.
    f1 = _ratio(2 * true, true + false + total)
    where = np.argmax(np.nan_to_num(f1), axis=-1)
    return np.where(total[..., 0] > 0, np.take_along_axis(f1, where[..., None], -1)[..., 0], np.nan), where


def aupro(overlaps: Counts, regions: Counts, negatives: Counts, limit: float) -> Counts:
    """Area under the per-region overlap curve up to a false-positive rate, divided by that rate.

    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021: the overlap is the share of a region's
    pixels above the threshold, averaged over all regions whatever their size; the false-positive rate is
    taken over all pixels without a defect.

    Args:
        overlaps: (..., scores) for each score, the sum over regions of the share of pixels that have it.
        regions: (...) number of regions.
        negatives: (..., scores) pixels without a defect.
        limit: largest false-positive rate, in 0 .. 1.

    Returns:
        (...) in 0 .. 1; NaN without regions or without such pixels.
    """
    overlap = _ratio(_at_or_above(overlaps), np.asarray(regions, np.float64)[..., None])
    rate = _ratio(_at_or_above(negatives), negatives.sum(axis=-1, keepdims=True))
    # From no pixel above the threshold to all of them.
    overlap, rate = (_with_zero(curve[..., ::-1]) for curve in (overlap, rate))
    left, right = rate[..., :-1], rate[..., 1:]
    low, high = overlap[..., :-1], overlap[..., 1:]
    width = np.clip(right, None, limit) - np.clip(left, None, limit)
    # Where the limit cuts a step, the curve is a straight line.
    share = np.divide(width, right - left, out=np.zeros_like(width), where=right > left)
    area = (width * (low + (low + (high - low) * share)) / 2).sum(axis=-1)
    return area / limit


def _at_or_above(counts: Counts) -> Counts:
    """How many have each score or a larger one."""
    reversed_sums: Counts = np.cumsum(counts[..., ::-1], axis=-1)[..., ::-1]
    return reversed_sums


def _with_zero(curve: Counts) -> Counts:
    return np.concatenate([np.zeros((*curve.shape[:-1], 1)), curve], axis=-1)


def _ratio(part: Counts, whole: Counts, *, empty: float = np.nan) -> Counts:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, empty, np.float64), where=whole > 0)
