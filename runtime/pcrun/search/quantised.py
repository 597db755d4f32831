"""Exhaustive search among 8-bit rows: onnxruntime's integer matrix product, and what it proves.

Rows and queries become whole numbers on a fixed grid. The product of those is exact, so the distance between
a quantised query and a quantised row is known exactly, and by the triangle inequality the true one differs
from it by at most the lengths of the two rounding errors:

    |  ||q - r|| - ||q' - r'||  |  <=  ||q - q'|| + ||r - r'||

`QuantisedSearch` uses the products to find a near entry of every patch, `QuantisedVerifier` to exclude all
entries that cannot be the nearest one, so that few exact distances remain.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcrun.onnx_write import Node, Tensor, onnx_model
from pcrun.search.exact import ExactSearch, euclidean, nearer_of
from pcrun.session import import_onnxruntime, open_graph
from pcrun.threads import blas_threads
from pcrun.types import AnyArray, FloatArray, Int64Array

# Rows per product: 8192 rows of 64 bytes stay in the second-level cache beside the sums.
_BLOCK_ROWS = 8192
# Patches per product of the search: with 8192 rows the int32 sums take 3 MB.
_SEARCH_PATCHES = 98
_VERIFY_PATCHES = 64
_LARGEST_DIGIT = 127
# Longer rows might overflow the int32 sums.
MAX_DIM = 16_384
# The grid is never finer than this share of the longest row, which bounds the offsets' size in grid units.
_FINEST_GRID = 1 / 4064
_SMALLEST_STEP = 1e-30
# Far above float32 rounding of norms and distances, far below the rounding errors of 8 bits.
_SLACK = 1e-5
# Of the bank's rows, per patch: with more candidates left than that, plain exact search is faster.
_MAX_CANDIDATE_SHARE = 1 / 16
_PAIRS_AT_ONCE = 8192


@dataclass(frozen=True)
class _Grid:
    """How queries and rows become whole numbers.

    Attributes:
        row_step, query_step: size of one unit.
        zero: added to a quantised query, which makes it unsigned.
        lowest, highest: range of a quantised query.
    """

    row_step: float
    query_step: float
    zero: int
    lowest: int
    highest: int


class QuantisedRows:
    """Rows as columns of 8-bit matrices, with their offsets in further dimensions.

    For a query q' and a row r' the product is q'.r' - offset(r) in units of both steps, an exact int32: the
    offset, a whole number, is written as 8-bit digits against constants that each query carries.
    """

    def __init__(self, rows: FloatArray, *, basis: FloatArray | None, query_bits: int) -> None:
        """Quantise `rows`, (count, dim) float32, seen through `basis`, (dim, reduced dim), where given.

        Args:
            rows: at least one, finite.
            basis: orthonormal columns; then the offset holds the full length of each row, so that the
                product approximates closeness in the full space.
            query_bits: 8, or 7 for processors whose 8-bit products saturate.
        """
        self.centre = rows.mean(axis=0)
        self.basis = basis
        self._centre_seen = self.centre if basis is None else self.centre @ basis
        parts = [self._seen(rows[i : i + _BLOCK_ROWS]) for i in range(0, len(rows), _BLOCK_ROWS)]
        lengths = np.concatenate(
            [_lengths(rows[i : i + _BLOCK_ROWS] - self.centre) for i in range(0, len(rows), _BLOCK_ROWS)]
        )
        self.grid = _make_grid(parts, float(lengths.max()), query_bits)
        quantised = [np.rint(part / self.grid.row_step).astype(np.int8) for part in parts]
        if basis is None:
            # The exact lengths of the quantised rows: the certificate needs them.
            errors = [
                _lengths(part - q * np.float32(self.grid.row_step))
                for part, q in zip(parts, quantised, strict=True)
            ]
            self.row_error = float(max(error.max() for error in errors))
            lengths = np.concatenate([_lengths(q.astype(np.float32)) for q in quantised]) * self.grid.row_step
        offsets = self._offsets(quantised, lengths)
        # A shift of all offsets moves no row before another, and takes fewer digits.
        self.shift = (int(offsets.max()) + int(offsets.min())) // 2
        self._constant = self.grid.highest - self.grid.lowest
        coarse = np.rint((offsets - self.shift) / self._constant).astype(np.int64)
        self._digits = int(max(1, np.ceil(np.abs(coarse).max() / _LARGEST_DIGIT)))
        fine = (offsets - self.shift) - coarse * self._constant
        self.matrices = _matrices(quantised, coarse, fine, self._digits)
        self.dim = quantised[0].shape[1]
        self.width = self.dim + self._digits + 1
        self.longest = float(lengths.max())

    def _seen(self, vectors: FloatArray) -> FloatArray:
        seen: FloatArray = vectors - self.centre if self.basis is None else vectors @ self.basis
        if self.basis is not None:
            seen -= self._centre_seen
        return seen

    def _offsets(self, quantised: Sequence[AnyArray], lengths: AnyArray) -> Int64Array:
        """In units of both steps: ||r||^2 / 2, and what the queries' zero adds to each product."""
        sums = np.concatenate([q.sum(axis=1, dtype=np.int64) for q in quantised])
        halves = np.square(lengths) / (2 * self.grid.row_step * self.grid.query_step)
        offsets: Int64Array = -(np.rint(halves).astype(np.int64) + self.grid.zero * sums)
        return offsets

    def query_buffer(self, patches: int) -> AnyArray:
        """(patches, width) uint8 with the constants in place, for `encode`."""
        buffer = np.empty((patches, self.width), np.uint8)
        buffer[:, self.dim : -1] = self._constant
        buffer[:, -1] = 1
        return buffer

    def encode(self, queries: FloatArray, buffer: AnyArray) -> tuple[FloatArray, FloatArray]:
        """Write quantised queries into the first rows of a buffer.

        Returns:
            The queries as seen (centred, reduced) and their whole numbers, both (patches, dim) float32.
        """
        seen = self._seen(queries)
        whole = seen * np.float32(1 / self.grid.query_step)
        np.rint(whole, out=whole)
        np.clip(whole, self.grid.lowest, self.grid.highest, out=whole)
        np.add(whole, np.float32(self.grid.zero), out=buffer[: len(queries), : self.dim], casting="unsafe")
        return seen, whole


