"""The part of the manifest that `pcexport calibrate` writes anew: scoring, thresholds, their origin.

`pcrun.bundle.manifest` gives these names too.
"""

import itertools
from dataclasses import dataclass

from pcrun.records import require

IMAGE_SCORES = ("max", "reweighted")
# Scores kept of each kind: enough for the distribution, and a few kilobytes.
MAX_BASELINE = 512


@dataclass(frozen=True)
class ThresholdSpec:
    """A threshold chosen from normal images alone.

    Attributes:
        value: in L2 units; larger scores are anomalous.
        method: "holdout" or "kfold".
        images: normal images scored.
        rank: the threshold is the `rank`-th smallest of their scores.
        false_alarm_rate_requested: what was asked for.
        false_alarm_rate_expected: (images + 1 - rank) / (images + 1), what a new normal image has on average.
        false_alarm_rate_upper_95: with 95 % confidence the rate is not above this.
    """

    value: float
    method: str
    images: int
    rank: int
    false_alarm_rate_requested: float
    false_alarm_rate_expected: float
    false_alarm_rate_upper_95: float


@dataclass(frozen=True)
class CalibrationSource:
    """The images that `pcexport calibrate` chose thresholds from; those of the build are in `SourceSpec`.

    Attributes:
        name: the data folder's own name (no path).
        images_skipped: unreadable images left out.
        content_sha256: SHA-256 over the names and bytes of all readable images, in order.
    """

    name: str
    images_skipped: int
    content_sha256: str


@dataclass(frozen=True)
class PastThresholds:
    """Thresholds that were in force before `pcexport calibrate` chose others.

    `calibrated_on` is None for those of the build.
    """

    threshold: ThresholdSpec | None
    pixel_threshold: ThresholdSpec | None
    calibrated_on: CalibrationSource | None = None


@dataclass(frozen=True)
class BaselineSpec:
    """What normal images score that are not in the memory bank: a running line is compared with it.

    Attributes:
        method: how they were kept apart: "holdout", or "kfold" (by banks that each lack a part, which are
            smaller than the bundle's: scores are a little higher).
        images: normal images scored.
        image_scores: ascending, L2 units; where there are many images, evenly spaced quantiles.
        patch_medians: the median patch score of each image, likewise; as a search finds them, so possibly
            too large by `SearchMeasurement.mean_distance_error`.
    """

    method: str
    images: int
    image_scores: tuple[float, ...]
    patch_medians: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("image_scores", "patch_medians"):
            values = getattr(self, name)
            require(
                1 <= len(values) <= min(self.images, MAX_BASELINE),
                f"{name} must hold 1 to {MAX_BASELINE} numbers, at most one an image, got {len(values)}",
            )
            require(
                values[0] >= 0 and all(a <= b for a, b in itertools.pairwise(values)),
                f"{name} must be ascending and not negative",
            )


@dataclass(frozen=True)
class ScoringSpec:
    """From patch distances to a verdict.

    Attributes:
        image_score: "max" or "reweighted" (Eq. 7 of Roth et al. 2022).
        neighbours: b of Eq. 7; entries per row of neighbours.npy; 0 for "max".
        map_sigma_px: Gaussian smoothing of the anomaly map, in input pixels.
        threshold: for the image score.
        pixel_threshold: for the anomaly map; chosen from the maps' maxima on the same images.
        calibrated_on: the images of both thresholds; None for those of the build.
        history: earlier thresholds, the oldest first.
        baseline: scores of the images that both thresholds were chosen from; None where not recorded.
    """

    image_score: str
    neighbours: int
    map_sigma_px: float
    threshold: ThresholdSpec | None = None
    pixel_threshold: ThresholdSpec | None = None
    calibrated_on: CalibrationSource | None = None
    history: tuple[PastThresholds, ...] = ()
    baseline: BaselineSpec | None = None

    def __post_init__(self) -> None:
        require(self.image_score in IMAGE_SCORES, f"image_score must be one of {IMAGE_SCORES}")
        require(
            (self.neighbours > 0) == (self.image_score == "reweighted"),
            "neighbours belong to 'reweighted' alone",
        )
        require(0 <= self.map_sigma_px <= 256, f"map_sigma_px must be 0..256, got {self.map_sigma_px}")
