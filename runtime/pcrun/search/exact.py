"""Brute force in numpy: the truth that every other engine is compared with."""

import numpy as np

from pcrun.threads import blas_threads
from pcrun.types import FloatArray, Int64Array

# Rows of the bank per matrix product: bounds the product of 784 patches to about 12 MiB.
_BLOCK_ROWS = 4096


class ExactSearch:
    """Exact search by blocked matrix products."""

    name = "exact"
    exact = True

    def __init__(self, rows: FloatArray, *, threads: int) -> None:
        """Keep a reference to `rows`, (count, dim) float32; `threads` is the number BLAS may use."""
        self._rows = rows
        self._threads = threads
        # Norms are taken from the rows' mean: embeddings are far from the origin, which would cost digits.
        self._centre = rows.mean(axis=0)
        self._half_norms = half_squared_norms(rows, self._centre)

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """See `PatchSearch.nearest`."""
        with blas_threads(self._threads):
            ids = self._nearest_ids(queries)
        # The expanded square cancels badly for close pairs; the distance itself is taken from the difference.
        return euclidean(queries, self._rows[ids]), ids

    def _nearest_ids(self, queries: FloatArray) -> Int64Array:
        best = np.full(len(queries), -np.inf, np.float32)
        ids = np.zeros(len(queries), np.int64)
        centred = queries - self._centre
        for start in range(0, len(self._rows), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            # ||q - r||^2 = 2 (||r - c||^2 / 2 - (q - c).r) + (terms without r), for any c.
            closeness = centred @ self._rows[block].T
            closeness -= self._half_norms[block]
            block_ids = closeness.argmax(axis=1)
            block_best = closeness[np.arange(len(queries)), block_ids]
            better = block_best > best
            best[better] = block_best[better]
            ids[better] = block_ids[better] + start
        return ids


def euclidean(a: FloatArray, b: FloatArray) -> FloatArray:
    """Row by row Euclidean distance of two (n, dim) float32 arrays, (n,) float32."""
    difference = a - b
    distances: FloatArray = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return distances


def nearer_of(
    known: tuple[FloatArray, Int64Array], found: tuple[FloatArray, Int64Array]
) -> tuple[FloatArray, Int64Array]:
    """The nearer of two entries per patch, each given as distances and ids.

    Which of several rows that are equally near but for rounding a matrix product finds is luck.
    """
    nearer = found[0] < known[0]
    return np.where(nearer, found[0], known[0]), np.where(nearer, found[1], known[1])


def half_squared_norms(rows: FloatArray, centre: FloatArray) -> FloatArray:
    """||r - c||^2 / 2 of each of the (n, dim) rows, (n,) float32, without a copy of them all."""
    parts = []
    for start in range(0, len(rows), _BLOCK_ROWS):
        shifted = rows[start : start + _BLOCK_ROWS] - centre
        parts.append(np.einsum("ij,ij->i", shifted, shifted) * np.float32(0.5))
    return np.concatenate(parts)
