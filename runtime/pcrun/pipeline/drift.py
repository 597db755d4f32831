"""Whether a line still scores what normal images scored when the bundle was calibrated; no labels needed.

The comparison is the two-sample Kolmogorov-Smirnov test, exact: the share of lattice paths that stay inside a
band (Hodges, "The significance probability of the Smirnov two-sample test", 1958).
"""

from dataclasses import dataclass, field

import numpy as np

from pcrun.bundle.manifest import Manifest
from pcrun.detector import AnomalyDetector
from pcrun.result import AnomalyResult
from pcrun.sources import Event
from pcrun.types import Float64Array

DEFAULT_WINDOW = 200
# Below it, a window hardly ever has a small p-value; above it, memory and the test's time grow.
SMALLEST_WINDOW, LARGEST_WINDOW = 20, 10_000
# In a row, that must agree.
_WINDOWS = 2
# A drift has a p-value below this ...
P_VALUE = 1e-4
# ... and moves the median by at least this share: with many scores the smallest difference is significant.
SHIFT = 0.05
# Of a patch score of approximate search, where the build measured none.
_DISTANCE_ERROR = 0.02
# k-fold baselines come from memory banks of 80 % of the size (five folds). On magnetic tiles unseen images
# scored 0.7 to 2.6 % less than such a baseline with 30 to 761 images, and up to 10 % less with 14.
_KFOLD_EXCESS = 0.03


@dataclass
class _Statistic:
    """One number per image, compared with what it was.

    Attributes:
        name: as in events.
        baseline: ascending, of normal images.
        fall, rise: shares by which the median must move down or up.
        recent: of the window that is being filled.
        drifted: the state.
        doubted: the last window said otherwise.
    """

    name: str
    baseline: Float64Array
    fall: float
    rise: float
    recent: list[float] = field(default_factory=list)
    drifted: bool = False
    doubted: bool = False

    def judge(self, source: str) -> Event | None:
        """Compare the full window and begin the next; an event where the state changes.

        A baseline is a sample too, and an unlucky one stays: alone, a window of normal scores would then say
        "drift" every fiftieth time and not every ten thousandth. So the next one must say the same.
        """
        window, self.recent = np.array(self.recent), []
        p_value = ks_p_value(self.baseline, window)
        median, normal = float(np.median(window)), float(np.median(self.baseline))
        limit = self.rise if median > normal else self.fall
        # Once it has drifted it must come half of the way back, or a shift near the limit would flicker.
        limit *= 0.5 if self.drifted else 1.0
        drifted = p_value < P_VALUE and abs(median - normal) >= limit * normal
        confirmed = drifted != self.drifted and self.doubted
        self.doubted = drifted != self.drifted and not confirmed
        if not confirmed:
            return None
        self.drifted = drifted
        detail = {
            "statistic": self.name,
            "p_value": float(f"{p_value:.3g}"),
            "window": len(window),
            "median": float(f"{median:.6g}"),
            "baseline_median": float(f"{normal:.6g}"),
        }
        return Event("drift" if drifted else "drift_ended", source, detail)


