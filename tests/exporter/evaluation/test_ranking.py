"""Image scores against labels: AUROC and the best threshold, without the resamples of an evaluation."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.metrics import roc_auc_score

from pcexport.evaluation.ranking import best_threshold, counts_by_score, image_auroc


def labelled(*pairs: tuple[float, bool]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in pairs]), np.array([defective for _, defective in pairs], bool)


def test_the_best_threshold_separates_what_can_be_separated() -> None:
    clean = best_threshold(*labelled((4.0, True), (1.0, False), (5.0, True), (2.0, False)))
    assert (clean.threshold, clean.f1, clean.false_positives, clean.false_negatives) == (3.0, 1.0, 0, 0)
    tied = best_threshold(*labelled((1.0, False), (2.0, False), (2.0, True)))
    assert (tied.threshold, tied.false_positives, tied.false_negatives) == (1.5, 1, 0)


def test_a_best_threshold_that_calls_everything_anomalous_lies_below_every_score() -> None:
    scores, defective = labelled((1.0, True), (2.0, False), (3.0, True))
    best = best_threshold(scores, defective)
    assert (best.false_positives, best.false_negatives) == (1, 0)
    assert (scores > best.threshold).all()


def test_auroc_is_scikit_learns_also_with_ties() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 12, 200).astype(np.float64)
    defective = generator.random(200) < 0.3
    assert image_auroc(scores, defective) == pytest.approx(roc_auc_score(defective, scores), abs=1e-12)


def test_counts_are_weighted_and_in_the_order_of_the_scores() -> None:
    scores, defective = labelled((3.0, True), (1.0, False), (3.0, False), (2.0, True))
    positives, negatives, distinct = counts_by_score(
        scores, defective, np.array([[1.0, 1, 1, 1], [2, 0, 3, 5]])
    )
    assert distinct.tolist() == [1, 2, 3]
    assert positives.tolist() == [[0, 1, 1], [0, 5, 2]]
    assert negatives.tolist() == [[1, 0, 1], [0, 0, 3]]
