"""How vectors are looked at before they become 8-bit numbers.

A view never makes two vectors look farther apart than they are, but for its `stretch`. So what is far apart
in the view is far apart, and a row can be excluded by few dimensions.
"""

from typing import Protocol

import numpy as np

from pcrun.machine.threads import blas_threads
from pcrun.types import FloatArray

_SEED = 0


class View(Protocol):
    """Gives what is seen of vectors.

    Attributes:
        dim: of what is seen.
        stretch: distances in the view are at most this many times the true ones.
    """

    dim: int
    stretch: float

    def see(self, vectors: FloatArray) -> FloatArray:
        """(n, dim of the view) float32 of (n, dim) float32 vectors; the caller may change it."""


class Centred:
    """All dimensions, from a centre."""

    stretch = 1.0

    def __init__(self, centre: FloatArray) -> None:
        self.dim = len(centre)
        self._centre = centre

    def see(self, vectors: FloatArray) -> FloatArray:
        """See `View.see`."""
        return vectors - self._centre


class Projected:
    """Coordinates in a subspace.

    They are turned within it: principal components differ much in size, and the largest would set the grid of
    8 bits for all. After a random rotation they are alike, and the rounding errors three times smaller.
    """

    def __init__(self, centre: FloatArray, basis: FloatArray) -> None:
        """Take `basis`, (dim, fewer) float32 with (nearly) orthonormal columns."""
        self._centre = centre
        self._basis = np.ascontiguousarray(basis @ _rotation(basis.shape[1]))
        self.dim = basis.shape[1]
        self.stretch = max(1.0, _largest_singular_value(self._basis))

    def see(self, vectors: FloatArray) -> FloatArray:
        """See `View.see`."""
        seen: FloatArray = (vectors - self._centre) @ self._basis
        return seen


class ProjectedWithRest:
    """Coordinates in a subspace, and how far from it a vector lies, as one more coordinate.

    For x = Bp + rest the lengths of the rests differ at most by the length of the rests' difference, and
    that is orthogonal to the subspace: ||Bt(x - y)||^2 + (|rest x| - |rest y|)^2 <= ||x - y||^2.
    """

    def __init__(self, centre: FloatArray, basis: FloatArray) -> None:
        """Take `basis`, (dim, fewer) float32 with (nearly) orthonormal columns."""
        self._centre = centre
        self._basis = np.ascontiguousarray(basis @ _rotation(basis.shape[1]))
        self.dim = basis.shape[1] + 1
        # With singular values s of the basis, squares grow at most s^2 + (1 - s^2)^2 times; 1 for s <= 1.
        largest = _largest_singular_value(self._basis) ** 2
        self.stretch = float(np.sqrt(max(1.0, largest + (1 - largest) ** 2)))

    def see(self, vectors: FloatArray) -> FloatArray:
        """See `View.see`."""
        centred = vectors - self._centre
        seen = np.empty((len(vectors), self.dim), np.float32)
        np.matmul(centred, self._basis, out=seen[:, :-1])
        # From the difference, not from the lengths: those cancel where the rest is small.
        centred -= seen[:, :-1] @ self._basis.T
        seen[:, -1] = np.sqrt(np.einsum("ij,ij->i", centred, centred, dtype=np.float64))
        return seen


def _rotation(dim: int) -> FloatArray:
    """(dim, dim) float32, orthogonal; any one will do, and always the same is easier to reason about."""
    # Small problems: on several threads they mostly wait for each other, at every start of a run.
    with blas_threads(1):
        turned, _ = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((dim, dim)))
    rotation: FloatArray = turned.astype(np.float32)
    return rotation


def _largest_singular_value(basis: FloatArray) -> float:
    with blas_threads(1):
        return float(np.linalg.norm(basis.astype(np.float64), 2))