class DriftWatch:
    """Tells when the scores of a line leave those of normal images, and when they come back.

    Verdicts are compared in windows that do not overlap, and two in a row must agree. Frames without a
    verdict do not count. Another detector (a reloaded bundle) begins anew; one whose bundle has no baseline
    is not watched.

    Attributes:
        verdicts: that were compared or wait for it; 0 where nothing is watched.
        judged: whether there were ever two windows, so that drift could have been told.
    """

    def __init__(self, window: int = DEFAULT_WINDOW) -> None:
        """Prepare.

        Args:
            window: verdicts that are compared at once.
        """
        if not SMALLEST_WINDOW <= window <= LARGEST_WINDOW:
            raise ValueError(f"window must be {SMALLEST_WINDOW} to {LARGEST_WINDOW}, got {window}")
        self.verdicts = 0
        self.judged = False
        self._window = window
        self._windows = 0
        self._detector: AnomalyDetector | None = None
        self._statistics: list[_Statistic] = []

    @property
    def needed(self) -> int:
        """Verdicts without which drift cannot be told."""
        return _WINDOWS * self._window

    def update(self, source: str, detector: AnomalyDetector, result: AnomalyResult) -> list[Event]:
        """Take a verdict; gives the events of what changed by it.

        Args:
            source: name of the line, for events.
            detector: that gave the verdict.
            result: the verdict.
        """
        if detector is not self._detector:
            self._detector = detector
            self._windows = 0
            self._statistics = _statistics(detector.manifest, detector.exactness, _ef(detector))
        values = {"image_score": result.image_score}
        if self._statistics:
            values["patch_median"] = float(np.median(result.patch_scores))
            self.verdicts += 1
        for statistic in self._statistics:
            statistic.recent.append(values[statistic.name])
        # All of them are filled at once.
        if not self._statistics or len(self._statistics[0].recent) < self._window:
            return []
        self._windows += 1
        self.judged |= self._windows == _WINDOWS
        events = [statistic.judge(source) for statistic in self._statistics]
        return [event for event in events if event is not None]


def _statistics(manifest: Manifest, exactness: str, ef: int | None) -> list[_Statistic]:
    baseline = manifest.scoring.baseline
    if baseline is None:
        return []
    excess = _KFOLD_EXCESS + 1 / baseline.images if baseline.method == "kfold" else 0.0
    error = _distance_error(manifest, ef)
    images, patches = np.array(baseline.image_scores), np.array(baseline.patch_medians)
    found = [_Statistic("patch_median", patches, fall=SHIFT + error + excess, rise=SHIFT + error)]
    # Without verification the image score of a search may be far too large.
    if exactness != "none":
        found.insert(0, _Statistic("image_score", images, fall=SHIFT + excess, rise=SHIFT))
    return found


def _ef(detector: AnomalyDetector) -> int | None:
    return detector.settings.ef if detector.settings else None


def _distance_error(manifest: Manifest, ef: int | None) -> float:
    """Relative excess that patch scores may have by their search, here or at the calibration."""
    wanted = ef or manifest.search.ef
    errors = [row.mean_distance_error for row in manifest.search.measured if row.ef <= wanted]
    # Measured in ascending order: that of the nearest smaller width is not too small.
    return _DISTANCE_ERROR if not errors or errors[-1] is None else max(0.0, errors[-1])


def ks_p_value(a: Float64Array, b: Float64Array) -> float:
    """Probability that two samples of one distribution differ by at least as large a gap as these do.

    Exact for distributions without ties, too large (never too small) with them. Below 1e-15 it is rounding.

    Args:
        a, b: the samples, in any order.

    Returns:
        P(D >= observed) of the two-sided two-sample Kolmogorov-Smirnov statistic D.
    """
    a, b = np.sort(a), np.sort(b)
    if len(a) > len(b):
        a, b = b, a
    m, n = len(a), len(b)
    values = np.concatenate([a, b])
    below_a, below_b = np.searchsorted(a, values, side="right"), np.searchsorted(b, values, side="right")
    # D times m times n, in whole numbers.
    gap = int(np.abs(below_a.astype(np.int64) * n - below_b.astype(np.int64) * m).max())
    return min(1.0, max(0.0, 1.0 - _inside(m, n, gap)))


def _inside(m: int, n: int, gap: int) -> float:
    """Share of the paths from (0, 0) to (m, n) on which |i n - j m| < gap at every point (i, j)."""
    if gap == 0:
        return 0.0
    share = np.zeros(n + 1)
    share[: (gap - 1) // m + 1] = 1.0
    for i in range(1, m + 1):
        first, last = max(0, (i * n - gap) // m + 1), min(n, (i * n + gap - 1) // m)
        # A point is reached from below and from the left. The factor turns counts into shares of all paths.
        row = np.cumsum(share[first : last + 1] * (i / (i + n)))
        share[:] = 0.0
        share[first : last + 1] = row
    return float(share[n])
