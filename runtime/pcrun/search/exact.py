"""Brute force in numpy: the truth that every other engine is compared with."""

from functools import partial

import numpy as np

from pcrun.machine.threads import SharedWork, blas_threads, even_parts
from pcrun.types import FloatArray, Int64Array

# Rows of the bank per matrix product: bounds the product of 784 patches to about 12 MiB.
_BLOCK_ROWS = 4096


class ExactSearch:
    """Exact search by blocked matrix products.

    Each thread takes a part of the rows, and BLAS none of its own: after a product its threads spin for a
    tenth of a second, which at the rate of a camera is always.
    """

    name = "exact"
    exact = True

    def __init__(self, rows: FloatArray, *, threads: int) -> None:
        """Keep a reference to `rows`, (count, dim) float32."""
        self._rows = rows
        self._parts = even_parts(len(rows), min(threads, len(rows)))
        self._work = SharedWork(len(self._parts), "exact")
        # Norms are taken from the rows' mean: embeddings are far from the origin, which would cost digits.
        self._centre = rows.mean(axis=0)
        self._half_norms = half_squared_norms(rows, self._centre)

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """See `PatchSearch.nearest`."""
        centred = queries - self._centre
        found = [_Closest(len(queries)) for _ in self._parts]
        with blas_threads(1):
            jobs = [
                partial(self._search, centred, part, best)
                for part, best in zip(self._parts, found, strict=True)
            ]
            self._work.run(jobs)
        for other in found[1:]:
            found[0].update(other.closeness, other.ids)
        ids = found[0].ids
        # The expanded square cancels badly for close pairs; the distance itself is taken from the difference.
        return euclidean(queries, self._rows[ids]), ids

    def _search(self, centred: FloatArray, part: slice, best: "_Closest") -> None:
        """Look through a part of the rows."""
        for start in range(part.start, part.stop, _BLOCK_ROWS):
            block = slice(start, min(start + _BLOCK_ROWS, part.stop))
            # ||q - r||^2 = 2 (||r - c||^2 / 2 - (q - c).r) + (terms without r), for any c.
            closeness = centred @ self._rows[block].T
            closeness -= self._half_norms[block]
            ids = closeness.argmax(axis=1)
            best.update(closeness[np.arange(len(ids)), ids], ids + start)


class _Closest:
    """The closest entry so far of some queries; of equally close ones the first.

    Attributes:
        closeness: (patches,) float32.
        ids: (patches,) int64.
    """

    def __init__(self, patches: int) -> None:
        self.closeness: FloatArray = np.full(patches, -np.inf, np.float32)
        self.ids: Int64Array = np.zeros(patches, np.int64)

    def update(self, closeness: FloatArray, ids: Int64Array) -> None:
        """Take those that are closer."""
        closer = closeness > self.closeness
        self.closeness[closer] = closeness[closer]
        self.ids[closer] = ids[closer]


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
