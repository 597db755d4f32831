"""Nearest-neighbour search in the memory bank, behind one small interface.

Every engine gives, for each patch, a memory-bank entry and the true Euclidean distance to it. An engine can
miss the nearest entry, so a distance may be too large; it is never too small. `pcrun.scoring.certify` builds
the certificate of the verdict on that one-sidedness, whatever the engine.
"""

import functools
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from pcrun.types import FloatArray, Int64Array

# Names of the engines, as in results, device profiles and `--search`.
SEARCH_NAMES = ("quantised", "hnsw", "exact", "exact_graph")
EXACT_SEARCH_NAMES = ("exact", "exact_graph")


class PatchSearch(Protocol):
    """Finds a near memory-bank entry of each patch embedding."""

    name: str
    exact: bool

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """Distances and ids of the nearest entries.

        Args:
            queries: (patches, dim) float32.

        Returns:
            (patches,) float32 Euclidean distances (>= those to the nearest entry; equal when `exact`),
            (patches,) int64 row ids.
        """


@runtime_checkable
class RefiningSearch(Protocol):
    """An engine that can look more carefully where it matters."""

    def refine(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """As `PatchSearch.nearest`, slower and nearer; for few patches."""


@dataclass(frozen=True)
class SearchBasis:
    """Directions that tell memory-bank entries apart, the most telling first; only speed depends on them.

    Attributes:
        columns: (dim, any number) float32, orthonormal: verification excludes entries in these.
        search_dim: neighbours are looked for in the first so many of them.
    """

    columns: FloatArray
    search_dim: int

    @functools.cached_property
    def search(self) -> FloatArray:
        """(dim, search_dim) float32, the directions of search."""
        return np.ascontiguousarray(self.columns[:, : self.search_dim])
