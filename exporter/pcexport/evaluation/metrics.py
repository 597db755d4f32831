"""All figures of an evaluation, each with an interval; what cannot be computed is named, never a NaN."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from pcexport.evaluation import curves
from pcexport.evaluation.curves import Counts
from pcexport.evaluation.pixels import PixelTable
from pcexport.evaluation.ranking import BestThreshold, best_threshold, counts_by_score
from pcexport.evaluation.scored import ScoredImage
from pcrun.types import BoolArray

CONFIDENCE = 0.95
RESAMPLES = 1000
_SEED = 0
AUPRO_LIMITS = (0.3, 0.05)


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval, or why there is none.

    Attributes:
        value: None when it is not defined.
        low, high: of the interval; None where there is none.
        undefined: why value is None.
        interval: "bootstrap" (over images, per label) or "binomial" (Clopper and Pearson 1934).
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: str | None = None
    interval: str = "bootstrap"


@dataclass(frozen=True)
class Confusion:
    """Verdicts at the bundle's threshold against labels."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


@dataclass(frozen=True)
class Metrics:
    """Image figures, pixel figures, figures per defect class, and what verdicts amount to.

    Attributes:
        replicates: image and pixel figures on each resample, (resamples,) each, by `image_` or `pixel_` and
            name; equal labels give equal resamples, so those of two bundles can be compared in pairs.
    """

    image: dict[str, Metric]
    pixel: dict[str, Metric]
    classes: dict[str, dict[str, Metric]]
    confusion: Confusion
    best_threshold: BestThreshold | None
    replicates: dict[str, Counts] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain types; of the resamples the intervals alone."""
        figures = dataclasses.asdict(dataclasses.replace(self, replicates={}))
        del figures["replicates"]
        return figures


class Resamples:
    """Bootstrap over images: how often each is drawn, normal and defective ones apart.

    Apart, because every resample then has both kinds, as many as there are.
    """

    def __init__(self, defective: BoolArray, *, resamples: int = RESAMPLES) -> None:
        """Draw; equal labels give equal draws, so two bundles on the same images can be compared in pairs."""
        generator = np.random.default_rng(_SEED)
        self.weights = np.zeros((resamples, len(defective)), np.float64)
        for group in (np.flatnonzero(~defective), np.flatnonzero(defective)):
            if len(group):
                draws = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), resamples)
                self.weights[:, group] = draws

    def of(self, chosen: BoolArray) -> Counts:
        """(resamples, chosen images) weights."""
        weights: Counts = self.weights[:, chosen]
        return weights


def interval_of(replicates: Counts) -> tuple[float | None, float | None]:
    """Percentile interval; none where too many resamples are undefined, or none differs from another.

    Where every resample gives the same, as a perfect ranking of few images does, nothing is said of others.
    """
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < 0.9 * replicates.size or not len(defined) or np.ptp(defined) == 0:
        return None, None
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def evaluate(scored: Sequence[ScoredImage]) -> Metrics:
    """All figures of labelled images."""
    samples = Samples.of(scored)
    classes = {}
    for name in sorted({str(image.image.defect) for image in scored if image.image.is_defective}):
        chosen = samples.of_class(name)
        class_pixel = pixel_metrics(samples, pixel_rows(samples, chosen))
        classes[name] = {
            **_class_metrics(samples, chosen),
            **{key: value for key, value in class_pixel.items() if key in _CLASS_PIXEL},
        }
    replicates, rows = image_replicates(samples), pixel_rows(samples)
    image, best = image_metrics(samples, replicates)
    kept = {f"image_{key}": values for key, values in replicates.items()}
    kept |= {f"pixel_{key}": values[1:] for key, values in rows.items()}
    return Metrics(image, pixel_metrics(samples, rows), classes, samples.confusion(), best, kept)


@dataclass(frozen=True)
class Samples:
    """Labels, scores and verdicts as arrays, and the resamples all figures share."""

    scored: Sequence[ScoredImage]
    defective: BoolArray
    scores: npt.NDArray[np.float64]
    flagged: BoolArray
    resamples: Resamples

    @classmethod
    def of(cls, scored: Sequence[ScoredImage]) -> "Samples":
        """Of labelled images, in their order."""
        defective = np.array([image.image.is_defective for image in scored], bool)
        return cls(
            scored,
            defective,
            np.array([image.score for image in scored], np.float64),
            np.array([image.is_anomalous for image in scored], bool),
            Resamples(defective),
        )

    @property
    def everything(self) -> BoolArray:
        """All images."""
        return np.ones(len(self.scored), bool)

    def of_class(self, name: str) -> BoolArray:
        """The normal images and those of one class."""
        return np.array(
            [not image.image.is_defective or image.image.defect == name for image in self.scored], bool
        )

    def with_masks(self, chosen: BoolArray) -> BoolArray:
        """Those of the chosen whose pixels are labelled."""
        return chosen & np.array([image.pixels is not None for image in self.scored], bool)

    def confusion(self) -> Confusion:
        """Verdicts against labels."""
        return Confusion(
            int((self.flagged & self.defective).sum()),
            int((self.flagged & ~self.defective).sum()),
            int((~self.flagged & ~self.defective).sum()),
            int((~self.flagged & self.defective).sum()),
        )

    def counts(self, chosen: BoolArray, weights: Counts) -> tuple[Counts, Counts, npt.NDArray[np.float64]]:
        """Weighted numbers of defective and normal images per distinct score, and those scores."""
        return counts_by_score(self.scores[chosen], self.defective[chosen], weights)


def image_metrics(
    samples: Samples, replicates: dict[str, Counts]
) -> tuple[dict[str, Metric], BestThreshold | None]:
    """Of image scores and verdicts, and the threshold that would have had the best F1 score."""
    truth, scores = samples.defective, samples.scores
    missing = _missing(truth, "images")
    if missing:
        undefined = Metric(None, undefined=missing)
        return dict.fromkeys(_RANKING, undefined) | _verdict_metrics(samples, replicates), None
    best = best_threshold(scores, truth)
    values = (float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores)), best.f1)
    ranking = {
        name: Metric(value, *interval_of(replicates[name]))
        for name, value in zip(_RANKING, values, strict=True)
    }
    return ranking | _verdict_metrics(samples, replicates), best


# What depends on the order of the scores alone.
_RANKING = ("auroc", "aupr", "best_f1")


def image_replicates(samples: Samples) -> dict[str, Counts]:
    """Each image figure on each resample, NaN where it is not defined."""
    chosen = samples.everything
    weights = samples.resamples.of(chosen)
    positives, negatives, _ = samples.counts(chosen, weights)
    hits, flagged, defective = (
        weights @ truth.astype(np.float64)
        for truth in (samples.flagged & samples.defective, samples.flagged, samples.defective)
    )
    return {
        "auroc": curves.auroc(positives, negatives),
        "aupr": curves.average_precision(positives, negatives),
        "best_f1": curves.best_f1(positives, negatives)[0],
        "precision": _divided(hits, flagged),
        "recall": _divided(hits, defective),
        "false_positive_rate": _divided(flagged - hits, weights.sum(axis=1) - defective),
        "f1": _divided(2 * hits, flagged + defective),
    }


def _verdict_metrics(samples: Samples, replicates: dict[str, Counts]) -> dict[str, Metric]:
    """At the bundle's threshold."""
    found = samples.confusion()
    flags = found.true_positives + found.false_positives
    defects = found.true_positives + found.false_negatives
    no_defects = "there are no defective images"
    precision, f1 = Metric(None, undefined=no_defects), Metric(None, undefined=no_defects)
    if defects:
        value = 2 * found.true_positives / (flags + defects)
        f1 = Metric(value, *interval_of(replicates["f1"]))
        # Of images that were called anomalous; all of them right would leave the bootstrap no spread.
        precision = proportion(found.true_positives, flags, "no image was called anomalous")
    return {
        "precision": precision,
        "recall": proportion(found.true_positives, defects, no_defects),
        "false_positive_rate": proportion(
            found.false_positives, found.false_positives + found.true_negatives, "there are no normal images"
        ),
        "f1": f1,
    }


