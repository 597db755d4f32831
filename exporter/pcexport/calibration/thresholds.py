"""Scoring the calibration images and choosing both thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pcexport.calibration.false_alarm_rate import CalibrationPlan, choose_threshold, shortage_warning
from pcexport.config import BuildConfig
from pcexport.datasets.reader import ImageReader
from pcexport.memory_bank.bank import bank_size, choose_memory_bank, neighbour_lists
from pcexport.memory_bank.embed import EmbeddedImages
from pcexport.progress import Step, Steps
from pcrun.bundle.manifest import MAX_BASELINE, BaselineSpec, ThresholdSpec
from pcrun.detector import AnomalyDetector
from pcrun.machine.threads import available_cores
from pcrun.scoring.open import map_geometry, open_bank_scorer
from pcrun.types import Int64Array

# Progress of a fold in units: its coreset takes about as long as scoring its images, one unit an image each.
_FOLD_UNITS = 2


@dataclass(frozen=True)
class NormalScores:
    """Scores of normal images that their bank had not seen, in L2 units.

    Attributes:
        image_scores, map_maxima, patch_medians: image score, largest map value and median patch score, fold
            by fold, in the order of the plan.
        banks: which rows made the bank of each fold; empty where the bundle's own bank was used.
    """

    image_scores: list[float]
    map_maxima: list[float]
    patch_medians: list[float] = field(default_factory=list)
    banks: list[Int64Array] = field(default_factory=list)

    def add(self, image_score: float, map_maximum: float, patch_median: float) -> None:
        """Take an image."""
        self.image_scores.append(image_score)
        self.map_maxima.append(map_maximum)
        self.patch_medians.append(patch_median)


def score_normals(
    plan: CalibrationPlan,
    embedded: EmbeddedImages,
    detector: AnomalyDetector,
    reader: ImageReader,
    config: BuildConfig,
    steps: Steps,
) -> NormalScores:
    """Score held-out images with the bundle itself, or every image with a bank of the other folds."""
    scores = NormalScores([], [])
    total = sum(len(fold) for fold in plan.folds)
    if total == 0:
        return scores
    if plan.method == "kfold":
        total *= _FOLD_UNITS
    with steps.step(f"calibrate ({plan.method})", total) as step:
        for fold in plan.folds:
            if plan.method == "holdout":
                _score_held_out(fold, embedded, detector, reader, scores, step)
            else:
                _score_fold(fold, embedded, detector, config, scores, step)
    return scores


def baseline_of(scores: NormalScores, method: str) -> BaselineSpec:
    """What a running line is compared with."""
    return BaselineSpec(
        method, len(scores.image_scores), thinned(scores.image_scores), thinned(scores.patch_medians)
    )


def thinned(values: Sequence[float], limit: int = MAX_BASELINE) -> tuple[float, ...]:
    """The values in ascending order; of more than `limit` of them so many evenly spaced quantiles.

    Seven digits, what float32 holds.
    """
    n = len(values)
    ordered = sorted(float(f"{value:.7g}") for value in values)
    if n <= limit:
        return tuple(ordered)
    # The middle one of each of `limit` equal parts.
    return tuple(ordered[(2 * part + 1) * n // (2 * limit)] for part in range(limit))


def choose_thresholds(
    scores: NormalScores, plan: CalibrationPlan, config: BuildConfig, steps: Steps
) -> tuple[ThresholdSpec, ThresholdSpec] | None:
    """Image and pixel threshold at the configured false-alarm rate; None when calibration is off."""
    if not scores.image_scores:
        steps.warn(
            "no threshold was chosen (--calibration none): pcrun needs --threshold and --pixel-threshold"
        )
        return None
    image = choose_threshold(scores.image_scores, rate=config.false_alarm_rate, method=plan.method)
    pixel = choose_threshold(scores.map_maxima, rate=config.false_alarm_rate, method=plan.method)
    shortage = shortage_warning(image)
    if shortage:
        steps.warn(shortage)
    return image, pixel


def _score_held_out(
    fold: Int64Array,
    embedded: EmbeddedImages,
    detector: AnomalyDetector,
    reader: ImageReader,
    scores: NormalScores,
    step: Step,
) -> None:
    for index in fold:
        scores.add(*detector.summarise(reader.read(embedded.refs[index])))
        step.advance_to(len(scores.image_scores))


def _score_fold(
    fold: Int64Array,
    embedded: EmbeddedImages,
    detector: AnomalyDetector,
    config: BuildConfig,
    scores: NormalScores,
    step: Step,
) -> None:
    others = np.setdiff1d(np.arange(len(embedded.refs), dtype=np.int64), fold)
    done = _FOLD_UNITS * len(scores.image_scores)
    size = bank_size(embedded, others, config)
    bank = choose_memory_bank(
        embedded, others, config, lambda n: step.advance_to(done + len(fold) * n // size)
    )
    scores.banks.append(bank.ids)
    rows = bank.rows
    neighbours = neighbour_lists(rows, config) if config.image_score == "reweighted" else None
    scorer = open_bank_scorer(
        rows,
        map_geometry(detector.manifest),
        threads=config.threads or available_cores(),
        basis=detector.bundle.search_basis if detector.bundle else None,
        neighbours=neighbours,
    )
    for position, index in enumerate(fold, start=1):
        scores.add(*scorer.summarise(embedded.image(int(index))))
        step.advance_to(done + len(fold) + position)
