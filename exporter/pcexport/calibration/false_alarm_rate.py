"""A threshold at a stated false-alarm rate, from normal images alone.

With n exchangeable normal scores, a new normal score exceeds the r-th smallest of them with probability
(n + 1 - r) / (n + 1), and that exceedance rate is Beta(n + 1 - r, r) distributed: the distribution-free
order-statistic argument of Wilks (1941) that split conformal prediction also rests on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

from pcexport.config import BuildConfig
from pcexport.errors import BuildError
from pcrun.bundle.manifest import ThresholdSpec
from pcrun.types import Int64Array

# Below this many normal images every one of them is worth more in the memory bank than held out
# (docs/architecture.md).
HOLDOUT_MIN_IMAGES = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class CalibrationPlan:
    """Which images fill the memory bank and which give the threshold.

    Attributes:
        method: "holdout", "kfold" or "none".
        bank: indices of the images whose patches are candidates for the memory bank.
        folds: indices scored together, each by a bank that does not contain them; one fold for "holdout".
    """

    method: str
    bank: Int64Array
    folds: tuple[Int64Array, ...]

    @property
    def held_out(self) -> int:
        """Images that are not in the memory bank."""
        return len(self.folds[0]) if self.method == "holdout" else 0


def plan_calibration(images: int, config: BuildConfig) -> CalibrationPlan:
    """Split `images` normal images, reproducibly.

    Raises:
        BuildError: too few images for the method.
    """
    method = config.calibration
    if method == "auto":
        method = "holdout" if images >= HOLDOUT_MIN_IMAGES else "kfold"
    everything = np.arange(images, dtype=np.int64)
    if method == "none":
        return CalibrationPlan("none", everything, ())
    if images < 2:
        raise BuildError(
            f"{images} normal image cannot give a threshold: at least 2 are needed, some hundred are better. "
            "Add images, or pass --calibration none and give `pcrun` --threshold and --pixel-threshold."
        )
    shuffled = np.random.default_rng(config.seed).permutation(images)
    if method == "kfold":
        folds = np.array_split(shuffled, min(config.folds, images))
        return CalibrationPlan("kfold", everything, tuple(np.sort(fold).astype(np.int64) for fold in folds))
    held = max(1, min(images - 1, round(images * config.holdout_fraction)))
    return CalibrationPlan("holdout", np.sort(shuffled[held:]), (np.sort(shuffled[:held]),))


def choose_threshold(scores: Sequence[float], *, rate: float, method: str) -> ThresholdSpec:
    """The smallest score that at most `rate` of new normal images are expected to exceed.

    Args:
        scores: of normal images that were not in the memory bank which scored them.
        rate: requested false-alarm rate, 0 < rate < 1.
        method: how the images were kept apart, for the record.

    Returns:
        The threshold with its expected rate and 95% upper bound. When there are too few images for `rate`,
        it is the largest score, and the expected rate says what that supports.
    """
    n = len(scores)
    rank = min(n, math.ceil((n + 1) * (1 - rate) - 1e-9))
    rank = max(1, rank)
    return ThresholdSpec(
        value=float(np.sort(np.asarray(scores, np.float64))[rank - 1]),
        method=method,
        images=n,
        rank=rank,
        false_alarm_rate_requested=rate,
        false_alarm_rate_expected=(n + 1 - rank) / (n + 1),
        false_alarm_rate_upper_95=float(beta.ppf(_CONFIDENCE, n + 1 - rank, rank)),
    )


def images_needed(rate: float) -> tuple[int, int]:
    """Normal images for which the expected rate, and its 95% upper bound, can reach `rate` at all."""
    expected = math.ceil(1 / rate - 1 - 1e-9)
    bound = math.ceil(math.log(1 - _CONFIDENCE) / math.log(1 - rate) - 1e-9)
    return max(1, expected), max(1, bound)


def shortage_warning(threshold: ThresholdSpec) -> str | None:
    """A sentence when there were too few normal images for the requested rate, else None."""
    for_expected, for_bound = images_needed(threshold.false_alarm_rate_requested)
    rate = threshold.false_alarm_rate_requested
    if threshold.images < for_expected:
        return (
            f"{threshold.images} normal images cannot support a false-alarm rate of {rate:.2%}: "
            f"the threshold is their largest score, expected rate {threshold.false_alarm_rate_expected:.2%}. "
            f"{for_expected} images would do, {for_bound} for 95% confidence."
        )
    if threshold.images < for_bound:
        return (
            f"The false-alarm rate of {rate:.2%} is expected, but with {threshold.images} normal images only "
            f"{threshold.false_alarm_rate_upper_95:.2%} is certain at 95%. "
            f"{for_bound} images could bring the bound to it."
        )
    return None
