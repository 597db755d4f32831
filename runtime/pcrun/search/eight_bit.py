"""Memory-bank rows as 8-bit numbers, and onnxruntime's exact integer products with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcrun.backends.session import import_onnxruntime, open_graph
from pcrun.errors import BackendError
from pcrun.machine.threads import even_parts
from pcrun.search.onnx_write import Node, Tensor, onnx_model
from pcrun.search.views import View
from pcrun.types import AnyArray, FloatArray, Int64Array

_LARGEST_DIGIT = 127
# Longer rows might overflow the int32 sums.
MAX_DIM = 16_384
# The grid is never finer than this share of the longest row, which bounds the offsets' size in grid units.
_FINEST_GRID = 1 / 4064
_SMALLEST_STEP = 1e-30


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

    Attributes:
        matrices: one (width, rows) int8 per block of rows.
        starts: number of the first row of each block.
        row_error: largest distance of a row from what it became.
        longest: largest length of a row, as the offsets know it.
        shift: what is missing in all products.
    """

    def __init__(
        self,
        rows: FloatArray,
        view: View,
        *,
        query_bits: int,
        block_rows: int,
        full_lengths: AnyArray | None = None,
    ) -> None:
        """Quantise `rows`, (count, dim) float32, as seen by `view`.

        Args:
            rows: at least one, finite.
            view: made from the same rows' mean.
            query_bits: 8, or 7 for processors whose 8-bit products saturate.
            block_rows: at most so many rows per product; all blocks are about equal.
            full_lengths: (count,) lengths to put into the offsets in place of those of the quantised rows.
                The products then approximate closeness in all dimensions, and prove nothing.
        """
        self.view = view
        blocks = even_parts(len(rows), -(-len(rows) // block_rows))
        parts = [view.see(rows[block]) for block in blocks]
        lengths = full_lengths
        if lengths is None:
            lengths = np.concatenate([lengths_of(part) for part in parts])
        self.grid = _make_grid(parts, float(lengths.max()), query_bits)
        quantised = [np.rint(part / self.grid.row_step).astype(np.int8) for part in parts]
        if full_lengths is None:
            # The exact lengths of the quantised rows: the certificate needs them.
            step = np.float32(self.grid.row_step)
            errors = [lengths_of(part - q * step) for part, q in zip(parts, quantised, strict=True)]
            self.row_error = float(max(error.max() for error in errors))
            lengths = np.concatenate([lengths_of(q.astype(np.float32)) for q in quantised]) * float(step)
        offsets = self._offsets(quantised, lengths)
        # A shift of all offsets moves no row before another, and takes fewer digits.
        self.shift = (int(offsets.max()) + int(offsets.min())) // 2
        self._constant = self.grid.highest - self.grid.lowest
        coarse = np.rint((offsets - self.shift) / self._constant).astype(np.int64)
        self._digits = int(max(1, np.ceil(np.abs(coarse).max() / _LARGEST_DIGIT)))
        fine = (offsets - self.shift) - coarse * self._constant
        self.matrices = _matrices(quantised, coarse, fine, self._digits)
        self.starts = [block.start for block in blocks]
        self.dim = view.dim
        self.width = self.dim + self._digits + 1
        self.longest = float(lengths.max())

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
            The queries as seen and their whole numbers, both (patches, dim of the view) float32.
        """
        seen = self.view.see(queries)
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


def lengths_of(vectors: FloatArray) -> AnyArray:
    """(n,) float64: in float32, squares of small errors would vanish and those of long rows lose units."""
    lengths: AnyArray = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return lengths


class Products:
    """int32 products of encoded queries with one block of rows after another, in buffers of its own.

    Not for two threads at once: each takes its own.

    Attributes:
        queries: (patches, width) uint8, to encode into.
    """

    def __init__(
        self, sessions: Sequence[Any], rows: QuantisedRows, queries: AnyArray, *, blocks: Sequence[int]
    ) -> None:
        """Bind the buffers.

        Args:
            sessions: from `open_products`, one per block.
            rows: what they multiply with.
            queries: from `rows.query_buffer`; several may share one.
            blocks: numbers of the blocks to go through.
        """
        self.queries = queries
        patches = len(queries)
        counts = [rows.matrices[block].shape[1] for block in blocks]
        # One after the other in the same memory, which stays in the cache.
        self._sums = np.empty(patches * max(counts, default=0), np.int32)
        self._blocks = []
        for block, count in zip(blocks, counts, strict=True):
            sums = self._sums[: patches * count].reshape(patches, count)
            binding = _bind(sessions[block], queries, sums)
            self._blocks.append((sessions[block], binding, sums, rows.starts[block]))

    def __iter__(self) -> Iterator[tuple[int, AnyArray]]:
        """Gives, per block, the number of its first row and (patches, rows of the block) int32.

        The products are valid until the next block is asked for.
        """
        for session, binding, sums, start in self._blocks:
            session.run_with_iobinding(binding)
            yield start, sums


def _bind(session: Any, queries: AnyArray, sums: AnyArray) -> Any:
    """Bind both buffers: with fresh outputs the allocation takes as long as the product."""
    binding = session.io_binding()
    binding.bind_input("queries", "cpu", 0, np.uint8, queries.shape, queries.ctypes.data)
    binding.bind_output("products", "cpu", 0, np.int32, sums.shape, sums.ctypes.data)
    return binding


def open_products(rows: QuantisedRows) -> list[Any]:
    """A session per block of rows; each product runs in the thread that asks for it."""
    return [_open_product(matrix) for matrix in rows.matrices]


def _open_product(matrix: AnyArray) -> Any:
    width = matrix.shape[0]
    model = onnx_model(
        [Node("MatMulInteger", ["queries", "rows"], ["products"])],
        {"rows": matrix},
        [Tensor("queries", "uint8", ("patches", width))],
        [Tensor("products", "int32", ("patches", matrix.shape[1]))],
    )
    return open_graph(model, provider="cpu", threads=1)


def query_bits() -> int:
    """8, or 7 where this processor's 8-bit products saturate (x86 without VNNI adds pairs in 16 bits)."""
    session = _open_product(np.full((64, 16), 127, np.int8))
    queries = np.full((16, 64), 255, np.uint8)
    (sums,) = session.run(["products"], {"queries": queries})
    return 8 if (sums == 255 * 127 * 64).all() else 7


def quantised_problem(rows: FloatArray) -> str | None:
    """Why 8-bit products cannot be used for these rows on this machine, or None when they can."""
    # Offsets and the distance from a subspace take a few dimensions more, which the limit has room for.
    if rows.shape[1] > MAX_DIM:
        return f"embeddings of {rows.shape[1]} dimensions are too long for 8-bit search (at most {MAX_DIM})"
    try:
        import_onnxruntime()
    except BackendError as error:
        return str(error)
    return None
