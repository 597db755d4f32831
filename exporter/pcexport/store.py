"""Patch embeddings on disk: written once in order, read back in blocks, so that memory stays bounded."""

import contextlib
from pathlib import Path
from typing import Protocol

import numpy as np

from pcrun.types import FloatArray, Int64Array


class Rows(Protocol):
    """A table of float32 rows that is read in blocks."""

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
        return self._array[ids]


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
        self._file.seek(start * self._dim * 4)
        view = rows.data.cast("B") if rows.size else memoryview(b"")
        while len(view):
            read = self._file.readinto(view)
            if not read:
                raise OSError("the file of embeddings ended early; was it changed during the build?")
            view = view[read:]
        return rows

    def gather(self, ids: Int64Array) -> FloatArray:
        rows = np.empty((len(ids), self._dim), np.float32)
        for position, row in enumerate(ids):
            rows[position] = self.block(int(row), int(row) + 1)[0]
        return rows

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


class ShiftedRows:
    """Rows seen from another origin: distances between them are the same."""

    def __init__(self, rows: Rows, origin: FloatArray) -> None:
        self._rows = rows
        self._origin = origin

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dim(self) -> int:
        return self._rows.dim

    def block(self, start: int, stop: int) -> FloatArray:
        return self._rows.block(start, stop) - self._origin

    def gather(self, ids: Int64Array) -> FloatArray:
        return self._rows.gather(ids) - self._origin
