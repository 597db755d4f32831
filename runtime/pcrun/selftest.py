"""Replaying the golden samples: does this machine give the verdicts that the build machine gave?"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pcrun.bundle.bundle import Bundle, GoldenSample, GoldenSamples
from pcrun.errors import BackendError, BundleError, SourceError
from pcrun.images.image_io import decode_image
from pcrun.types import UInt8Array

if TYPE_CHECKING:
    from pcrun.detector import AnomalyDetector

# Differences are related to at least this share of the largest golden score.
_SMALLEST_SCALE = 0.1
_TINY = 1e-12
# Share of a golden score by which another arithmetic may move it. On 583 tiles bfloat16 moved scores by 0.8 %
# at most, another backend for the same int8 graph by 2 %; a wrong computation moves them by far more.
_LARGEST_DRIFT = 0.05


@dataclass(frozen=True)
class SampleCheck:
    """One golden sample replayed.

    Attributes:
        sample: what the build recorded.
        image_score, map_max, is_anomalous: what this machine gives.
        relative_difference: the larger of the two scores' differences, relative to the expected score
            (or to a tenth of the largest golden score where that is more).
        passed: within tolerance, and the same verdict.
    """

    sample: GoldenSample
    image_score: float
    map_max: float
    is_anomalous: bool
    relative_difference: float
    passed: bool


@dataclass(frozen=True)
class SelftestReport:
    """All checks and the tolerance they were held to."""

    tolerance_relative: float
    checks: tuple[SampleCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every golden sample agreed."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class ArithmeticChange:
    """A detector that computes otherwise than the build did, measured on the golden samples.

    Attributes:
        built, here: "provider precision" of both.
        samples: golden samples scored.
        largest_difference: of an image score, relative as in `SampleCheck`.
        flips: samples whose verdict is another, with both scores.
    """

    built: str
    here: str
    samples: int
    largest_difference: float
    flips: tuple[str, ...] = ()

    def __str__(self) -> str:
        verdicts = "all verdicts are the same"
        if self.flips:
            verdicts = f"{len(self.flips)} verdicts are others ({'; '.join(self.flips)})"
        return (
            f"the embedder runs on {self.here}, the build used {self.built}: image scores of the "
            f"{self.samples} golden samples differ by at most {self.largest_difference:.2g} (relative), "
            f"{verdicts}"
        )


def check_changed_arithmetic(
    detector: "AnomalyDetector", *, allow_flips: bool = False, advice: str = ""
) -> ArithmeticChange | None:
    """Score the golden samples where provider or precision are not the build's.

    Verdicts are those at the bundle's own threshold, whatever is in force.

    Args:
        detector: made from a bundle.
        allow_flips: go on whatever changed; somebody looked at it.
        advice: what else can be done about a change that is too large.

    Returns:
        What changed, or None where nothing did.

    Raises:
        BackendError: a verdict changes, or a score by more than any rounding.
        BundleError: the bundle holds no golden samples to measure with.
    """
    change = _measured_change(detector)
    if change is None or allow_flips:
        return change
    if change.flips or not change.largest_difference <= _LARGEST_DRIFT:
        threshold = detector.manifest.scoring.threshold
        raise BackendError(
            f"The embedder on {change.here} gives other results than on {change.built}, which the build "
            f"used: golden samples differ by up to {change.largest_difference:.2g} (relative), "
            f"{'; '.join(change.flips) or 'no verdict changes'}; "
            f"threshold {threshold.value if threshold else math.inf:.4f}. Expected equal verdicts; "
            f"run it on {change.built}, or build the bundle for this device{advice}."
        )
    return change


def _measured_change(detector: "AnomalyDetector") -> ArithmeticChange | None:
    spec, bundle = detector.manifest.embedding, detector.bundle
    # Bundles of the first schema do not name the provider, which was onnxruntime's.
    same_provider = detector.provider == spec.provider or (
        spec.provider is None and detector.provider != "openvino"
    )
    if bundle is None or (same_provider and detector.precision == spec.precision):
        return None
    golden = _golden_samples(bundle)
    # Without a certificate a score may be wrong by the search alone, which is not what is asked here.
    judge = detector.with_exact_search() if detector.exactness == "none" else detector
    scores = [judge(_golden_image(bundle, sample)).image_score for sample in golden.samples]
    threshold = detector.manifest.scoring.threshold
    limit = threshold.value if threshold else math.inf
    flips = tuple(
        f"{sample.file} {score:.4f} in place of {sample.image_score:.4f}"
        for score, sample in zip(scores, golden.samples, strict=True)
        if (score > limit) != sample.is_anomalous
        and not _close_to_threshold(sample.image_score, limit, golden.tolerance_relative)
    )
    return ArithmeticChange(
        built=f"{spec.provider or 'onnxruntime'} {spec.precision}",
        here=f"{detector.provider} {detector.precision}",
        samples=len(scores),
        largest_difference=max(
            _relative(score, sample.image_score, _smallest_scale(golden))
            for score, sample in zip(scores, golden.samples, strict=True)
        ),
        flips=flips,
    )


def run_selftest(detector: "AnomalyDetector") -> SelftestReport:
    """Score every golden sample and compare with the build's results.

    The detector must use the bundle's own thresholds, because verdicts are compared too. Where its arithmetic
    is not the build's, scores are held to what `check_changed_arithmetic` allows.

    Raises:
        BundleError: the bundle holds no golden samples.
    """
    bundle = detector.bundle
    if bundle is None:
        raise BundleError("This detector was not made from a bundle. Expected one from AnomalyDetector.load.")
    golden = _golden_samples(bundle)
    tolerance = golden.tolerance_relative if detector.change is None else _LARGEST_DRIFT
    checks = tuple(_check(detector, sample, golden, tolerance) for sample in golden.samples)
    return SelftestReport(tolerance, checks)


def _golden_samples(bundle: Bundle) -> GoldenSamples:
    golden = bundle.golden_samples()
    if not golden.samples:
        raise BundleError(f"{bundle.path} holds no golden samples. Run `pcexport build` again.")
    return golden


def _golden_image(bundle: Bundle, sample: GoldenSample) -> UInt8Array:
    try:
        return decode_image(bundle.read(sample.file))
    except SourceError as error:
        raise BundleError(f"{sample.file} is no golden image: {error} Run `pcexport build` again.") from error


def _smallest_scale(golden: GoldenSamples) -> float:
    """A normal image may score close to 0, where rounding has no relative bound."""
    return _SMALLEST_SCALE * max(sample.image_score for sample in golden.samples)


def _check(
    detector: "AnomalyDetector", sample: GoldenSample, golden: GoldenSamples, tolerance: float
) -> SampleCheck:
    assert detector.bundle is not None  # checked by the caller
    smallest_scale = _smallest_scale(golden)
    image = _golden_image(detector.bundle, sample)
    result = detector(image)
    # The map is certified where it is above the threshold alone: its largest value is compared exactly.
    map_max = detector.peaks(image)[1]
    difference = max(
        _relative(result.image_score, sample.image_score, smallest_scale),
        _relative(map_max, sample.map_max, smallest_scale),
    )
    same_verdict = result.is_anomalous == sample.is_anomalous or _close_to_threshold(
        sample.image_score, detector.threshold, golden.tolerance_relative
    )
    passed = difference <= tolerance and same_verdict
    return SampleCheck(sample, result.image_score, map_max, result.is_anomalous, difference, passed)


def _relative(got: float, expected: float, smallest_scale: float) -> float:
    return abs(got - expected) / max(abs(expected), smallest_scale, _TINY)


def _close_to_threshold(score: float, threshold: float, tolerance: float) -> bool:
    """Whether rounding within the tolerance may turn the verdict: then it is not held against the device."""
    return abs(score - threshold) <= tolerance * abs(threshold)
