"""Approximate search in an HNSW graph (Malkov and Yashunin, 2018) by hnswlib."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcrun.errors import BackendError
from pcrun.machine.threads import SharedWork, blas_threads, even_parts
from pcrun.search.exact import euclidean
from pcrun.types import FloatArray, Int64Array

if TYPE_CHECKING:
    import hnswlib


# A refined search keeps so many times the candidates.
_REFINED_EF = 8


class HnswSearch:
    """Search in the graph of a bundle; its cost hardly grows with the bank."""

    name = "hnsw"
    exact = False

    def __init__(
        self,
        index: "hnswlib.Index",
        rows: FloatArray,
        *,
        ef: int,
        threads: int,
        basis: FloatArray | None = None,
    ) -> None:
        """Use a loaded index.

        Args:
            index: over `rows`, or over `rows @ basis`.
            rows: (count, dim) float32, the memory bank.
            ef: candidates kept per query; must be set after each load, it is not in the file.
            threads: each takes a share of the patches.
            basis: (dim, index dim) float32 with orthonormal columns.
        """
        if ef < 1:
            raise ValueError(f"ef must be at least 1, got {ef}")
        self._index = index
        self._rows = rows
        self._basis = basis
        self._threads = threads
        self._work = SharedWork(threads, "search")
        self.ef = ef
        index.set_ef(ef)

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """See `PatchSearch.nearest`."""
        ids = np.empty(len(queries), np.int64)
        distances = np.empty(len(queries), np.float32)
        jobs = [
            partial(self._search, queries[part], distances[part], ids[part])
            for part in even_parts(len(queries), min(self._threads, len(queries)))
        ]
        with blas_threads(1):
            self._work.run(jobs)
        return distances, ids

    def refine(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """As `nearest`, looking several times as far; for few patches."""
        self._index.set_ef(_REFINED_EF * self.ef)
        try:
            return self.nearest(queries)
        finally:
            self._index.set_ef(self.ef)

    def _search(self, queries: FloatArray, distances: FloatArray, ids: Int64Array) -> None:
        seen = queries if self._basis is None else queries @ self._basis
        # hnswlib would start threads anew for each call.
        found, _ = self._index.knn_query(seen, k=1, num_threads=1)
        ids[:] = found[:, 0]
        # The index's own distances are squared, and those of the reduced rows where there is a basis.
        distances[:] = euclidean(queries, self._rows[ids])


def hnswlib_problem() -> str | None:
    """Why hnswlib cannot be used on this machine, or None when it can."""
    try:
        import hnswlib  # noqa: F401
    except ImportError as error:
        return f"hnswlib cannot be imported ({error})"
    return None


def load_hnsw_index(path: Path, *, count: int, dim: int) -> "hnswlib.Index":
    """Load an index file that `check_hnsw_file` of `pcrun.bundle` has accepted for `count` rows of `dim`.

    Raises:
        BackendError: hnswlib is not usable here, or refuses the file.
    """
    problem = hnswlib_problem()
    if problem:
        raise BackendError(f"{problem}. Install it (`pip install hnswlib`) or choose another --search.")
    import hnswlib

    index = hnswlib.Index(space="l2", dim=dim)
    try:
        index.load_index(str(path), max_elements=count)
    except RuntimeError as error:
        raise BackendError(
            f"hnswlib refuses {path.name} ({error}). Choose another --search and report this."
        ) from error
    return index
