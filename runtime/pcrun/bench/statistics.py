"""Latencies summed up without leaving any out, and how many of them a percentile needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
# A larger standard deviation, relative to the mean, is called unstable.
UNSTABLE = 0.2
# So much slower at the end than at the beginning is a drift: heat, or memory.
_DRIFT = 0.1
_FEWEST_FOR_DRIFT = 30


@dataclass(frozen=True)
class Summary:
    """Latencies in milliseconds; percentiles as numpy's, linear between neighbours.

    Attributes:
        std: of a sample (n - 1); 0 for a single one.
    """

    count: int
    min: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float
    std: float

    @property
    def variation(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return self.std / self.mean if self.mean > 0 else 0.0


def summarise(samples_ms: Sequence[float]) -> Summary:
    """Sum up at least one latency."""
    values = np.asarray(samples_ms, np.float64)
    median, p90, p95, p99 = (float(v) for v in np.percentile(values, (50, 90, 95, 99)))
    return Summary(
        count=len(values),
        min=float(values.min()),
        mean=float(values.mean()),
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(values.max()),
        std=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
    )


def queries_needed(percentile: float) -> int:
    """Latencies for which the largest is above the percentile with 95 % confidence.

    With fewer, nothing that was seen bounds the percentile from above: q^n > 0.05.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(percentile / 100))


def upper_bound(samples_ms: Sequence[float], percentile: float) -> float | None:
    """What the percentile is not above, with 95 % confidence; None with too few latencies.

    The order statistic of distribution-free intervals: the smallest r with P(Binomial(n, q) < r) >= 0.95.
    """
    n, q = len(samples_ms), percentile / 100
    if n < queries_needed(percentile):
        return None
    below = 0.0
    for successes in range(n):
        log_term = (
            math.lgamma(n + 1)
            - math.lgamma(successes + 1)
            - math.lgamma(n - successes + 1)
            + successes * math.log(q)
            + (n - successes) * math.log(1 - q)
        )
        below += math.exp(log_term)
        if below >= CONFIDENCE:
            return float(np.partition(np.asarray(samples_ms, np.float64), successes)[successes])
    return float(max(samples_ms))


def drift(samples_ms: Sequence[float]) -> float | None:
    """How much slower the last third is than the first, by medians; None for few samples or a small drift."""
    if len(samples_ms) < _FEWEST_FOR_DRIFT:
        return None
    third = len(samples_ms) // 3
    first, last = np.median(samples_ms[:third]), np.median(samples_ms[-third:])
    change = float(last / first - 1) if first > 0 else 0.0
    return change if abs(change) > _DRIFT else None
