"""Nearest-neighbour search in the memory bank: exact, or approximate through an HNSW index.

Both report Euclidean distances. An HNSW search can only miss neighbours, so its distances are never too
small: `pcrun.scoring` builds the certificate of the image score on that one-sidedness.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pcrun.errors import BackendError
from pcrun.threads import blas_threads
from pcrun.types import FloatArray, Int64Array

if TYPE_CHECKING:
    import hnswlib

# Rows of the bank per matrix product: bounds the product of 784 patches to about 12 MiB.
_BLOCK_ROWS = 4096


class PatchSearch(Protocol):
    """Finds the nearest memory-bank entry of each patch embedding."""

    name: str
    exact: bool

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """Distances and ids of the nearest entries.

        Args:
            queries: (patches, dim) float32.

        Returns:
            (patches,) float32 Euclidean distances (>= the true ones; equal when `exact`), (patches,) int64
            row ids.
        """


class ExactSearch:
    """Brute force by blocked matrix products; the truth that everything else is compared with."""

    name = "exact"
    exact = True

    def __init__(self, rows: FloatArray, *, threads: int) -> None:
        """Keep a reference to `rows`, (count, dim) float32; `threads` is the number BLAS may use."""
        self._rows = rows
        self._threads = threads
        # Norms are taken from the rows' mean: embeddings are far from the origin, which would cost digits.
        self._centre = rows.mean(axis=0)
        self._half_norms = np.concatenate(
            [
                _half_squares(rows[i : i + _BLOCK_ROWS] - self._centre)
                for i in range(0, len(rows), _BLOCK_ROWS)
            ]
        )

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


class HnswSearch:
    """Approximate search in an HNSW graph (Malkov and Yashunin, 2018) by hnswlib."""

    name = "hnsw"
    exact = False

    def __init__(self, index: "hnswlib.Index", *, ef: int, threads: int) -> None:
        """Use a loaded index.

        `ef` (candidates kept per query) must be set after each load, it is not in the file.
        """
        if ef < 1:
            raise ValueError(f"ef must be at least 1, got {ef}")
        self._index = index
        self._threads = threads
        self.ef = ef
        index.set_ef(ef)

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """See `PatchSearch.nearest`."""
        ids, squared = self._index.knn_query(queries, k=1, num_threads=self._threads)
        # hnswlib's "l2" is the squared distance: this is the one square root.
        return np.sqrt(squared[:, 0]), ids[:, 0].astype(np.int64)


def euclidean(a: FloatArray, b: FloatArray) -> FloatArray:
    """Row by row Euclidean distance of two (n, dim) float32 arrays, (n,) float32."""
    difference = a - b
    distances: FloatArray = np.sqrt(np.einsum("ij,ij->i", difference, difference))
    return distances


def _half_squares(rows: FloatArray) -> FloatArray:
    squares: FloatArray = np.einsum("ij,ij->i", rows, rows)
    return squares * np.float32(0.5)


def hnswlib_problem() -> str | None:
    """Why hnswlib cannot be used on this machine, or None when it can."""
    try:
        import hnswlib  # noqa: F401
    except ImportError as error:
        return f"hnswlib cannot be imported ({error})"
    return None


def load_hnsw_index(path: Path, rows: FloatArray) -> "hnswlib.Index":
    """Load an index file that `pcrun.hnsw_file.check_hnsw_file` has accepted for these rows.

    Raises:
        BackendError: hnswlib is not usable here, or refuses the file.
    """
    problem = hnswlib_problem()
    if problem:
        raise BackendError(f"{problem}. Install it (`pip install hnswlib`) or use exact search.")
    import hnswlib

    index = hnswlib.Index(space="l2", dim=rows.shape[1])
    try:
        index.load_index(str(path), max_elements=len(rows))
    except RuntimeError as error:
        raise BackendError(
            f"hnswlib refuses {path.name} ({error}). Use exact search and report this."
        ) from error
    return index
