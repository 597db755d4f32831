"""Approximate search in an HNSW graph (Malkov and Yashunin, 2018) by hnswlib."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcrun.errors import BackendError
from pcrun.search.exact import euclidean
from pcrun.threads import blas_threads
from pcrun.types import FloatArray, Int64Array

if TYPE_CHECKING:
    import hnswlib


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
            threads: hnswlib starts them anew for each call.
            basis: (dim, index dim) float32 with orthonormal columns.
        """
        if ef < 1:
            raise ValueError(f"ef must be at least 1, got {ef}")
        self._index = index
        self._rows = rows
        self._basis = basis
        self._threads = threads
        self.ef = ef
        index.set_ef(ef)

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """See `PatchSearch.nearest`."""
        if self._basis is None:
            seen = queries
        else:
            with blas_threads(1):
                seen = queries @ self._basis
        ids, _ = self._index.knn_query(seen, k=1, num_threads=self._threads)
        found = ids[:, 0].astype(np.int64)
        # The index's own distances are squared, and those of the reduced rows where there is a basis.
        return euclidean(queries, self._rows[found]), found


def hnswlib_problem() -> str | None:
    """Why hnswlib cannot be used on this machine, or None when it can."""
    try:
        import hnswlib  # noqa: F401
    except ImportError as error:
        return f"hnswlib cannot be imported ({error})"
    return None


def load_hnsw_index(path: Path, *, count: int, dim: int) -> "hnswlib.Index":
    """Load an index file that `pcrun.hnsw_file.check_hnsw_file` has accepted for `count` rows of `dim`.

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
