"""Replaying the golden samples: does this machine give the verdicts that the build machine gave?"""

from dataclasses import dataclass

from pcrun.bundle import GoldenSample
from pcrun.detector import AnomalyDetector
from pcrun.errors import BundleError, SourceError
from pcrun.image_io import decode_image

# Differences are related to at least this share of the largest golden score.
_SMALLEST_SCALE = 0.1
_TINY = 1e-12


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


def run_selftest(detector: AnomalyDetector) -> SelftestReport:
    """Score every golden sample and compare with the build's results.

    The detector must use the bundle's own thresholds, because verdicts are compared too.

    Raises:
        BundleError: the bundle holds no golden samples.
    """
    bundle = detector.bundle
    if bundle is None:
        raise BundleError("This detector was not made from a bundle. Expected one from AnomalyDetector.load.")
    golden = bundle.golden_samples()
    if not golden.samples:
        raise BundleError(f"{bundle.path} holds no golden samples. Run `pcexport build` again.")
    exact = detector.with_exact_search()
    # A normal image may score close to 0, where rounding has no relative bound.
    smallest_scale = _SMALLEST_SCALE * max(sample.image_score for sample in golden.samples)
    checks = tuple(
        _check(detector, exact, sample, smallest_scale, golden.tolerance_relative)
        for sample in golden.samples
    )
    return SelftestReport(golden.tolerance_relative, checks)


def _check(
    detector: AnomalyDetector,
    exact: AnomalyDetector,
    sample: GoldenSample,
    smallest_scale: float,
    tolerance: float,
) -> SampleCheck:
    assert detector.bundle is not None  # checked by the caller
    try:
        image = decode_image(detector.bundle.read(sample.file))
    except SourceError as error:
        raise BundleError(f"{sample.file} is no golden image: {error} Run `pcexport build` again.") from error
    result = detector(image)
    # Only the image score is certified in an approximate search: the map is compared exactly.
    map_max = float(exact(image).anomaly_map.max())
    difference = max(
        _relative(result.image_score, sample.image_score, smallest_scale),
        _relative(map_max, sample.map_max, smallest_scale),
    )
    same_verdict = result.is_anomalous == sample.is_anomalous or _close_to_threshold(
        sample.image_score, detector.threshold, tolerance
    )
    passed = difference <= tolerance and same_verdict
    return SampleCheck(sample, result.image_score, map_max, result.is_anomalous, difference, passed)


def _relative(got: float, expected: float, smallest_scale: float) -> float:
    return abs(got - expected) / max(abs(expected), smallest_scale, _TINY)


def _close_to_threshold(score: float, threshold: float, tolerance: float) -> bool:
    """Whether rounding within the tolerance may turn the verdict: then it is not held against the device."""
    return abs(score - threshold) <= tolerance * abs(threshold)