def _make_grid(parts: Sequence[FloatArray], longest: float, query_bits: int) -> _Grid:
    largest = max(float(np.abs(part).max()) for part in parts)
    half = 2 ** (query_bits - 1)
    row_step = max(largest / _LARGEST_DIGIT, longest * _FINEST_GRID)
    if row_step < _SMALLEST_STEP:
        # All rows equal their mean, as far as float32 distances can tell: any step will do.
        row_step = 1.0
    return _Grid(row_step, row_step * _LARGEST_DIGIT / (half - 1), half, -half, half - 1)


def _matrices(
    quantised: Sequence[AnyArray], coarse: Int64Array, fine: Int64Array, digits: int
) -> list[AnyArray]:
    """Per block (width, rows) int8: the rows' numbers, then their offsets' digits."""
    matrices, start = [], 0
    for block in quantised:
        part = slice(start, start + len(block))
        # floor((n + j) / k) for j = 0 .. k-1 sums to n: equal digits.
        spread = [(coarse[part] + j) // digits for j in range(digits)]
        matrices.append(np.vstack([block.T, *spread, fine[part]]).astype(np.int8))
        start += len(block)
    return matrices


def _lengths(vectors: FloatArray) -> AnyArray:
    """(n,) float64: in float32, squares of small errors would vanish and those of long rows lose units."""
    lengths: AnyArray = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return lengths


class _Products:
    """int32 products of encoded queries with one block of rows after another, into a buffer of its own.

    Not for two threads at once: each takes its own.
    """

    def __init__(self, sessions: Sequence[Any], rows: QuantisedRows, patches: int) -> None:
        self.queries = rows.query_buffer(patches)
        self._blocks = []
        for session, matrix in zip(sessions, rows.matrices, strict=True):
            sums = np.empty((patches, matrix.shape[1]), np.int32)
            self._blocks.append((session, _bind(session, self.queries, sums), sums))

    def __iter__(self) -> Any:
        """Gives (patches, rows of the block) int32 for each block; valid until the next one is asked for."""
        for session, binding, sums in self._blocks:
            session.run_with_iobinding(binding)
            yield sums


def _bind(session: Any, queries: AnyArray, sums: AnyArray) -> Any:
    """Bind both buffers: with fresh outputs the allocation takes as long as the product."""
    binding = session.io_binding()
    binding.bind_input("queries", "cpu", 0, np.uint8, queries.shape, queries.ctypes.data)
    binding.bind_output("products", "cpu", 0, np.int32, sums.shape, sums.ctypes.data)
    return binding


def _open_products(matrix: AnyArray, *, threads: int) -> Any:
    """A session for products with one (width, rows) int8 matrix."""
    width = matrix.shape[0]
    model = onnx_model(
        [Node("MatMulInteger", ["queries", "rows"], ["products"])],
        {"rows": matrix},
        [Tensor("queries", "uint8", ("patches", width))],
        [Tensor("products", "int32", ("patches", matrix.shape[1]))],
    )
    # Without spinning: idle threads of this session would take the cores from the embedder's.
    return open_graph(model, provider="cpu", threads=threads, spinning=False)


def query_bits() -> int:
    """8, or 7 where this processor's 8-bit products saturate (x86 without VNNI adds pairs in 16 bits)."""
    session = _open_products(np.full((64, 16), 127, np.int8), threads=1)
    queries = np.full((16, 64), 255, np.uint8)
    (sums,) = session.run(["products"], {"queries": queries})
    return 8 if (sums == 255 * 127 * 64).all() else 7


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
        self._quantised = QuantisedRows(rows, basis=basis, query_bits=bits or query_bits())
        sessions = [_open_products(matrix, threads=1) for matrix in self._quantised.matrices]
        self._starts = np.cumsum([0, *(matrix.shape[1] for matrix in self._quantised.matrices)])
        self._workers = [_Products(sessions, self._quantised, _SEARCH_PATCHES) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads - 1, "search") if threads > 1 else None
        # The workers' buffers serve one image at a time, however many threads of the caller's ask.
        self._lock = threading.Lock()

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """See `PatchSearch.nearest`."""
        ids = np.empty(len(queries), np.int64)
        distances = np.empty(len(queries), np.float32)
        # Threads share the patches; each product and each BLAS call runs in one.
        edges = np.linspace(0, len(queries), len(self._workers) + 1).astype(int)
        with self._lock, blas_threads(1):
            futures = []
            for worker, start, stop in zip(self._workers, edges[:-1], edges[1:], strict=True):
                part = slice(int(start), int(stop))
                job = (queries[part], worker, distances[part], ids[part])
                if self._pool is None or worker is self._workers[-1]:
                    self._search(*job)
                else:
                    futures.append(self._pool.submit(self._search, *job))
            for future in futures:
                future.result()
        return distances, ids

    def _search(
        self, queries: FloatArray, products: _Products, distances: FloatArray, ids: Int64Array
    ) -> None:
        for start in range(0, len(queries), _SEARCH_PATCHES):
            part = slice(start, min(start + _SEARCH_PATCHES, len(queries)))
            self._quantised.encode(queries[part], products.queries)
            ids[part] = self._best(products, part.stop - part.start)
        distances[:] = euclidean(queries, self._rows[ids])

    def _best(self, products: _Products, patches: int) -> Int64Array:
        best = np.full(patches, np.iinfo(np.int64).min)
        ids = np.zeros(patches, np.int64)
        everyone = np.arange(patches)
        for start, sums in zip(self._starts, products, strict=False):
            found = sums[:patches].argmax(axis=1)
            values = sums[everyone, found]
            better = values > best
            best[better] = values[better]
            ids[better] = found[better] + start
        return ids


class QuantisedVerifier:
    """Exact nearest entries of a few patches: 8-bit products exclude most rows, the rest is measured."""

    def __init__(self, rows: FloatArray, *, threads: int, bits: int | None = None) -> None:
        """Quantise the memory bank, (count, dim) float32, in all its dimensions."""
        self._rows = rows
        self._exact = ExactSearch(rows, threads=threads)
        self._quantised = QuantisedRows(rows, basis=None, query_bits=bits or query_bits())
        sessions = [_open_products(matrix, threads=threads) for matrix in self._quantised.matrices]
        self._starts = np.cumsum([0, *(matrix.shape[1] for matrix in self._quantised.matrices)])
        self._products = {
            size: _Products(sessions, self._quantised, size) for size in (8, 16, 32, _VERIFY_PATCHES)
        }
        # Another thread's products in the same buffers would exclude the wrong rows.
        self._lock = threading.Lock()

    def nearest(
        self, queries: FloatArray, distances: FloatArray, ids: Int64Array
    ) -> tuple[FloatArray, Int64Array]:
        """Exact distances and ids of the nearest entries.

        Args:
            queries: (patches, dim) float32.
            distances, ids: (patches,) of an entry that is known; its distance bounds the search.
        """
        parts = [slice(i, i + _VERIFY_PATCHES) for i in range(0, len(queries), _VERIFY_PATCHES)]
        with self._lock:
            found = [self._nearest(queries[part], distances[part], ids[part]) for part in parts]
        return np.concatenate([d for d, _ in found]), np.concatenate([i for _, i in found])

    def _nearest(
        self, queries: FloatArray, distances: FloatArray, ids: Int64Array
    ) -> tuple[FloatArray, Int64Array]:
        patches = len(queries)
        products = self._products[next(size for size in self._products if size >= patches)]
        seen, whole = self._quantised.encode(queries, products.queries)
        lowest = self._lowest_sums(seen, whole, distances)
        patch_numbers, rows = [], []
        allowed = patches * len(self._rows) * _MAX_CANDIDATE_SHARE
        for start, sums in zip(self._starts, products, strict=False):
            patch, row = np.nonzero(sums[:patches] >= lowest[:, None])
            patch_numbers.append(patch)
            rows.append(row + start)
            allowed -= len(patch)
            if allowed < 0:
                return nearer_of((distances, ids), self._exact.nearest(queries))
        return self._measure(queries, np.concatenate(patch_numbers), np.concatenate(rows), distances, ids)

    def _lowest_sums(self, seen: FloatArray, whole: FloatArray, distances: FloatArray) -> Int64Array:
        """The smallest product of a row that may be as near as the known entry, per patch.

        With s, t the steps of rows and queries: ||q' - r'||^2 = t^2 |q'|^2 - 2 s t (product + shift), and it
        must not exceed (distance + both rounding errors)^2.
        """
        grid = self._quantised.grid
        query_error = _lengths(seen - whole * np.float32(grid.query_step))
        reach = distances + query_error + self._quantised.row_error
        reach += _SLACK * (reach + _lengths(seen) + self._quantised.longest)
        squares = np.einsum("ij,ij->i", whole, whole, dtype=np.float64) * grid.query_step**2
        lowest = (squares - reach**2) / (2 * grid.row_step * grid.query_step) - self._quantised.shift
        # Offsets were rounded to whole numbers: one unit of margin.
        lowest = np.floor(lowest) - 1
        limits = np.iinfo(np.int32)
        clipped: Int64Array = np.clip(lowest, limits.min, limits.max).astype(np.int64)
        return clipped

    def _measure(
        self,
        queries: FloatArray,
        patch_numbers: Int64Array,
        rows: Int64Array,
        distances: FloatArray,
        ids: Int64Array,
    ) -> tuple[FloatArray, Int64Array]:
        """The nearest of the candidates: pairs of a patch number and a row."""
        best, best_ids = distances.copy(), ids.copy()
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            patch, row = patch_numbers[start : start + _PAIRS_AT_ONCE], rows[start : start + _PAIRS_AT_ONCE]
            measured = euclidean(queries[patch], self._rows[row])
            order = np.lexsort((row, measured, patch))
            patch, row, measured = patch[order], row[order], measured[order]
            first = np.flatnonzero(np.diff(patch, prepend=-1))
            patch, row, measured = patch[first], row[first], measured[first]
            nearer = measured < best[patch]
            best[patch[nearer]] = measured[nearer]
            best_ids[patch[nearer]] = row[nearer]
        return best, best_ids


def quantised_problem(rows: FloatArray) -> str | None:
    """Why 8-bit search cannot be used for these rows on this machine, or None when it can."""
    if rows.shape[1] > MAX_DIM:
        return f"embeddings of {rows.shape[1]} dimensions are too long for 8-bit search (at most {MAX_DIM})"
    try:
        import_onnxruntime()
    except Exception as error:
        return str(error)
    return None
