"""Verification by 8-bit products: they exclude nearly all rows as the nearest one, the rest is measured.

The product of whole numbers is exact, so the distance between a quantised query and a quantised row is known
exactly, and by the triangle inequality what a view shows of the true one differs from it by at most the
lengths of the two rounding errors:

    |  ||q - r|| - ||q' - r'||  |  <=  ||q - q'|| + ||r - r'||

A row farther than that from the query is not nearer than the entry that is already known.
"""

import functools
import threading
from dataclasses import dataclass
from functools import partial

import numpy as np

from pcrun.machine.threads import SharedWork, blas_threads
from pcrun.search.eight_bit import Products, QuantisedRows, lengths_of, open_products, query_bits
from pcrun.search.exact import ExactSearch, euclidean, nearer_of
from pcrun.search.views import Centred, ProjectedWithRest, View
from pcrun.types import AnyArray, FloatArray, Int32Array, Int64Array

# Numbers of patches for which buffers are bound: a product of more than are asked for costs as much.
_SIZES = (8, 16, 32, 64)
# Fewer rows than that are not worth a second thread.
_SHARE_ROWS = 8192
# Rows per product: with 8 patches the int32 sums take 1 MB.
_BLOCK_ROWS = 32_768
# Far above float32 rounding of norms, projections and distances, far below the rounding errors of 8 bits.
_SLACK = 1e-4
# Of the bank's rows, per patch: with more candidates left than that, plain exact search is faster.
_MAX_CANDIDATE_SHARE = 1 / 16
_PAIRS_AT_ONCE = 8192