def proportion(part: int, whole: int, undefined: str) -> Metric:
    """A share of independent images with its exact interval, which 0 of n has too."""
    if not whole:
        return Metric(None, undefined=undefined, interval="binomial")
    bounds = binomtest(part, whole).proportion_ci(CONFIDENCE, method="exact")
    return Metric(part / whole, float(bounds.low), float(bounds.high), interval="binomial")


# What is given for single classes of defects.
_CLASS_PIXEL = ("auroc", "aupro_30")


def _class_metrics(samples: Samples, chosen: BoolArray) -> dict[str, Metric]:
    members = chosen & samples.defective
    hits = int((members & samples.flagged).sum())
    metrics = {"recall": proportion(hits, int(members.sum()), "there are no such images")}
    missing = _missing(samples.defective[chosen], "images")
    if missing:
        return {"image_auroc": Metric(None, undefined=missing), **metrics}
    positives, negatives, _ = samples.counts(chosen, samples.resamples.of(chosen))
    value = float(roc_auc_score(samples.defective[chosen], samples.scores[chosen]))
    return {"image_auroc": Metric(value, *interval_of(curves.auroc(positives, negatives))), **metrics}


def pixel_metrics(samples: Samples, rows: dict[str, Counts]) -> dict[str, Metric]:
    """Of the maps, from what `pixel_rows` gives."""
    if not rows:
        why = "no defect has a mask" if samples.defective.any() else "there are no defective images"
        return dict.fromkeys(_PIXEL, Metric(None, undefined=why))
    return {name: _from_rows(values) for name, values in rows.items()}


