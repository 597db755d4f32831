"""Thread pools that do not fight.

numpy's BLAS keeps worker threads that spin for milliseconds after each product. On a small machine they then
take the cores away from onnxruntime's next frame: measured on 2 cores, one small product per frame with BLAS
on both cores took the ResNet-18 embedder from 7 ms to 25 ms.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import threadpoolctl


def available_cores() -> int:
    """Cores this process may use (container and affinity limits respected where the platform tells)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def blas_threads(threads: int) -> Iterator[None]:
    """Limit BLAS to `threads` threads inside a `with` block."""
    # threadpoolctl's own limiter asks each library for its version too: a tenth of a millisecond each time.
    pools = _blas_pools()
    before = [pool.get_num_threads() for pool in pools]
    for pool in pools:
        pool.set_num_threads(threads)
    try:
        yield
    finally:
        for pool, count in zip(pools, before, strict=True):
            pool.set_num_threads(count)


@functools.cache
def _blas_pools() -> list[Any]:
    # Finding the loaded libraries takes milliseconds: once per process.
    controller = threadpoolctl.ThreadpoolController()
    return list(controller.select(user_api="blas").lib_controllers)


class SharedWork:
    """Runs a few jobs at once: one in the caller's thread, the others in threads that wait for them."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads - 1, name) if threads > 1 else None

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Run all of them, and raise what one of them raises."""
        if self._pool is None:
            for job in jobs:
                job()
            return
        futures = [self._pool.submit(job) for job in jobs[1:]]
        try:
            jobs[0]()
        finally:
            # What they share must not be used again before they are done.
            wait(futures)
        for future in futures:
            future.result()


def even_parts(count: int, parts: int) -> list[slice]:
    """`parts` slices of nearly equal length that cover 0 .. count - 1."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
