"""Squared distances of rows to chosen rows: float32 products for the many, float64 for the few that decide.

With x and c taken from a common origin, ||x - c||^2 = 2 (||x||^2 / 2 - closeness) where closeness is
x.c - ||c||^2 / 2: one matrix product, when x has a column of ones and c one of -||c||^2 / 2.

A float32 sum of dim products, in any order, errs by at most dim * 2^-24 * |x| |c| (Higham 2002, section 3.1).
So the squared distance errs by at most (dim + some) * 2^-24 * (|x| + |c|)^2, and |c| <= |x| + ||x - c||. All
comparisons take this into account: no BLAS, number of threads or GPU can change what is decided.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pcexport.memory_bank.store import Rows
from pcrun.types import FloatArray, Int64Array

Float64Array = npt.NDArray[np.float64]

# Beyond the products: rounding of norms, shifts and of the bound itself.
_EXTRA_ROUNDINGS = 24
# More than what vanishes in products too small for float32.
_UNDERFLOW = np.float32(1e-33)
_ORIGIN_ROWS = 1024
# Tile of `Centres.exact_nearest`: 1 MiB of closeness, and 4 MiB of float64 differences.
_TILE_CENTRES = 1024
_TILE_PAIRS = 4096


@dataclass(frozen=True)
class Products:
    """How the large matrix products are made.

    Attributes:
        closest: (k, dim + 1) centres, (m, dim + 1) points -> (m,) largest product of each point.
        points_at_once, centres_at_once: sizes of one product.
    """

    closest: Callable[[FloatArray, FloatArray], FloatArray]
    points_at_once: int
    centres_at_once: int


def _closest_numpy(centres: FloatArray, points: FloatArray) -> FloatArray:
    # Centres first: numpy takes a maximum over the first axis three times as fast as over the second.
    closest: FloatArray = (centres @ points.T).max(axis=0)
    return closest


# A product of 1 MiB. Measured on 2 cores with 1 MiB of L2 each, at 128 and 384 dimensions: with more centres,
# points are given up too late; with fewer of either, calls take as long as products.
NUMPY_PRODUCTS = Products(_closest_numpy, points_at_once=2048, centres_at_once=128)


def torch_products(device: str) -> Products:
    """Products by torch on a device, which must multiply in full float32: TF32 would break the bound."""
    import torch

    def closest(centres: FloatArray, points: FloatArray) -> FloatArray:
        product = torch.from_numpy(centres).to(device) @ torch.from_numpy(points).to(device).T
        found: FloatArray = product.amax(dim=0).cpu().numpy()
        return found

    return Products(closest, points_at_once=8192, centres_at_once=1024)


def best_products() -> Products:
    """The GPU where the program has loaded torch and may multiply in full float32 there, else numpy."""
    torch: Any = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.get_float32_matmul_precision() == "highest":
        return torch_products("cuda")
    return NUMPY_PRODUCTS


@dataclass(frozen=True)
class Points:
    """Rows ready for products.

    Attributes:
        values: (m, dim + 1) float32, from the common origin, with a column of ones.
        half_norms: (m,) float32, ||x||^2 / 2.
    """

    values: FloatArray
    half_norms: FloatArray

    def upper_bounds(self, closeness: FloatArray) -> FloatArray:
        """What the squared distance surely does not exceed, (m,) float32."""
        squared = np.maximum((self.half_norms - closeness) * np.float32(2), np.float32(0))
        bounds: FloatArray = squared + self._rounding(squared)
        return bounds

    def surely_within(self, squared: FloatArray | np.float32) -> FloatArray:
        """Closeness from which on the squared distance is surely smaller than `squared`."""
        closeness: FloatArray = self.half_norms - (squared - self._rounding(squared)) * np.float32(0.5)
        return closeness

    def possibly_within(self, squared: FloatArray) -> FloatArray:
        """Closeness below which the squared distance is surely larger than `squared`."""
        closeness: FloatArray = self.half_norms - (squared + self._rounding(squared)) * np.float32(0.5)
        return closeness

    def _rounding(self, squared: FloatArray | np.float32) -> FloatArray:
        unit = np.float32((self.values.shape[1] + _EXTRA_ROUNDINGS) * 2.0**-24)
        reach = np.sqrt(self.half_norms * np.float32(8)) + np.sqrt(squared)
        bound: FloatArray = unit * reach * reach + _UNDERFLOW
        return bound


class Centres:
    """The chosen rows, in the order chosen."""

    def __init__(self, rows: Rows, capacity: int) -> None:
        self._rows = rows
        spread = np.linspace(0, len(rows) - 1, min(_ORIGIN_ROWS, len(rows))).astype(np.int64)
        # Embeddings lie far from 0, close together: from their middle, float32 keeps its digits.
        self._origin = rows.gather(spread).mean(axis=0)
        self._ids = np.empty(capacity, np.int64)
        self._raw = np.empty((capacity, rows.dim), np.float32)
        self._values = np.empty((capacity, rows.dim + 1), np.float32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> Int64Array:
        """(count,) int64 row numbers."""
        return self._ids[: self._count]

    def append(self, ids: Int64Array) -> None:
        """Choose more rows."""
        new = slice(self._count, self._count + len(ids))
        self._ids[new], self._raw[new] = ids, self._rows.gather(ids)
        self._values[new, :-1] = self._raw[new] - self._origin
        self._values[new, -1] = squared_norms(self._values[new, :-1].astype(np.float64)) / -2
        self._count = new.stop

    def values(self, start: int, stop: int) -> FloatArray:
        """(stop - start, dim + 1) float32: times `Points.values` they give the closeness."""
        return self._values[start:stop]

    def points(self, ids: Int64Array) -> Points:
        """Rows ready for products."""
        values = np.ones((len(ids), self._rows.dim + 1), np.float32)
        np.subtract(self._rows.gather(ids), self._origin, out=values[:, :-1])
        return Points(values, squared_norms(values[:, :-1]) * np.float32(0.5))

    def exact_nearest(self, ids: Int64Array, bounds: FloatArray) -> Float64Array:
        """Squared distances of rows to their nearest centres, from differences in float64.

        Args:
            ids: rows.
            bounds: (m,) float32, what these distances do not exceed: few centres need another look.

        Returns:
            (m,) float64.
        """
        raw, points = self._rows.gather(ids), self.points(ids)
        reach = points.possibly_within(bounds)
        nearest = np.full(len(ids), np.inf)
        for start in range(0, len(self), _TILE_CENTRES):
            centres = slice(start, min(start + _TILE_CENTRES, len(self)))
            within = self._values[centres] @ points.values.T >= reach
            pairs = np.flatnonzero(within)
            for first in range(0, len(pairs), _TILE_PAIRS):
                centre, row = np.divmod(pairs[first : first + _TILE_PAIRS], len(ids))
                np.minimum.at(nearest, row, exact_squared(raw[row], self._raw[centres][centre]))
        return nearest


def exact_squared(a: FloatArray, b: FloatArray) -> Float64Array:
    """Row by row squared distance, in float64."""
    return squared_norms(np.subtract(a, b, dtype=np.float64))


def squared_norms(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """||x||^2 of each row, in the type of the rows."""
    return np.einsum("ij,ij->i", rows, rows)