def _aupro_name(limit: float) -> str:
    return f"aupro_{round(limit * 100):02d}"


_PIXEL = ("auroc", *map(_aupro_name, AUPRO_LIMITS), "best_f1", "precision", "recall", "f1")


def pixel_rows(samples: Samples, chosen: BoolArray | None = None) -> dict[str, Counts]:
    """Each pixel figure, first on the images themselves, then on each resample; empty without any mask."""
    chosen = samples.with_masks(samples.everything if chosen is None else chosen)
    counted = [
        image.pixels for image, use in zip(samples.scored, chosen, strict=True) if use and image.pixels
    ]
    if not any(pixels.regions for pixels in counted):
        return {}
    table = PixelTable.of(counted)
    weights = np.concatenate([np.ones((1, len(counted))), samples.resamples.of(chosen)])
    normal, defective, overlaps = (weights @ part for part in (table.normal, table.defective, table.overlaps))
    true, false, missed = (
        weights @ np.array([getattr(pixels, name) for pixels in counted], np.float64)
        for name in ("true", "false", "missed")
    )
    values = (
        curves.auroc(defective, normal),
        *(curves.aupro(overlaps, weights @ table.regions, normal, limit) for limit in AUPRO_LIMITS),
        curves.best_f1(defective, normal)[0],
        _divided(true, true + false),
        _divided(true, true + missed),
        _divided(2 * true, 2 * true + false + missed),
    )
    return dict(zip(_PIXEL, values, strict=True))


def _from_rows(rows: Counts) -> Metric:
    if not math.isfinite(rows[0]):
        return Metric(None, undefined="nothing is above the pixel threshold")
    return Metric(float(rows[0]), *interval_of(rows[1:]))


def _missing(truth: BoolArray, what: str) -> str | None:
    """Why a curve over these labels is not defined."""
    if not truth.any():
        return f"there are no defective {what}"
    return f"there are no normal {what}" if truth.all() else None


def _divided(part: Counts, whole: Counts) -> Counts:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan, np.float64), where=whole > 0)
