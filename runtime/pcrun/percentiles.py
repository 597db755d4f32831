"""The percentiles by which latencies are shown everywhere."""

from collections.abc import Sequence

import numpy as np

SHOWN = (50, 90, 99)


def percentiles(samples: Sequence[float], *, digits: int) -> dict[str, float]:
    """p50, p90 and p99 as numpy has them, linear between neighbours, rounded; needs at least one sample."""
    values = np.percentile(samples, SHOWN)
    return {f"p{p}": round(float(value), digits) for p, value in zip(SHOWN, values, strict=True)}
