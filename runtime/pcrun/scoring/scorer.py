"""From patch embeddings to patch scores, the image score and the anomaly map.

`PatchCoreScorer` is the only place that knows the method; everything around it sees "patch embeddings in,
scores and map out".
"""

import time
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from pcrun.backends.device_session import DeviceEmbeddings, DeviceRows
from pcrun.scoring.certify import (
    PatchDistances,
    PatchRows,
    Verifier,
    certify_mask,
    certify_maximum,
    certify_peak,
)
from pcrun.scoring.heatmap import MapGeometry
from pcrun.search import PatchSearch, RefiningSearch
from pcrun.search.graph import GraphSearch
from pcrun.types import FloatArray, Int32Array, Int64Array

Embeddings: TypeAlias = FloatArray | DeviceEmbeddings
EXACTNESS_LEVELS = ("none", "image", "mask", "full")
DEFAULT_EXACTNESS = "mask"


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image.

    Attributes:
        image_score: in L2 units.
        patch_scores: (grid_h, grid_w) float32, distance to the nearest memory-bank entry.
        anomaly_map: (height, width) float32, L2 units.
        verified_patches: patches whose distance was confirmed to be exact (all of them in an exact search).
        search_ms, verify_ms, map_ms: time spent.
    """

    image_score: float
    patch_scores: FloatArray
    anomaly_map: FloatArray
    verified_patches: int
    search_ms: float
    verify_ms: float
    map_ms: float


class ScoreSummary(NamedTuple):
    """Three numbers of one image, L2 units.

    Attributes:
        image_score: exact.
        map_max: largest value of the exact anomaly map.
        patch_median: median patch score, as the search found it.
    """

    image_score: float
    map_max: float
    patch_median: float


class PatchCoreScorer:
    """Patch scores and image score by distance to the memory bank (Roth et al. 2022, section 3.3)."""

    def __init__(
        self,
        rows: FloatArray,
        search: PatchSearch,
        geometry: MapGeometry,
        *,
        exactness: str = DEFAULT_EXACTNESS,
        verifier: Verifier | None = None,
        neighbours: Int32Array | None = None,
    ) -> None:
        """Bind a memory bank and a search.

        Args:
            rows: (count, dim) float32, the memory bank.
            search: how near entries are found.
            geometry: of the anomaly map.
            exactness: what is equal to brute force. "none": nothing, the search is trusted. "image": the
                image score. "mask": the image score, the mask and the map inside it. "full": every patch,
                which needs an exact search.
            verifier: for "image" and "mask".
            neighbours: (count, b) int32 for Eq. 7; None takes the largest patch score as it is.
        """
        if exactness not in EXACTNESS_LEVELS:
            raise ValueError(f"exactness must be one of {EXACTNESS_LEVELS}, got {exactness!r}")
        if exactness == "full" and not search.exact:
            raise ValueError("exactness 'full' needs an exact search")
        if exactness in ("image", "mask") and verifier is None and not search.exact:
            raise ValueError(f"exactness {exactness!r} needs a verifier or an exact search")
        self._rows = rows
        self._neighbours = neighbours
        self._geometry = geometry
        self._verifier = verifier if exactness in ("image", "mask") and not search.exact else None
        self._refine = search.refine if isinstance(search, RefiningSearch) else None
        self.search = search
        self.exactness = "full" if search.exact else exactness

    def score(self, embeddings: Embeddings, *, pixel_threshold: float) -> ImageScores:
        """Score the embeddings of one image, the mask at the given threshold.

        Args:
            embeddings: (patches, dim) float32, or those of one image on the device of the search.
            pixel_threshold: in L2 units.
        """
        distances, ids, search_ms = self._timed_search(embeddings)
        rows = embeddings if isinstance(embeddings, np.ndarray) else DeviceRows(embeddings, 0)
        patches = PatchDistances.found(rows, distances, ids, exact=self.search.exact)
        return self._finish(patches, pixel_threshold, search_ms)

    def score_batch(self, embeddings: Embeddings, *, pixel_threshold: float) -> list[ImageScores]:
        """Score (images, patches, dim) float32 embeddings: one search for all, then each image on its own."""
        images, per_image, dim = embeddings.shape
        together = embeddings.reshape(-1, dim) if isinstance(embeddings, np.ndarray) else embeddings
        distances, ids, search_ms = self._timed_search(together)
        search_ms /= images
        results = []
        for number in range(images):
            image: PatchRows
            if isinstance(embeddings, np.ndarray):
                image = embeddings[number]
            else:
                image = DeviceRows(embeddings, number)
            part = slice(number * per_image, (number + 1) * per_image)
            # Copies: results that outlive the batch must not keep all of it.
            found = (distances[part].copy(), ids[part].copy())
            patches = PatchDistances.found(image, *found, exact=self.search.exact)
            results.append(self._finish(patches, pixel_threshold, search_ms))
        return results

    def peaks(self, embeddings: FloatArray) -> tuple[float, float]:
        """Exact image score and largest map value of the (patches, dim) float32 embeddings of an image.

        Needs a verifier or an exact search, whatever the exactness.
        """
        return self.summarise(embeddings)[:2]

    def summarise(self, embeddings: FloatArray) -> ScoreSummary:
        """What calibration needs of the (patches, dim) float32 embeddings of an image.

        Needs a verifier or an exact search, whatever the exactness.
        """
        distances, ids = self.search.nearest(embeddings)
        median = float(np.median(distances))
        patches = PatchDistances.found(embeddings, distances, ids, exact=self.search.exact)
        if self.search.exact:
            peak = float(self._geometry.draw(distances).max())
            return ScoreSummary(self._image_score(patches), peak, median)
        if self._verifier is None:
            raise ValueError(f"exactness {self.exactness!r} without a verifier cannot give exact peaks")
        self._certify_maximum(patches, self._verifier)
        image_score = self._image_score(patches)
        return ScoreSummary(image_score, certify_peak(patches, self._verifier, self._geometry), median)

    def _timed_search(self, embeddings: Embeddings) -> tuple[FloatArray, Int64Array, float]:
        """Distances, ids and milliseconds of a search, copies from a device not counted."""
        started = time.perf_counter()
        if isinstance(embeddings, np.ndarray):
            distances, ids = self.search.nearest(embeddings)
            return distances, ids, (time.perf_counter() - started) * 1e3
        if not isinstance(self.search, GraphSearch):
            raise ValueError(f"search {self.search.name!r} reads embeddings in the host's memory alone")
        copied_before = embeddings.copies.total_ms
        distances, ids = self.search.nearest_on_device(embeddings)
        if self._neighbours is not None:
            embeddings.host()  # Eq. 7 measures one patch again
        copied = embeddings.copies.total_ms - copied_before
        return distances, ids, (time.perf_counter() - started) * 1e3 - copied

    def _finish(self, patches: PatchDistances, pixel_threshold: float, search_ms: float) -> ImageScores:
        started = time.perf_counter()
        if self._verifier is not None:
            self._certify_maximum(patches, self._verifier)
        image_score = self._image_score(patches)
        if self._verifier is not None and self.exactness == "mask":
            heat = certify_mask(patches, self._verifier, self._geometry, pixel_threshold)
        else:
            heat = self._geometry.draw(patches.distances)
        total_ms = (time.perf_counter() - started) * 1e3
        return ImageScores(
            image_score,
            patches.distances.reshape(self._geometry.grid_hw),
            heat,
            int(patches.verified.sum()),
            search_ms,
            patches.verify_ms,
            total_ms - patches.verify_ms,
        )

    def _certify_maximum(self, patches: PatchDistances, verifier: Verifier) -> None:
        # Eq. 7 looks at the patch with the largest distance, so ties with it are verified as well.
        certify_maximum(patches, verifier, ties=self._neighbours is not None, refine=self._refine)

    def _image_score(self, patches: PatchDistances) -> float:
        worst = int(patches.distances.argmax())
        if self._neighbours is None:
            return float(patches.distances[worst])
        support = self._rows[self._neighbours[patches.ids[worst]]]
        return reweighted_score(patches.embeddings[worst], float(patches.distances[worst]), support)


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
