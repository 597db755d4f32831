"""A test for latencies of two runs, each a series whose neighbours are alike.

Latencies are not independent: a clock that falls, or a neighbour that wakes up, slows many queries in a row.
Tests that take them for independent (Mann-Whitney, a plain bootstrap) then see differences where there are
none. So each series is cut into few long blocks (batch means; Conway 1963), long enough for their medians to
be nearly independent, and the logarithms of those medians are compared by Welch's t-test.

Two processes of the same program differ, too: where memory lies, what the machine did before. Where both
sides were measured in several, the blocks are the processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

CONFIDENCE = 0.95
# In autocorrelation times. In simulations with 100 queries and a lag-1 correlation of 0.8, noise was called a
# difference in a tenth of the cases with 2, and in a twentieth at most with 4.
_BLOCK_TIMES = 4
# A median of fewer is not yet safe from single slow queries.
_SHORTEST_BLOCK = 5
_FEWEST_BLOCKS, _MOST_BLOCKS = 4, 10
_ROUNDING = 1e-12
# Sokal's rule: sum up to so many autocorrelation times.
_WINDOW_TIMES = 5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """Typical latency of the new series over that of the old one.

    Attributes:
        log_ratio: natural logarithm of the ratio.
        error: its standard error.
        freedom: degrees of freedom of the t distribution.
    """

    log_ratio: float
    error: float
    freedom: float

    @property
    def ratio(self) -> float:
        """New over old."""
        return math.exp(self.log_ratio)

    @property
    def interval(self) -> tuple[float, float]:
        """The ratio's, at 95 % confidence, of this comparison alone."""
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.error
        return math.exp(self.log_ratio - reach), math.exp(self.log_ratio + reach)

    @property
    def p_differs(self) -> float:
        """Two-sided: how often chance alone gives so large a difference."""
        return min(1.0, 2 * self._beyond(abs(self.log_ratio)))

    def p_above(self, factor: float) -> float:
        """One-sided: how often chance gives this where the true ratio is at most `factor`."""
        return self._beyond(self.log_ratio - math.log(factor))

    def _beyond(self, distance: float) -> float:
        # Blocks that differ by nothing but rounding.
        if self.error < _ROUNDING:
            return 0.5 if abs(distance) < _ROUNDING else float(distance < 0)
        return float(stats.t.sf(distance / self.error, self.freedom))


def compare(old_ms: Sequence[float], new_ms: Sequence[float]) -> Difference | None:
    """Compare two series of latencies; None where one is too short for how slowly it varies.

    Args:
        old_ms, new_ms: in the order of the queries, > 0.
    """
    old, new = block_medians(old_ms), block_medians(new_ms)
    return None if old is None or new is None else _welch(old, new)


def compare_runs(old_ms: Sequence[Sequence[float]], new_ms: Sequence[Sequence[float]]) -> Difference:
    """Compare two sides of at least two processes each, by the medians of the processes.

    Args:
        old_ms, new_ms: latencies of each process, > 0.
    """
    old, new = (np.log([np.median(samples) for samples in side]) for side in (old_ms, new_ms))
    return _welch(old, new)


def _welch(old: Floats, new: Floats) -> Difference:
    """Compare the means of two samples of logarithms, of at least two values each."""
    shares = np.array([old.var(ddof=1) / len(old), new.var(ddof=1) / len(new)])
    within = np.array([len(old) - 1, len(new) - 1])
    spread = float(shares.sum())
    freedom = spread**2 / float((shares**2 / within).sum()) if spread > 0 else float(within.sum())
    return Difference(float(new.mean() - old.mean()), math.sqrt(spread), freedom)


def block_medians(samples_ms: Sequence[float]) -> Floats | None:
    """Natural logarithms of the medians of 4 to 10 blocks; None where not even 4 fit."""
    values = np.asarray(samples_ms, np.float64)
    length = max(_SHORTEST_BLOCK, math.ceil(_BLOCK_TIMES * autocorrelation_time(values)))
    blocks = min(_MOST_BLOCKS, len(values) // length)
    if blocks < _FEWEST_BLOCKS:
        return None
    return np.log([np.median(part) for part in np.array_split(values, blocks)])


def autocorrelation_time(values: Floats) -> float:
    """So many queries of a series say as much as one independent query; at least 1.

    Of ranks, so that single slow queries do not hide what the others have in common. The larger of two
    estimates: the sum of the autocorrelations, and that of a first-order process with the same lag-1
    correlation, corrected for its bias in short series (Kendall 1954).
    """
    ranks = stats.rankdata(values) - (len(values) + 1) / 2
    power = float(ranks @ ranks)
    if power == 0:
        return 1.0
    spectrum = np.fft.rfft(ranks, 2 * len(ranks))
    correlations = np.fft.irfft(spectrum * np.conj(spectrum))[: len(ranks)] / power
    summed = 1.0
    for lag in range(1, len(ranks) // 3):
        summed += 2 * float(correlations[lag])
        if lag >= _WINDOW_TIMES * max(summed, 1.0):
            break
    lag_1 = float(correlations[1]) if len(ranks) > 1 else 0.0
    lag_1 = min(0.99, lag_1 + (1 + 3 * lag_1) / len(ranks))
    return max(1.0, summed, (1 + lag_1) / (1 - lag_1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for their number (Holm 1979): all those at most 0.05 hold together with 95 % confidence."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
