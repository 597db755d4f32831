"""From patch embeddings to patch scores, the image score, the anomaly map and its regions.

`PatchCoreScorer` is the only place that knows the method; everything around it sees "patch embeddings in,
scores out".
"""

import time
from dataclasses import dataclass

import cv2
import numpy as np

from pcrun.search import ExactSearch, PatchSearch
from pcrun.types import AnyArray, BoolArray, FloatArray, Int32Array, Int64Array

# Patches re-scored per matrix product during verification. Blocks of 8 cost little more than single patches.
_VERIFY_BLOCK = 8
_GAUSSIAN_TRUNCATE = 4.0

EXACTNESS_LEVELS = ("none", "image", "full")


@dataclass(frozen=True)
class PatchScores:
    """Scores of one image.

    Attributes:
        image_score: in L2 units.
        patch_scores: (patches,) float32, distance to the nearest memory-bank entry, row-major over the grid.
        verified_patches: patches whose distance was confirmed by exact search (all of them in an exact
            search).
        search_ms, verify_ms: time spent.
    """

    image_score: float
    patch_scores: FloatArray
    verified_patches: int
    search_ms: float
    verify_ms: float


class PatchCoreScorer:
    """Patch scores and image score by distance to the memory bank (Roth et al. 2022, section 3.3)."""

    def __init__(
        self,
        rows: FloatArray,
        search: PatchSearch,
        *,
        exactness: str = "image",
        neighbours: Int32Array | None = None,
    ) -> None:
        """Bind a memory bank and a search.

        Args:
            rows: (count, dim) float32, the memory bank.
            search: how nearest entries are found.
            exactness: "none" trusts the search, "image" certifies the image score by exact search of the
                patches that can decide it, "full" says that `search` is exact, so that every patch is.
            neighbours: (count, b) int32 for Eq. 7; None takes the largest patch score as it is.
        """
        if exactness not in EXACTNESS_LEVELS:
            raise ValueError(f"exactness must be one of {EXACTNESS_LEVELS}, got {exactness!r}")
        self._rows = rows
        self._neighbours = neighbours
        if exactness == "full" and not search.exact:
            raise ValueError("exactness 'full' needs an exact search")
        self.search = search
        self.exactness = "full" if search.exact else exactness
        # One thread: verification products are small, and woken BLAS threads would disturb the next frame.
        self._verifier = ExactSearch(rows, threads=1) if self.exactness == "image" else None

    def score(self, embeddings: FloatArray) -> PatchScores:
        """Score the (patches, dim) float32 embeddings of one image."""
        started = time.perf_counter()
        distances, ids = self.search.nearest(embeddings)
        searched = time.perf_counter()
        verified = len(distances) if self.search.exact else 0
        if self._verifier is not None:
            # Eq. 7 looks at the patch with the largest distance, so ties with it are verified as well.
            ties = self._neighbours is not None
            verified = certify_maximum(embeddings, distances, ids, self._verifier, ties=ties)
        image_score = self._image_score(embeddings, distances, ids)
        done = time.perf_counter()
        return PatchScores(
            image_score, distances, verified, (searched - started) * 1e3, (done - searched) * 1e3
        )

    def _image_score(self, embeddings: FloatArray, distances: FloatArray, ids: Int64Array) -> float:
        worst = int(distances.argmax())
        if self._neighbours is None:
            return float(distances[worst])
        support = self._rows[self._neighbours[ids[worst]]]
        return reweighted_score(embeddings[worst], float(distances[worst]), support)


def certify_maximum(
    embeddings: FloatArray,
    distances: FloatArray,
    ids: Int64Array,
    exact: ExactSearch,
    *,
    ties: bool = False,
) -> int:
    """Make the largest of approximate distances exact, in place, touching as few patches as possible.

    Approximate distances are never too small. So patches are re-scored exactly from the largest approximate
    distance down, until the best exact distance is at least the next approximate one: nothing below can
    exceed it.

    Args:
        embeddings: (patches, dim) float32.
        distances: (patches,) float32, approximate; re-scored entries become exact.
        ids: (patches,) int64, updated likewise.
        exact: search over the same memory bank.
        ties: also re-score what equals the largest distance, so that its ids are right too.

    Returns:
        The number of patches re-scored.
    """
    order = np.argsort(-distances, kind="stable")
    best, done = -np.inf, 0
    while done < len(order) and (best < distances[order[done]] or (ties and best == distances[order[done]])):
        block = order[done : done + _VERIFY_BLOCK]
        distances[block], ids[block] = exact.nearest(embeddings[block])
        best = max(best, float(distances[block].max()))
        done += len(block)
    return done


def reweighted_score(patch: FloatArray, distance: float, support: FloatArray) -> float:
    """Image score of Eq. 7 (Roth et al. 2022).

    s = (1 - exp(d*) / sum_m exp(d(patch, m))) d*, the sum over the b bank entries nearest to m*, m* included.

    Args:
        patch: (dim,) float32, the patch with the largest distance.
        distance: d*, its distance to its nearest entry m*.
        support: (b, dim) float32, the entries nearest to m*.
    """
    to_support = np.sqrt(np.square(support - patch).sum(axis=1, dtype=np.float64))
    # The largest distance is subtracted so that exp cannot overflow.
    largest = max(distance, float(to_support.max()))
    weight = 1.0 - np.exp(distance - largest) / np.exp(to_support - largest).sum()
    # m* is in its own support, so the fraction is at most 1 but for rounding.
    return float(max(weight, 0.0) * distance)


def anomaly_map(patch_scores: FloatArray, output_hw: tuple[int, int], sigma_px: float) -> FloatArray:
    """Upsample patch scores to image size and smooth them (Roth et al. 2022, section 3.3).

    Args:
        patch_scores: (grid_h, grid_w) float32, L2 distance to the nearest memory-bank entry, >= 0.
        output_hw: target height and width in pixels.
        sigma_px: Gaussian sigma in output pixels; 0 disables smoothing.

    Returns:
        (height, width) float32 in the same L2 units; not normalised.
    """
    upsampled: FloatArray = cv2.resize(patch_scores, output_hw[::-1], interpolation=cv2.INTER_LINEAR)
    if sigma_px == 0:
        return upsampled
    side = 2 * int(_GAUSSIAN_TRUNCATE * sigma_px + 0.5) + 1
    smoothed: FloatArray = cv2.GaussianBlur(upsampled, (side, side), sigma_px, borderType=cv2.BORDER_REFLECT)
    return smoothed


@dataclass(frozen=True)
class Component:
    """A connected part of a mask.

    Its bounding box in pixels of the mask, its area and its largest map value.
    """

    x: int
    y: int
    width: int
    height: int
    area_px: int
    max_score: float


def components(values: FloatArray, mask: BoolArray) -> list[Component]:
    """8-connected components of `mask`, largest map value first."""
    if not mask.any():
        return []
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = [_component(values, labels, stats, label) for label in range(1, count)]
    return sorted(found, key=lambda c: (-c.max_score, c.y, c.x))


def _component(values: FloatArray, labels: AnyArray, stats: AnyArray, label: int) -> Component:
    x, y, width, height, area = (int(v) for v in stats[label])
    box = (slice(y, y + height), slice(x, x + width))
    peak = float(values[box][labels[box] == label].max())
    return Component(x, y, width, height, area, peak)
