"""`report.html` of a bundle: what the build measured, for people.

One file without external parts, readable on any device and on paper. It holds no dates, timings or absolute
paths: two equal builds give equal bytes.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcexport.calibration.false_alarm_rate import images_needed, shortage_warning
from pcexport.calibration.thresholds import NormalScores
from pcexport.datasets import ImageRef
from pcexport.datasets.reader import ImageReader
from pcexport.evaluate import TestScore
from pcexport.golden import spread
from pcexport.report.chart import ScoreGroup, draw_scores
from pcexport.report.page import jpeg_address, page_environment
from pcrun.bundle.manifest import Manifest, ThresholdSpec
from pcrun.detector import AnomalyDetector
from pcrun.images.overlay import draw_overlay
from pcrun.preprocess import PreprocessSpec, resize_uint8
from pcrun.result import AnomalyResult, Region
from pcrun.types import UInt8Array

_TEMPLATE = "report.html.j2"
_MAX_PICTURES = 12
_MAX_PICTURE_HW = (480, 320)
_JPEG_QUALITY = 85
_MAX_WRONG_IMAGES = 8


@dataclass(frozen=True)
class Picture:
    """One golden sample as shown.

    Attributes:
        name: its file's own name.
        label: "normal" or "defective".
        result: what the finished detector says of it.
        data_uri: the overlay as JPEG.
    """

    name: str
    label: str
    result: AnomalyResult
    data_uri: str


@dataclass(frozen=True)
class BestF1:
    """The threshold with the best F1 score on the labelled test images; for information, it saw them."""

    threshold: float
    f1: float
    false_alarms: int
    misses: int


def write_report(
    path: Path,
    manifest: Manifest,
    scores: NormalScores,
    test_scores: list[TestScore],
    samples: list[tuple[ImageRef, str]],
    reader: ImageReader,
    detector: AnomalyDetector,
) -> None:
    """Write the report of a build.

    Args:
        path: the file to write.
        manifest: the bundle's facts; what it lacks (threshold, accuracy, parity, index) is named as missing.
        scores: of the calibration's normal images, possibly none.
        test_scores: of the labelled test images, possibly none.
        samples: golden samples as (path, "normal" or "defective"); at most twelve are pictured.
        reader: reads them.
        detector: the finished bundle's detector, which scores them once more for their pictures.
    """
    threshold = manifest.scoring.threshold
    groups = group_scores(scores, test_scores, threshold)
    page = (
        page_environment()
        .get_template(_TEMPLATE)
        .render(
            m=manifest,
            threshold=threshold,
            shortage=_shortage(threshold),
            groups=groups,
            charts=[
                draw_scores(groups, threshold.value if threshold else None, wide=wide)
                for wide in (True, False)
            ],
            best=best_f1(test_scores) if manifest.accuracy else None,
            false_alarms=_wrong(test_scores, defective=False),
            misses=_wrong(test_scores, defective=True),
            wrong_shown=_MAX_WRONG_IMAGES,
            pictures=_pictures(samples, manifest, reader, detector),
            samples=len(samples),
        )
    )
    # A file name may hold bytes that are not UTF-8.
    path.write_bytes(page.encode("utf-8", "replace"))


def group_scores(
    scores: NormalScores, test_scores: Sequence[TestScore], threshold: ThresholdSpec | None
) -> list[ScoreGroup]:
    """Calibration images, normal test images, each kind of defect; empty groups are left out."""
    limit = threshold.value if threshold else math.inf
    calibration = tuple(scores.image_scores)
    above = sum(score > limit for score in calibration)
    groups = [ScoreGroup("Calibration normals", "calibration", calibration, above)]
    kinds = sorted(
        {score.image.defect for score in test_scores}, key=lambda kind: (kind is not None, kind or "")
    )
    for kind in kinds:
        members = [score for score in test_scores if score.image.defect == kind]
        values = tuple(score.image_score for score in members)
        flagged = sum(score.is_anomalous for score in members)
        if kind is None:
            groups.append(ScoreGroup("Test normals", "normal", values, flagged))
        else:
            groups.append(ScoreGroup(kind, "defective", values, flagged))
    return [group for group in groups if group.scores]


def best_f1(test_scores: Sequence[TestScore]) -> BestF1 | None:
    """The threshold with the best F1 score, half way between two scores; None without defects."""
    ordered = sorted(test_scores, key=lambda score: score.image_score)
    values = np.array([score.image_score for score in ordered], np.float64)
    defective = np.array([score.image.is_defective for score in ordered], bool)
    if not defective.any():
        return None
    # Cut k calls the images k, k + 1, ... anomalous; equal scores cannot be parted.
    cuts = np.flatnonzero(np.diff(values, prepend=-np.inf) > 0)
    misses = np.concatenate([[0], np.cumsum(defective)])[cuts]
    false_alarms = len(values) - cuts - (defective.sum() - misses)
    hits = defective.sum() - misses
    f1 = 2 * hits / (2 * hits + misses + false_alarms)
    best = int(f1.argmax())
    cut = int(cuts[best])
    threshold = float(values[max(cut - 1, 0)] + values[cut]) / 2
    return BestF1(threshold, float(f1[best]), int(false_alarms[best]), int(misses[best]))


def _wrong(test_scores: Sequence[TestScore], *, defective: bool) -> list[TestScore]:
    """Misses (lowest score first) or false alarms (highest first)."""
    wrong = [s for s in test_scores if s.image.is_defective == defective and s.is_anomalous != defective]
    sign = 1 if defective else -1
    return sorted(wrong, key=lambda score: (sign * score.image_score, score.image.name))


def _shortage(threshold: ThresholdSpec | None) -> tuple[bool, str] | None:
    """Whether there were too few images even for the expected rate, and the sentence that says what to do."""
    text = shortage_warning(threshold) if threshold else None
    if not threshold or not text:
        return None
    needed, _ = images_needed(threshold.false_alarm_rate_requested)
    return threshold.images < needed, text


def _pictures(
    samples: Sequence[tuple[ImageRef, str]],
    manifest: Manifest,
    reader: ImageReader,
    detector: AnomalyDetector,
) -> list[Picture]:
    small = []
    for ref, label in spread(samples, _MAX_PICTURES):
        image = reader.read(ref)
        small.append((ref.name, label, *_shrink(image, detector(image))))
    # Without a pixel threshold nothing may look as if it were above one: the largest value takes its place.
    limit = max((float(result.anomaly_map.max()) for *_, result in small), default=0.0)
    if manifest.scoring.pixel_threshold:
        limit = manifest.scoring.pixel_threshold.value
    return [
        Picture(name, label, result, _overlay_uri(image, result, limit, manifest.preprocess))
        for name, label, image, result in small
    ]


def _shrink(image: UInt8Array, result: AnomalyResult) -> tuple[UInt8Array, AnomalyResult]:
    """Bring image and regions to the size shown: lines are then drawn at that size, and stay crisp."""
    height, width = image.shape[:2]
    scale = min(1.0, _MAX_PICTURE_HW[0] / height, _MAX_PICTURE_HW[1] / width)
    small = resize_uint8(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    return small, dataclasses.replace(
        result, regions=tuple(_scaled(region, scale) for region in result.regions)
    )


def _scaled(region: Region, scale: float) -> Region:
    left, top = math.floor(region.x * scale), math.floor(region.y * scale)
    right, bottom = (region.x + region.width) * scale, (region.y + region.height) * scale
    size = max(1, math.ceil(right) - left), max(1, math.ceil(bottom) - top)
    return dataclasses.replace(region, x=left, y=top, width=size[0], height=size[1])


def _overlay_uri(
    image: UInt8Array, result: AnomalyResult, pixel_threshold: float, spec: PreprocessSpec
) -> str:
    # Score and verdict stand in the caption below: the strip that the overlay adds on top is cut off.
    # A threshold of 0 keeps its text short for a bundle without one.
    shown = dataclasses.replace(result, pixel_threshold=pixel_threshold, threshold=0.0)
    overlay = draw_overlay(image, shown, spec)[-image.shape[0] :]
    return jpeg_address(overlay, _JPEG_QUALITY)
