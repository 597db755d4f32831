"""Nearest-neighbour search in the memory bank, behind one small interface.

Every engine gives, for each patch, a memory-bank entry and the true Euclidean distance to it. An engine can
miss the nearest entry, so a distance may be too large; it is never too small. `pcrun.certify` builds the
certificate of the verdict on that one-sidedness, whatever the engine.
"""

from typing import Protocol

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
