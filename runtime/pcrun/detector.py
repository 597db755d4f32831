"""The runtime's whole job in one place: an image in, a verdict out."""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pcrun.bundle import Bundle
from pcrun.bundle_files import private_file
from pcrun.errors import BundleError
from pcrun.image_io import as_bgr
from pcrun.manifest import INDEX_NAME, Manifest, ThresholdSpec
from pcrun.preprocess import PreprocessSpec, Window, input_window, preprocess
from pcrun.result import AnomalyResult, Region, StageTimings
from pcrun.scoring import Component, PatchCoreScorer, anomaly_map, components
from pcrun.search import ExactSearch, HnswSearch, PatchSearch, hnswlib_problem, load_hnsw_index
from pcrun.session import Embedder, OnnxEmbedder
from pcrun.threads import available_cores
from pcrun.types import AnyArray

# Above every score: a detector with it calls nothing anomalous.
# float32, because it is compared with maps.
NO_THRESHOLD = float(np.finfo(np.float32).max)


class AnomalyDetector:
    """Gives a verdict on images with one bundle.

    Attributes:
        bundle: the verified bundle, or None for a detector made from parts.
        provider: what the embedder really runs on.
        search: "hnsw" or "exact".
        exactness: "none", "image" or "full".
        threshold, pixel_threshold: in L2 units; may be changed between images.
    """

    def __init__(
        self,
        manifest: Manifest,
        embedder: Embedder,
        scorer: PatchCoreScorer,
        *,
        threshold: float,
        pixel_threshold: float,
        threads: int = 0,
        bundle: Bundle | None = None,
    ) -> None:
        """Put a detector together from its parts; most callers want `load`."""
        self.bundle = bundle
        self.manifest = manifest
        self.threads = threads or available_cores()
        self._embedder = embedder
        self._scorer = scorer
        self.threshold = threshold
        self.pixel_threshold = pixel_threshold
        self.provider = embedder.provider
        self.search = scorer.search.name
        self.exactness = scorer.exactness

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        provider: str = "auto",
        threads: int = 0,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
        exactness: str = "image",
        ef: int | None = None,
    ) -> "AnomalyDetector":
        """Open a bundle and get ready to score.

        Args:
            bundle: path of a .pcbundle directory or zip, or a `Bundle` loaded before.
            provider: "auto", "cpu", "cuda" or "tensorrt".
            threads: 0 is one per available core.
            threshold: overrides the bundle's, in L2 units; the pixel threshold then moves in proportion
                unless given.
            pixel_threshold: overrides the bundle's, in L2 units.
            exactness: "none", "image" or "full" (see `PatchCoreScorer`).
            ef: overrides the bundle's HNSW search width.

        Raises:
            BundleError: the bundle is not sound, or has no threshold and none is given.
            BackendError: the machine cannot run it.
            ValueError: an argument is out of its range.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        threads = threads or available_cores()
        limits = choose_thresholds(opened.manifest, threshold, pixel_threshold)
        scorer = PatchCoreScorer(
            opened.memory_bank,
            _open_search(opened, exactness, ef, threads),
            exactness=exactness,
            neighbours=opened.neighbours,
        )
        embedder = OnnxEmbedder(
            opened.embedder, opened.manifest.embedding, provider=provider, threads=threads
        )
        return cls(
            opened.manifest,
            embedder,
            scorer,
            threshold=limits[0],
            pixel_threshold=limits[1],
            threads=threads,
            bundle=opened,
        )

    def with_exact_search(self) -> "AnomalyDetector":
        """The same detector with every patch scored by brute force; it shares the embedder's session.

        Raises:
            BundleError: this detector was not made from a bundle.
        """
        if self.bundle is None:
            raise BundleError("This detector has no bundle. Expected one from AnomalyDetector.load.")
        rows = self.bundle.memory_bank
        search = ExactSearch(rows, threads=self.threads)
        scorer = PatchCoreScorer(rows, search, exactness="full", neighbours=self.bundle.neighbours)
        return AnomalyDetector(
            self.manifest,
            self._embedder,
            scorer,
            threshold=self.threshold,
            pixel_threshold=self.pixel_threshold,
            threads=self.threads,
            bundle=self.bundle,
        )

    def __call__(self, image_bgr: AnyArray) -> AnomalyResult:
        """Score one image.

        Args:
            image_bgr: (height, width, 3) uint8 BGR, or (height, width) uint8 grey; any size.

        Raises:
            ValueError: another dtype or shape.
        """
        image = as_bgr(image_bgr)
        spec = self.manifest.preprocess
        started = time.perf_counter()
        prepared = preprocess(image, spec)
        preprocessed = time.perf_counter()
        embeddings = self._embedder.embed(prepared[None])[0]
        embedded = time.perf_counter()
        scores = self._scorer.score(embeddings)
        scored = time.perf_counter()
        grid = scores.patch_scores.reshape(
            self.manifest.embedding.grid_height, self.manifest.embedding.grid_width
        )
        heat = anomaly_map(grid, spec.input_hw, self.manifest.scoring.map_sigma_px)
        mask = heat > self.pixel_threshold
        regions = _regions(components(heat, mask), image.shape[:2], spec)
        mapped = time.perf_counter()
        return AnomalyResult(
            image_score=scores.image_score,
            threshold=self.threshold,
            is_anomalous=scores.image_score > self.threshold,
            patch_scores=grid,
            anomaly_map=heat,
            pixel_threshold=self.pixel_threshold,
            mask=mask,
            regions=regions,
            timings=StageTimings(
                preprocess_ms=(preprocessed - started) * 1e3,
                embed_ms=(embedded - preprocessed) * 1e3,
                search_ms=scores.search_ms,
                verify_ms=scores.verify_ms,
                map_ms=(mapped - scored) * 1e3,
            ),
            exactness=self.exactness,
            search=self.search,
            verified_patches=scores.verified_patches,
        )


def choose_thresholds(
    manifest: Manifest, threshold: float | None, pixel_threshold: float | None
) -> tuple[float, float]:
    """The image and pixel threshold in force: the caller's, else the bundle's."""
    image = _chosen("threshold", threshold, manifest.scoring.threshold)
    stored = manifest.scoring.threshold
    if pixel_threshold is None and threshold is not None and manifest.scoring.pixel_threshold and stored:
        # A stricter verdict should mark smaller areas too: both thresholds move by the same factor.
        factor = threshold / stored.value if stored.value > 0 else 1.0
        return image, manifest.scoring.pixel_threshold.value * factor
    return image, _chosen("pixel-threshold", pixel_threshold, manifest.scoring.pixel_threshold)


def _chosen(name: str, given: float | None, stored: ThresholdSpec | None) -> float:
    if given is not None:
        if not math.isfinite(given):
            raise ValueError(f"{name} must be a finite number, got {given}")
        return given
    if stored is None:
        raise BundleError(f"The bundle has no {name}. Expected one from its build; pass --{name}.")
    return stored.value


def _open_search(bundle: Bundle, exactness: str, ef: int | None, threads: int) -> PatchSearch:
    if exactness == "full" or bundle.manifest.memory_bank.index is None:
        return ExactSearch(bundle.memory_bank, threads=threads)
    problem = hnswlib_problem()
    if problem:
        warnings.warn(f"{problem}: exact search is used, slower and with the same scores.", stacklevel=3)
        return ExactSearch(bundle.memory_bank, threads=threads)
    # hnswlib loads by path: it gets a copy of the verified bytes, which nobody can change in between.
    with private_file(bundle.read(INDEX_NAME)) as path:
        index = load_hnsw_index(path, bundle.memory_bank)
    return HnswSearch(index, ef=bundle.manifest.search.ef if ef is None else ef, threads=threads)


def _regions(
    found: list[Component], original_hw: tuple[Any, ...], spec: PreprocessSpec
) -> tuple[Region, ...]:
    window = input_window((original_hw[0], original_hw[1]), spec)
    return tuple(_region(component, window, spec.input_hw, original_hw) for component in found)


def _region(
    component: Component, window: Window, input_hw: tuple[int, int], original_hw: tuple[Any, ...]
) -> Region:
    scale_y, scale_x = window.height / input_hw[0], window.width / input_hw[1]
    left, top = math.floor(window.x + component.x * scale_x), math.floor(window.y + component.y * scale_y)
    right = math.ceil(window.x + (component.x + component.width) * scale_x)
    bottom = math.ceil(window.y + (component.y + component.height) * scale_y)
    left, right = max(0, left), min(original_hw[1], right)
    top, bottom = max(0, top), min(original_hw[0], bottom)
    area = max(1, round(component.area_px * scale_x * scale_y))
    return Region(left, top, max(1, right - left), max(1, bottom - top), area, component.max_score)
