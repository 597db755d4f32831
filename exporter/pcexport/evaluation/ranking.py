"""Image scores against labels: AUROC, and the threshold with the best F1 score."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pcexport.evaluation import curves
from pcexport.evaluation.curves import Counts
from pcrun.types import BoolArray, Float64Array


@dataclass(frozen=True)
class BestThreshold:
    """The threshold with the best F1 score on these images, which were looked at for it: for information."""

    threshold: float
    f1: float
    false_positives: int
    false_negatives: int


def counts_by_score(
    scores: Float64Array, defective: BoolArray, weights: Counts | None = None
) -> tuple[Counts, Counts, npt.NDArray[np.float64]]:
    """Numbers of defective and of normal images per distinct score, and those scores, rising.

    Args:
        scores: (images,).
        defective: (images,).
        weights: (resamples, images), how often each image counts; None is each once, as one resample.
    """
    order = np.argsort(scores, kind="stable")
    distinct, first = np.unique(scores[order], return_index=True)
    if weights is None:
        weights = np.ones((1, len(scores)))
    positives, negatives = (
        np.add.reduceat((weights * label)[:, order], first, axis=-1) for label in (defective, ~defective)
    )
    return positives, negatives, distinct


def image_auroc(scores: Float64Array, defective: BoolArray) -> float:
    """Area under the ROC curve, ties count half; NaN without images of both kinds."""
    positives, negatives, _ = counts_by_score(scores, defective)
    return float(curves.auroc(positives, negatives)[0])


def best_threshold(scores: Float64Array, defective: BoolArray) -> BestThreshold:
    """Half way between two scores; equal scores cannot be parted. There must be defective images."""
    positives, negatives, distinct = counts_by_score(scores, defective)
    f1, where = curves.best_f1(positives, negatives)
    position = int(where[0])
    flagged = scores >= distinct[position]
    return BestThreshold(
        _between(distinct, position),
        float(f1[0]),
        int((flagged & ~defective).sum()),
        int((~flagged & defective).sum()),
    )


def _between(distinct: npt.NDArray[np.float64], position: int) -> float:
    """Half way between a score and the next smaller one: the verdict is `above`, not `from`."""
    score = float(distinct[position])
    below = float(distinct[position - 1]) if position else score - 1e-6 * abs(score) - 1e-12
    return (below + score) / 2
