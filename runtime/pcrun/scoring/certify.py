"""The certificate: an approximate search, and yet the verdict of brute force.

A search can miss the nearest memory-bank entry, so its distances are never too small. That is enough to know
which patches can decide the image score, and which can lift a pixel over its threshold. Those are verified,
which means measured exactly; everything else is settled without.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pcrun.scoring.heatmap import MapGeometry
from pcrun.search.exact import ExactSearch, nearer_of
from pcrun.types import BoolArray, FloatArray, Int64Array

# Patches verified before the best exact distance is known; the next steps take all that are left above it.
_FIRST_STEP = 8
_NEXT_STEPS = 64
# Patches looked at again by a more careful search, before those of the first step are verified.
_REFINED_STEP = 16


class Verifier(Protocol):
    """Finds the exact nearest entries of a few patches."""

    def nearest(
        self, queries: FloatArray, distances: FloatArray, ids: Int64Array
    ) -> tuple[FloatArray, Int64Array]:
        """Exact distances and ids, given the distance to some entry of each of the (patches, dim) queries."""


class ExactVerifier:
    """Verification by exact search, for where 8-bit products are not at hand."""

    def __init__(self, exact: ExactSearch) -> None:
        self._exact = exact

    def nearest(
        self, queries: FloatArray, distances: FloatArray, ids: Int64Array
    ) -> tuple[FloatArray, Int64Array]:
        """See `Verifier.nearest`."""
        return nearer_of((distances, ids), self._exact.nearest(queries))


class PatchRows(Protocol):
    """Patch embeddings of one image: an array, or what gives parts of one when asked."""

    def __getitem__(self, patches: Any) -> FloatArray:
        """Rows of a (patches, dim) float32 array."""


@dataclass
class PatchDistances:
    """Distances of one image's patches on their way from approximate to exact.

    Attributes:
        embeddings: (patches, dim) float32.
        distances: (patches,) float32, to the entry `ids` of the memory bank; never below the exact one.
        ids: (patches,) int64.
        verified: (patches,) bool, where the distance is exact.
        verify_ms: time spent on that.
    """

    embeddings: PatchRows
    distances: FloatArray
    ids: Int64Array
    verified: BoolArray
    verify_ms: float = 0.0

    @classmethod
    def found(
        cls, embeddings: PatchRows, distances: FloatArray, ids: Int64Array, *, exact: bool
    ) -> "PatchDistances":
        """What a search found; all of it verified where the search was exact."""
        return cls(embeddings, distances, ids, np.full(len(distances), exact))

    def improve(self, patches: Int64Array, refine: "Refine") -> None:
        """Take over nearer entries that a more careful search finds for these patches."""
        started = time.perf_counter()
        known = (self.distances[patches], self.ids[patches])
        self.distances[patches], self.ids[patches] = nearer_of(known, refine(self.embeddings[patches]))
        self.verify_ms += (time.perf_counter() - started) * 1e3

    def verify(self, patches: Int64Array, verifier: Verifier) -> None:
        """Make the distances of these patches exact."""
        started = time.perf_counter()
        self.distances[patches], self.ids[patches] = verifier.nearest(
            self.embeddings[patches], self.distances[patches], self.ids[patches]
        )
        self.verified[patches] = True
        self.verify_ms += (time.perf_counter() - started) * 1e3


Refine = Callable[[FloatArray], tuple[FloatArray, Int64Array]]


def certify_maximum(
    patches: PatchDistances, verifier: Verifier, *, ties: bool = False, refine: Refine | None = None
) -> None:
    """Make the largest distance exact, touching as few patches as possible.

    Patches are verified from the largest approximate distance down, until the best exact distance is at least
    the next approximate one: nothing below can exceed it. The largest approximate distances are often those
    that the search missed most, so a more careful search of them first saves verifying them.

    Args:
        patches: changed in place.
        verifier: over the same memory bank.
        ties: also verify what equals the largest distance, so that its ids are right too.
        refine: a more careful search, distances and ids of the (patches, dim) embeddings.
    """
    exact = patches.distances[patches.verified]
    best = float(exact.max()) if len(exact) else -np.inf
    careless = ~patches.verified if refine else np.zeros(len(patches.verified), bool)
    step = _FIRST_STEP
    while True:
        rivals = patches.distances >= best if ties else patches.distances > best
        open_patches = np.flatnonzero(rivals & ~patches.verified)
        if len(open_patches) == 0:
            return
        order = np.argsort(-patches.distances[open_patches], kind="stable")
        chosen = open_patches[order[:_REFINED_STEP]]
        if refine and careless[chosen[:step]].any():
            chosen = chosen[careless[chosen]]
            patches.improve(chosen, refine)
            careless[chosen] = False
            continue
        chosen = open_patches[order[:step]]
        patches.verify(chosen, verifier)
        best = max(best, float(patches.distances[chosen].max()))
        step = _NEXT_STEPS


def certify_mask(
    patches: PatchDistances, verifier: Verifier, geometry: MapGeometry, pixel_threshold: float
) -> FloatArray:
    """Make the map exact wherever it is above the threshold; gives the map.

    Upsampling and smoothing have no negative weights, so the map of distances that are too large is nowhere
    too small: a pixel that is not above the threshold in it is not above it in the exact map. For the other
    pixels all patches with any weight in them are verified. Distances only fall by that, so afterwards no
    pixel is above the threshold that was not before (but for the rounding of the filters), and those that
    still are have only exact patches.

    Args:
        patches: changed in place.
        verifier: over the same memory bank.
        geometry: of the map.
        pixel_threshold: in L2 units.

    Returns:
        (height, width) float32 map, L2 units.
    """
    heat = geometry.draw(patches.distances)
    above = heat > pixel_threshold
    if not above.any():
        return heat
    chosen = np.flatnonzero(geometry.patches_reaching(above) & ~patches.verified)
    if len(chosen) == 0:
        return heat
    patches.verify(chosen, verifier)
    return geometry.draw(patches.distances)


def certify_peak(patches: PatchDistances, verifier: Verifier, geometry: MapGeometry) -> float:
    """The largest value of the exact map.

    The map of distances that are too large is nowhere too small. So once all patches with any weight in the
    pixels of its maximum are verified, that maximum is the exact one.

    Args:
        patches: changed in place.
        verifier: over the same memory bank.
        geometry: of the map.
    """
    while True:
        heat = geometry.draw(patches.distances)
        peak = heat.max()
        chosen = np.flatnonzero(geometry.patches_reaching(heat >= peak) & ~patches.verified)
        if len(chosen) == 0:
            return float(peak)
        patches.verify(chosen, verifier)
