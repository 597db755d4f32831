"""Replaying the golden samples: does this machine give the verdicts that the build machine gave?"""

from dataclasses import dataclass

from pcrun.bundle import GoldenSample
from pcrun.detector import AnomalyDetector
from pcrun.errors import BundleError, SourceError
from pcrun.image_io import decode_image


@dataclass(frozen=True)
class SampleCheck:
    """One golden sample replayed.

    Attributes:
        sample: what the build recorded.
        image_score, map_max, is_anomalous: what this machine gives.
        relative_difference: the larger of the two scores' relative differences.
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
    checks = tuple(_check(detector, exact, sample, golden.tolerance_relative) for sample in golden.samples)
    return SelftestReport(golden.tolerance_relative, checks)


def _check(
    detector: AnomalyDetector, exact: AnomalyDetector, sample: GoldenSample, tolerance: float
) -> SampleCheck:
    assert detector.bundle is not None  # checked by the caller
    try:
        image = decode_image(bytes(detector.bundle.read(sample.file)))
    except SourceError as error:
        raise BundleError(f"{sample.file} is no golden image: {error} Run `pcexport build` again.") from error
    result = detector(image)
    # Only the image score is certified in an approximate search: the map is compared exactly.
    map_max = float(exact(image).anomaly_map.max())
    difference = max(_relative(result.image_score, sample.image_score), _relative(map_max, sample.map_max))
    passed = difference <= tolerance and result.is_anomalous == sample.is_anomalous
    return SampleCheck(sample, result.image_score, map_max, result.is_anomalous, difference, passed)


def _relative(got: float, expected: float) -> float:
    return abs(got - expected) / max(abs(expected), 1e-6)
