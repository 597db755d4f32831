"""Thread pools that do not fight.

numpy's BLAS keeps worker threads that spin for milliseconds after each product. On a small machine they then
take the cores away from onnxruntime's next frame: measured on 2 cores, one small product per frame with BLAS
on both cores took the ResNet-18 embedder from 7 ms to 25 ms.
"""

import contextlib
import functools
import os

import threadpoolctl


def available_cores() -> int:
    """Cores this process may use (container and affinity limits respected where the platform tells)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def blas_threads(threads: int) -> "contextlib.AbstractContextManager[object]":
    """Limit BLAS to `threads` threads inside a `with` block."""
    limiter: contextlib.AbstractContextManager[object] = _controller().limit(limits=threads, user_api="blas")
    return limiter


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    # Finding the loaded libraries takes milliseconds: once per process.
    return threadpoolctl.ThreadpoolController()
