"""Scoring labelled test images with the finished bundle, through the runtime."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

from pcexport.datasets import TestImage
from pcexport.datasets.reader import ImageReader
from pcexport.progress import Step
from pcrun.bundle.manifest import AccuracySpec
from pcrun.detector import AnomalyDetector
from pcrun.types import BoolArray


@dataclass(frozen=True)
class TestScore:
    """What one labelled image scored."""

    __test__ = False

    image: TestImage
    image_score: float
    is_anomalous: bool


def score_test_images(
    images: tuple[TestImage, ...], reader: ImageReader, detector: AnomalyDetector, step: Step
) -> list[TestScore]:
    """Score every readable test image."""
    scores = []
    found = reader.read_all(image.ref for image in images)
    for done, (image, (_, pixels)) in enumerate(zip(images, found, strict=True), start=1):
        if pixels is not None:
            result = detector(pixels)
            scores.append(TestScore(image, result.image_score, result.is_anomalous))
        step.advance_to(done)
    return scores


def accuracy_of(scores: list[TestScore]) -> AccuracySpec | None:
    """Image AUROC, false alarms and misses; None without both normal and defective images."""
    defective = np.array([score.image.is_defective for score in scores], bool)
    flagged = np.array([score.is_anomalous for score in scores], bool)
    if not defective.any() or defective.all():
        return None
    return AccuracySpec(
        images_normal=int((~defective).sum()),
        images_defective=int(defective.sum()),
        image_auroc=image_auroc(np.array([score.image_score for score in scores]), defective),
        false_alarms=int((flagged & ~defective).sum()),
        misses=int((~flagged & defective).sum()),
    )


def image_auroc(scores: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", defective: BoolArray) -> float:
    """Area under the ROC curve: the Mann-Whitney statistic over the number of pairs (ties count half)."""
    statistic = mannwhitneyu(scores[defective], scores[~defective]).statistic
    return float(statistic / (defective.sum() * (~defective).sum()))
