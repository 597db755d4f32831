"""Patch embeddings on disk: written once in order, read back in blocks, so that memory stays bounded."""

import contextlib
import itertools
import threading
from pathlib import Path
from typing import Protocol

import numpy as np

from pcrun.types import FloatArray, Int64Array

# Reading that much for nothing takes about as long as another call.
_GAP_BYTES = 32_768
_MOST_BYTES_AT_ONCE = 4 * 2**20


class Rows(Protocol):
    """A table of float32 rows that is read in blocks, by any thread."""

    def __len__(self) -> int: ...

    @property
    def dim(self) -> int:
        """Length of a row."""

    def block(self, start: int, stop: int) -> FloatArray:
        """Rows start..stop-1 as (rows, dim) float32."""

    def gather(self, ids: Int64Array) -> FloatArray:
        """The rows with these ids, in their order, as (len(ids), dim) float32."""


class ArrayRows:
    """Rows that are already in memory."""

    def __init__(self, array: FloatArray) -> None:
        if array.ndim != 2 or array.dtype != np.float32:
            raise ValueError(f"rows must be a 2-d float32 array, got {array.ndim}-d {array.dtype}")
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @property
    def dim(self) -> int:
        return int(self._array.shape[1])

    def block(self, start: int, stop: int) -> FloatArray:
        return self._array[start:stop]

    def gather(self, ids: Int64Array) -> FloatArray:
        return self._array.take(ids, axis=0)  # twice as fast as indexing


class RowFile:
    """Rows in a raw float32 file.

    Blocks are read, not mapped: mapped pages would count as resident memory.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self._file = path.open("w+b", buffering=0)
        # Without a name the space is given back however the process ends (Windows keeps it until then).
        with contextlib.suppress(OSError):
            path.unlink()
        self._dim = dim
        self._count = 0
        self._reading = threading.Lock()

    def __len__(self) -> int:
        return self._count

    @property
    def dim(self) -> int:
        return self._dim

    def append(self, rows: FloatArray) -> None:
        """Add (n, dim) float32 rows at the end."""
        if rows.shape[1] != self._dim:
            raise ValueError(f"rows must have {self._dim} columns, got {rows.shape[1]}")
        if len(rows) == 0:  # memoryview cannot cast an empty array
            return
        self._file.seek(0, 2)
        self._write_all(np.ascontiguousarray(rows, np.float32).data.cast("B"))
        self._count += len(rows)

    def block(self, start: int, stop: int) -> FloatArray:
        stop = min(stop, self._count)
        rows = np.empty((max(0, stop - start), self._dim), np.float32)
        view = rows.data.cast("B") if rows.size else memoryview(b"")
        with self._reading:
            self._file.seek(start * self._dim * 4)
            while len(view):
                read = self._file.readinto(view)
                if not read:
                    raise OSError("the file of embeddings ended early; was it changed during the build?")
                view = view[read:]
        return rows

    def gather(self, ids: Int64Array) -> FloatArray:
        rows = np.empty((len(ids), self._dim), np.float32)
        for first, last in self._neighbours(ids):
            low, high = int(ids[first]), int(ids[last - 1]) + 1
            rows[first:last] = self.block(low, high).take(ids[first:last] - low, axis=0)
        return rows

    def _neighbours(self, ids: Int64Array) -> list[tuple[int, int]]:
        """Parts of `ids` that stand so near each other in the file that one read fetches them all."""
        row_bytes = 4 * self._dim
        steps, windows = np.diff(ids), np.diff(ids // max(1, _MOST_BYTES_AT_ONCE // row_bytes))
        apart = (steps < 0) | (steps > 1 + _GAP_BYTES // row_bytes) | (windows != 0)
        edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(ids)]
        return [(first, last) for first, last in itertools.pairwise(edges) if first < last]

    def close(self) -> None:
        """Close the file; its owner removes it with the build's folder."""
        self._file.close()

    def _write_all(self, view: memoryview) -> None:
        while len(view):
            view = view[self._file.write(view) :]


class SelectedRows:
    """Some rows of a larger table, in ascending order: the images of a fold."""

    def __init__(self, rows: Rows, ids: Int64Array) -> None:
        self._rows = rows
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def dim(self) -> int:
        return self._rows.dim

    def block(self, start: int, stop: int) -> FloatArray:
        ids = self._ids[start:stop]
        if len(ids) == 0:
            return np.empty((0, self.dim), np.float32)
        low, high = int(ids[0]), int(ids[-1]) + 1
        # Ascending ids make a block a slice with a few gaps: one read, then a selection.
        return self._rows.block(low, high)[ids - low]

    def gather(self, ids: Int64Array) -> FloatArray:
        return self._rows.gather(self._ids[ids])


def in_memory(rows: Rows, most_bytes: int) -> Rows:
    """The rows read into memory when they take at most `most_bytes`, else as they are."""
    if isinstance(rows, ArrayRows) or len(rows) * rows.dim * 4 > most_bytes:
        return rows
    array = np.empty((len(rows), rows.dim), np.float32)
    step = max(1, _MOST_BYTES_AT_ONCE // (4 * rows.dim))
    for start in range(0, len(rows), step):
        array[start : start + step] = rows.block(start, start + step)
    return ArrayRows(array)
