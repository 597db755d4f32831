"""Scoring the calibration images and choosing both thresholds."""

from dataclasses import dataclass

import numpy as np

from pcexport.bank import bank_size, choose_memory_bank, neighbour_lists
from pcexport.calibration import CalibrationPlan, choose_threshold, shortage_warning
from pcexport.config import BuildConfig
from pcexport.embed import EmbeddedImages
from pcexport.images import ImageReader
from pcexport.progress import Step, Steps
from pcrun.detector import AnomalyDetector
from pcrun.manifest import Manifest, ThresholdSpec
from pcrun.scoring import PatchCoreScorer, anomaly_map
from pcrun.search import ExactSearch
from pcrun.threads import available_cores
from pcrun.types import Int64Array

# Progress of a fold in units: its coreset takes about as long as scoring its images, one unit an image each.
_FOLD_UNITS = 2


@dataclass(frozen=True)
class NormalScores:
    """Image scores and largest map values of normal images that their bank had not seen, in L2 units."""

    image_scores: list[float]
    map_maxima: list[float]


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
                _score_fold(fold, embedded, detector.manifest, config, scores, step)
    return scores


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
        result = detector(reader.read(embedded.paths[index]))
        scores.image_scores.append(result.image_score)
        scores.map_maxima.append(float(result.anomaly_map.max()))
        step.advance_to(len(scores.image_scores))


def _score_fold(
    fold: Int64Array,
    embedded: EmbeddedImages,
    manifest: Manifest,
    config: BuildConfig,
    scores: NormalScores,
    step: Step,
) -> None:
    others = np.setdiff1d(np.arange(len(embedded.paths), dtype=np.int64), fold)
    done = _FOLD_UNITS * len(scores.image_scores)
    size = bank_size(embedded, others, config)
    bank = choose_memory_bank(
        embedded, others, config, lambda n: step.advance_to(done + len(fold) * n // size)
    )
    rows = bank.rows
    neighbours = neighbour_lists(rows, config) if config.image_score == "reweighted" else None
    exact = ExactSearch(rows, threads=config.threads or available_cores())
    scorer = PatchCoreScorer(rows, exact, exactness="full", neighbours=neighbours)
    grid_hw = (manifest.embedding.grid_height, manifest.embedding.grid_width)
    for position, index in enumerate(fold, start=1):
        result = scorer.score(embedded.image(int(index)))
        heat = anomaly_map(
            result.patch_scores.reshape(grid_hw), manifest.preprocess.input_hw, config.map_sigma_px
        )
        scores.image_scores.append(result.image_score)
        scores.map_maxima.append(float(heat.max()))
        step.advance_to(done + len(fold) + position)