class QuantisedVerifier:
    """Exact nearest entries of a few patches."""

    def __init__(
        self, rows: FloatArray, *, threads: int, basis: FloatArray | None = None, bits: int | None = None
    ) -> None:
        """Quantise the memory bank.

        Args:
            rows: (count, dim) float32.
            threads: each takes a share of the rows.
            basis: (dim, fewer) float32 with (nearly) orthonormal columns, in which rows are excluded. None
                takes all dimensions: fewer candidates remain, but all numbers must come from memory.
            bits: of queries; None asks the processor.
        """
        self._rows = rows
        self._exact_threads = threads
        centre = rows.mean(axis=0)
        view: View = Centred(centre) if basis is None else ProjectedWithRest(centre, basis)
        threads = max(1, min(threads, len(rows) // _SHARE_ROWS))
        self._quantised = QuantisedRows(
            rows,
            view,
            query_bits=bits or query_bits(),
            block_rows=min(_BLOCK_ROWS, -(-len(rows) // threads)),
        )
        sessions = open_products(self._quantised)
        shares = [range(first, len(sessions), threads) for first in range(threads)]
        self._workers = {size: self._bind(size, sessions, shares) for size in _SIZES}
        self._work = SharedWork(threads, "verify")
        # Another thread's products in the same buffers would exclude the wrong rows.
        self._lock = threading.Lock()

    def _bind(self, size: int, sessions: list[object], shares: list[range]) -> list["_Excluder"]:
        queries = self._quantised.query_buffer(size)
        return [_Excluder(Products(sessions, self._quantised, queries, blocks=share)) for share in shares]

    def nearest(
        self, queries: FloatArray, distances: FloatArray, ids: Int64Array
    ) -> tuple[FloatArray, Int64Array]:
        """Exact distances and ids of the nearest entries.

        Args:
            queries: (patches, dim) float32.
            distances, ids: (patches,) of an entry that is known; its distance bounds the search.
        """
        parts = [slice(i, i + _SIZES[-1]) for i in range(0, len(queries), _SIZES[-1])]
        with self._lock, blas_threads(1):
            found = [self._nearest(queries[part], distances[part], ids[part]) for part in parts]
        return np.concatenate([d for d, _ in found]), np.concatenate([i for _, i in found])

    @functools.cached_property
    def _exact(self) -> ExactSearch:
        """Made when it is needed, which is seldom: it reads the whole bank."""
        return ExactSearch(self._rows, threads=self._exact_threads)

    def _nearest(
        self, queries: FloatArray, distances: FloatArray, ids: Int64Array
    ) -> tuple[FloatArray, Int64Array]:
        workers = self._workers[next(size for size in _SIZES if size >= len(queries))]
        known = _Nearest(queries, distances.copy(), ids.copy())
        bounds = self._encode(queries, workers[0].queries)
        allowed = int(len(queries) * len(self._rows) * _MAX_CANDIDATE_SHARE)
        self._work.run([partial(worker.find, self._rows, known, bounds, allowed) for worker in workers])
        for worker in workers:
            known.update(*worker.best)
        candidates = [pair for worker in workers for pair in worker.candidates]
        if any(worker.gave_up for worker in workers):
            return nearer_of((known.distances, known.ids), self._exact.nearest(queries))
        patches, rows, sums = (np.concatenate(arrays) for arrays in zip(*candidates, strict=True))
        left = sums >= bounds.lowest(known.distances)[patches]
        known.measure(self._rows, patches[left], rows[left])
        return known.distances, known.ids

    def _encode(self, queries: FloatArray, buffer: AnyArray) -> "_Bounds":
        """Write the queries into a buffer; gives what excludes rows by the products."""
        rows = self._quantised
        seen, whole = rows.encode(queries, buffer)
        error = lengths_of(seen - whole * np.float32(rows.grid.query_step)) + rows.row_error
        squares = np.einsum("ij,ij->i", whole, whole, dtype=np.float64) * rows.grid.query_step**2
        slack = _SLACK * (lengths_of(seen) + rows.longest)
        return _Bounds(rows, error, slack, squares)


@dataclass(frozen=True)
class _Bounds:
    """What a product says about the distance of a row, for some queries.

    Attributes:
        rows: the quantised rows.
        errors: (patches,) rounding errors of a query and of the worst row.
        slacks: (patches,) for rounding in float32.
        squares: (patches,) squared lengths of the quantised queries.
    """

    rows: QuantisedRows
    errors: AnyArray
    slacks: AnyArray
    squares: AnyArray

    def lowest(self, distances: FloatArray) -> Int32Array:
        """The smallest product of a row that may be as near as the (patches,) distances.

        With s, t the steps of rows and queries: ||q' - r'||^2 = t^2 |q'|^2 - 2 s t (product + shift), and it
        must not exceed (distance + both rounding errors)^2.
        """
        grid = self.rows.grid
        reach = distances * self.rows.view.stretch + self.errors
        reach += _SLACK * reach + self.slacks
        lowest = (self.squares - reach**2) / (2 * grid.row_step * grid.query_step) - self.rows.shift
        # Offsets were rounded to whole numbers: one unit of margin.
        lowest = np.floor(lowest) - 1
        limits = np.iinfo(np.int32)
        clipped: Int32Array = np.clip(lowest, limits.min, limits.max).astype(np.int32)
        return clipped


@dataclass
class _Nearest:
    """The nearest entries known so far.

    Attributes:
        queries: (patches, dim) float32.
        distances, ids: (patches,), changed in place.
    """

    queries: FloatArray
    distances: FloatArray
    ids: Int64Array

    def copy(self) -> "_Nearest":
        """One whose distances and ids change on their own."""
        return _Nearest(self.queries, self.distances.copy(), self.ids.copy())

    def update(self, distances: FloatArray, ids: Int64Array) -> None:
        """Take over what is nearer, from (patches,) entries."""
        nearer = distances < self.distances
        self.distances[nearer] = distances[nearer]
        self.ids[nearer] = ids[nearer]

    def measure_one_each(self, bank: FloatArray, patches: Int64Array, rows: Int64Array) -> None:
        """Take over what is nearer, from pairs of a patch and a row in which no patch is twice."""
        measured = euclidean(self.queries[patches], bank[rows])
        nearer = np.flatnonzero(measured < self.distances[patches])
        self.distances[patches[nearer]] = measured[nearer]
        self.ids[patches[nearer]] = rows[nearer]

    def measure(self, bank: FloatArray, patches: Int64Array, rows: Int64Array) -> None:
        """Take over what is nearer, from any pairs of a patch and a row; of equally near rows the first."""
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            patch, row = patches[start : start + _PAIRS_AT_ONCE], rows[start : start + _PAIRS_AT_ONCE]
            measured = euclidean(self.queries[patch], bank[row])
            order = np.lexsort((row, measured, patch))
            first = order[np.flatnonzero(np.diff(patch[order], prepend=-1))]
            patch, row, measured = patch[first], row[first], measured[first]
            nearer = measured < self.distances[patch]
            self.distances[patch[nearer]] = measured[nearer]
            self.ids[patch[nearer]] = row[nearer]


class _Excluder:
    """One thread's share of the rows, and what it found there.

    Attributes:
        queries: (patches, width) uint8, to encode into.
        candidates: patches, rows and their products: what may be the nearest entry, one triple per block.
        best: (patches,) distances and ids of the nearest entries met.
        gave_up: whether there were too many candidates.
    """

    def __init__(self, products: Products) -> None:
        self._products = products
        self.queries = products.queries
        self.candidates: list[tuple[Int64Array, Int64Array, Int32Array]] = []
        self.best: tuple[FloatArray, Int64Array] = (np.empty(0, np.float32), np.empty(0, np.int64))
        self.gave_up = False

    def find(self, bank: FloatArray, known: _Nearest, bounds: _Bounds, allowed: int) -> None:
        """Go through the rows; gives up beyond `allowed` candidates."""
        self.candidates, self.gave_up = [], False
        found = known.copy()
        patches = len(known.queries)
        everyone = np.arange(patches)
        lowest = bounds.lowest(found.distances)
        for start, all_sums in self._products:
            sums = all_sums[:patches]
            top = sums.argmax(axis=1)
            promising = np.flatnonzero(sums[everyone, top] >= lowest)
            if len(promising):
                # The known entry of a patch may be far off: a nearer one leaves far fewer candidates.
                found.measure_one_each(bank, promising, top[promising] + start)
                lowest = bounds.lowest(found.distances)
            # Flat: numpy finds the few set ones among many several times faster than in two dimensions.
            pairs = np.flatnonzero(sums >= lowest[:, None])
            patch, row = np.divmod(pairs, sums.shape[1])
            self.candidates.append((patch, row + start, sums[patch, row]))
            allowed -= len(pairs)
            if allowed < 0:
                self.gave_up = True
                break
        self.best = (found.distances, found.ids)
