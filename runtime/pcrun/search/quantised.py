"""Exhaustive search among 8-bit rows: integer matrix products find a near entry of each patch."""

import threading
from functools import partial

import numpy as np

from pcrun.machine.threads import SharedWork, blas_threads, even_parts
from pcrun.search.eight_bit import Products, QuantisedRows, lengths_of, open_products, query_bits
from pcrun.search.exact import euclidean
from pcrun.search.views import Centred, Projected
from pcrun.types import FloatArray, Int64Array

# Per product: 8192 rows of 64 bytes stay in the second-level cache, the int32 sums of 98 patches take 3 MB.
_BLOCK_ROWS = 8192
_PATCHES_AT_ONCE = 98


class QuantisedSearch:
    """Finds a near entry of every patch by 8-bit products with all rows."""

    name = "quantised"
    exact = False

    def __init__(
        self, rows: FloatArray, *, threads: int, basis: FloatArray | None = None, bits: int | None = None
    ) -> None:
        """Quantise the memory bank.

        Args:
            rows: (count, dim) float32.
            threads: each takes a share of the patches.
            basis: (dim, reduced dim) float32 with orthonormal columns, to look in fewer dimensions.
            bits: of queries; None asks the processor.
        """
        self._rows = rows
        self._quantised = _quantise(rows, basis, bits or query_bits())
        sessions = open_products(self._quantised)
        blocks = range(len(sessions))
        self._workers = [
            Products(sessions, self._quantised, self._quantised.query_buffer(_PATCHES_AT_ONCE), blocks=blocks)
            for _ in range(threads)
        ]
        self._work = SharedWork(threads, "search")
        # The workers' buffers serve one image at a time, however many threads of the caller's ask.
        self._lock = threading.Lock()

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """See `PatchSearch.nearest`."""
        ids = np.empty(len(queries), np.int64)
        distances = np.empty(len(queries), np.float32)
        jobs = [
            partial(self._search, queries[part], worker, distances[part], ids[part])
            for worker, part in zip(self._workers, even_parts(len(queries), len(self._workers)), strict=True)
        ]
        # Threads share the patches; each product and each BLAS call runs in one.
        with self._lock, blas_threads(1):
            self._work.run(jobs)
        return distances, ids

    def _search(
        self, queries: FloatArray, products: Products, distances: FloatArray, ids: Int64Array
    ) -> None:
        for start in range(0, len(queries), _PATCHES_AT_ONCE):
            part = slice(start, min(start + _PATCHES_AT_ONCE, len(queries)))
            self._quantised.encode(queries[part], products.queries)
            ids[part] = _best(products, part.stop - part.start)
        distances[:] = euclidean(queries, self._rows[ids])


def _quantise(rows: FloatArray, basis: FloatArray | None, bits: int) -> QuantisedRows:
    centre = rows.mean(axis=0)
    if basis is None:
        return QuantisedRows(rows, Centred(centre), query_bits=bits, block_rows=_BLOCK_ROWS)
    # What lies off the subspace is taken to be orthogonal between any two vectors: its squares add up.
    lengths = np.concatenate(
        [lengths_of(rows[i : i + _BLOCK_ROWS] - centre) for i in range(0, len(rows), _BLOCK_ROWS)]
    )
    view = Projected(centre, basis)
    return QuantisedRows(rows, view, query_bits=bits, block_rows=_BLOCK_ROWS, full_lengths=lengths)


def _best(products: Products, patches: int) -> Int64Array:
    """Number of the row with the largest product, per patch; the first among equals."""
    best = np.full(patches, np.iinfo(np.int64).min)
    ids = np.zeros(patches, np.int64)
    everyone = np.arange(patches)
    for start, sums in products:
        found = sums[:patches].argmax(axis=1)
        values = sums[everyone, found]
        better = values > best
        best[better] = values[better]
        ids[better] = found[better] + start
    return ids
