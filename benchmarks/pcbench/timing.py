"""Timing several jobs in turns, so that a drift of the machine's speed reaches all of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Not item by item: the threads of one job may still spin when the next begins.
BLOCK_ITEMS = 25
WARM_UP_ITEMS = 5
WARM_UP_NOTE = f"{WARM_UP_ITEMS} items before every {BLOCK_ITEMS}"


def in_turns(jobs: Mapping[str, Callable[[Any], Any]], items: Sequence[Any]) -> dict[str, list[float]]:
    """Milliseconds of every job for every item.

    Args:
        jobs: name to function of one item.
        items: what is handed to each job, in blocks; a block's first items are run before, as a warm-up.
    """
    samples: dict[str, list[float]] = {name: [] for name in jobs}
    for start in range(0, len(items), BLOCK_ITEMS):
        block = items[start : start + BLOCK_ITEMS]
        for name, job in jobs.items():
            for item in block[:WARM_UP_ITEMS]:
                job(item)
            for item in block:
                started = time.perf_counter()
                job(item)
                samples[name].append((time.perf_counter() - started) * 1e3)
    return samples


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median, 90th percentile and number of samples."""
    return {
        "median_ms": round(float(np.median(samples)), 3),
        "p90_ms": round(float(np.percentile(samples, 90)), 3),
        "samples": len(samples),
    }
