"""The runtime's whole job in one place: an image in, a verdict out."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcrun.backends.device_session import DeviceEmbedder
from pcrun.backends.embedder import CopyingEmbedder, CopyTimes, Embedder
from pcrun.backends.engine_file import Engine, load_engine
from pcrun.backends.session import open_embedder
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import Manifest, ThresholdSpec
from pcrun.errors import BundleError
from pcrun.images.image_io import as_bgr
from pcrun.preprocess import preprocess
from pcrun.result import AnomalyResult, StageTimings
from pcrun.scoring.embedded import EmbeddedImage, embed_prepared, first_of
from pcrun.scoring.heatmap import components
from pcrun.scoring.open import open_scorer
from pcrun.scoring.regions import found_regions
from pcrun.scoring.scorer import DEFAULT_EXACTNESS, ImageScores, PatchCoreScorer, ScoreSummary
from pcrun.selftest import ArithmeticChange, check_changed_arithmetic
from pcrun.tuning.profile import DeviceProfile, RunSettings
from pcrun.tuning.settings import choose_settings
from pcrun.types import AnyArray

# Above every score: a detector with it calls nothing anomalous.
# float32, because it is compared with maps.
NO_THRESHOLD = float(np.finfo(np.float32).max)


class AnomalyDetector:
    """Gives a verdict on images with one bundle.

    Attributes:
        bundle: the verified bundle, or None for a detector made from parts.
        provider: what the embedder really runs on.
        precision: what it really computes in.
        search: engine in use, one of `pcrun.search.SEARCH_NAMES`.
        exactness: "none", "image", "mask" or "full".
        threshold, pixel_threshold: in L2 units; may be changed between images.
        settings: everything that was chosen for this device; None for a detector made from parts.
        profile: the device profile they came from, if any.
        copies: whether the embedder has a memory of its own, so that timings have copies.
        change: what another arithmetic than the build's does to the golden samples; None for the same.
    """

    def __init__(
        self,
        manifest: Manifest,
        embedder: Embedder,
        scorer: PatchCoreScorer,
        *,
        threshold: float,
        pixel_threshold: float,
        bundle: Bundle | None = None,
        settings: RunSettings | None = None,
        profile: DeviceProfile | None = None,
    ) -> None:
        """Put a detector together from its parts; most callers want `load`."""
        self.bundle = bundle
        self.manifest = manifest
        self.settings = settings
        self.profile = profile
        self._embedder = embedder
        self._scorer = scorer
        self.threshold = threshold
        self.pixel_threshold = pixel_threshold
        self.provider = embedder.provider
        self.precision = embedder.precision
        self.change: ArithmeticChange | None = None
        self._engine: Engine | None = None
        self.search = scorer.search.name
        self.exactness = scorer.exactness
        self.copies = isinstance(embedder, CopyingEmbedder)

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        provider: str = "auto",
        precision: str | None = None,
        threads: int = 0,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
        exactness: str = DEFAULT_EXACTNESS,
        search: str = "auto",
        ef: int | None = None,
        profile: bool = True,
        engine: str | Path | None = None,
        share_with: "Sequence[AnomalyDetector]" = (),
    ) -> "AnomalyDetector":
        """Open a bundle and get ready to score.

        Args:
            bundle: path of a .pcbundle directory or zip, or a `Bundle` loaded before.
            provider: "auto" or a name of `pcrun.backends.session.PROVIDERS`.
            precision: "bf16" runs an fp32 bundle in bfloat16; None is the profile's, else the bundle's.
            threads: of the embedder and of the search; 0 is the profile's, else one per available core.
            threshold, pixel_threshold: override the bundle's; the second moves with the first unless given.
            exactness: what equals brute force: "none", "image", "mask" or "full" (see `PatchCoreScorer`).
            search, ef: "auto" or a name of `pcrun.search.SEARCH_NAMES`; search width of the HNSW index.
            profile: use the device profile of `pcrun tune`, if any; what is given here goes before it.
            engine: a native TensorRT engine of `pcrun compile` that runs the embedder.
            share_with: detectors whose embedder is used when it is the same, opened in the same way.

        Raises:
            BundleError: the bundle is not sound, or has no threshold and none is given.
            BackendError: the machine cannot run it, or computes so differently that a verdict changes.
            ValueError: an argument is out of its range.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        loaded = load_engine(Path(engine), opened) if engine is not None else None
        settings, used = choose_settings(
            opened,
            provider=provider,
            precision=precision,
            threads=threads,
            exactness=exactness,
            search=search,
            ef=ef,
            use_profile=profile,
            engine_precision=loaded.facts.precision if loaded else None,
        )
        detector = cls.with_settings(
            opened,
            settings,
            limits=choose_thresholds(opened.manifest, threshold, pixel_threshold),
            exactness=exactness,
            profile=used,
            engine=loaded,
            share_with=share_with,
        )
        if detector.change:
            warnings.warn(str(detector.change), stacklevel=2)
        return detector

    @classmethod
    def with_settings(
        cls,
        bundle: Bundle,
        settings: RunSettings,
        *,
        limits: tuple[float, float],
        exactness: str = DEFAULT_EXACTNESS,
        profile: DeviceProfile | None = None,
        engine: Engine | None = None,
        share_with: "Sequence[AnomalyDetector]" = (),
    ) -> "AnomalyDetector":
        """A detector with exactly these settings; `limits` are the image and the pixel threshold.

        A native `engine` runs the embedder where there is one.

        Raises:
            BackendError: the machine cannot run it, or computes so differently that a verdict changes.
        """
        scorer = open_scorer(bundle, settings, exactness=exactness)
        shared = [
            other._embedder for other in share_with if other._has_same_embedder(bundle, settings, engine)
        ]
        embedder = shared[0] if shared else _open_embedder(bundle, settings, engine)
        detector = cls(
            bundle.manifest,
            embedder,
            scorer,
            threshold=limits[0],
            pixel_threshold=limits[1],
            bundle=bundle,
            settings=settings,
            profile=profile,
        )
        detector._engine = engine
        detector.change = check_changed_arithmetic(
            detector,
            allow_flips=engine is not None and engine.facts.flips_allowed,
            advice=", or allow it with `pcrun compile --allow-flips`" if engine else "",
        )
        return detector

    def _has_same_embedder(self, bundle: Bundle, settings: RunSettings, engine: Engine | None) -> bool:
        if self.bundle is None or self.settings is None:
            return False
        same_graph = self.bundle.embedder == bundle.embedder
        same_spec = self.bundle.manifest.embedding == bundle.manifest.embedding
        mine, wanted = self.settings, settings
        return (
            same_graph
            and same_spec
            and self._engine == engine
            and (mine.provider, mine.precision, mine.threads, mine.spinning)
            == (wanted.provider, wanted.precision, wanted.threads, wanted.spinning)
        )

    @property
    def engine_folder(self) -> Path | None:
        """Where onnxruntime's TensorRT provider keeps its engines; None on other providers."""
        return self._embedder.engine_folder if isinstance(self._embedder, DeviceEmbedder) else None

    def with_exact_search(self) -> "AnomalyDetector":
        """The same detector with every patch scored by brute force; it shares the embedder's session.

        Raises:
            BundleError: this detector was not made from a bundle.
        """
        if self.bundle is None or self.settings is None:
            raise BundleError("This detector has no bundle. Expected one from AnomalyDetector.load.")
        settings = dataclasses.replace(self.settings, search="exact", ef=None)
        return AnomalyDetector(
            self.manifest,
            self._embedder,
            open_scorer(self.bundle, settings, exactness="full"),
            threshold=self.threshold,
            pixel_threshold=self.pixel_threshold,
            bundle=self.bundle,
            settings=settings,
        )

    def __call__(self, image_bgr: AnyArray) -> AnomalyResult:
        """Score one image.

        Args:
            image_bgr: (height, width, 3) uint8 BGR, or (height, width) uint8 grey; any size.

        Raises:
            ValueError: another dtype or shape.
        """
        return self.score(self.embed(image_bgr))

    def embed(self, image_bgr: AnyArray) -> EmbeddedImage:
        """The first half of a verdict; another thread may take the second, while this one goes on.

        Args:
            image_bgr: as for `__call__`.

        Raises:
            ValueError: another dtype or shape.
        """
        image = as_bgr(image_bgr)
        started = time.perf_counter()
        prepared = preprocess(image, self.manifest.preprocess)
        preprocessed = time.perf_counter()
        found, embed_ms, copies = embed_prepared(self._embedder, self._scorer.search, prepared[None])
        height, width = image.shape[:2]
        preprocess_ms = (preprocessed - started) * 1e3
        return EmbeddedImage(first_of(found), (height, width), preprocess_ms, embed_ms, copies)

    def score(self, embedded: EmbeddedImage) -> AnomalyResult:
        """The second half of a verdict: search, verification, map and regions."""
        scores = self._scorer.score(embedded.found, pixel_threshold=self.pixel_threshold)
        return self._verdict(
            embedded.original_hw, scores, embedded.preprocess_ms, embedded.embed_ms, embedded.copies
        )

    def batch(self, images_bgr: Sequence[AnyArray]) -> list[AnomalyResult]:
        """Score several images at once: one call of the embedder and one search for all of them.

        A result does not depend on the other images; its stage timings are the batch's, divided evenly.

        Args:
            images_bgr: as for a single image; their sizes may differ.

        Raises:
            ValueError: another dtype or shape.
        """
        if len(images_bgr) == 0:
            return []
        images = [as_bgr(image) for image in images_bgr]
        started = time.perf_counter()
        prepared = np.stack([preprocess(image, self.manifest.preprocess) for image in images])
        preprocessed = time.perf_counter()
        embeddings, embed_ms, copies = embed_prepared(self._embedder, self._scorer.search, prepared)
        scores = self._scorer.score_batch(embeddings, pixel_threshold=self.pixel_threshold)
        share = 1 / len(images)
        preprocess_ms, embed_ms = (preprocessed - started) * 1e3 * share, embed_ms * share
        copies = copies.times(share) if copies else None
        return [
            self._verdict(image.shape[:2], of_image, preprocess_ms, embed_ms, copies)
            for image, of_image in zip(images, scores, strict=True)
        ]

    def peaks(self, image_bgr: AnyArray) -> tuple[float, float]:
        """Exact image score and exact largest map value, both in L2 units: what thresholds are chosen from.

        The map of `__call__` is exact only where it is above the pixel threshold.
        """
        return self.summarise(image_bgr)[:2]

    def summarise(self, image_bgr: AnyArray) -> ScoreSummary:
        """The peaks, and the median patch score as the search found it."""
        prepared = preprocess(as_bgr(image_bgr), self.manifest.preprocess)
        return self._scorer.summarise(self._embedder.embed(prepared[None])[0])

    def _verdict(
        self,
        original_hw: tuple[int, ...],
        scores: ImageScores,
        preprocess_ms: float,
        embed_ms: float,
        copies: CopyTimes | None,
    ) -> AnomalyResult:
        started = time.perf_counter()
        mask = scores.anomaly_map > self.pixel_threshold
        regions = found_regions(components(scores.anomaly_map, mask), original_hw, self.manifest.preprocess)
        map_ms = scores.map_ms + (time.perf_counter() - started) * 1e3
        return AnomalyResult(
            image_score=scores.image_score,
            threshold=self.threshold,
            is_anomalous=scores.image_score > self.threshold,
            patch_scores=scores.patch_scores,
            anomaly_map=scores.anomaly_map,
            pixel_threshold=self.pixel_threshold,
            mask=mask,
            regions=regions,
            timings=StageTimings(
                preprocess_ms,
                embed_ms,
                scores.search_ms,
                scores.verify_ms,
                map_ms,
                copies.host_to_device_ms if copies else None,
                copies.device_to_host_ms if copies else None,
            ),
            exactness=self.exactness,
            search=self.search,
            verified_patches=scores.verified_patches,
        )


def _open_embedder(bundle: Bundle, settings: RunSettings, engine: Engine | None) -> Embedder:
    if engine is not None:
        from pcrun.backends.tensorrt_session import TensorRtEmbedder

        return TensorRtEmbedder(engine, bundle.manifest.embedding)
    return open_embedder(
        bundle.embedder,
        bundle.manifest.embedding,
        provider=settings.provider,
        precision=settings.precision,
        threads=settings.threads,
        spinning=settings.spinning,
        beside=bundle.path,
    )


def missing_limit(manifest: Manifest) -> float | None:
    """What to give as both thresholds where a bundle need not have any: its own (None), else out of reach."""
    return None if manifest.scoring.threshold else NO_THRESHOLD


def choose_thresholds(
    manifest: Manifest, threshold: float | None, pixel_threshold: float | None
) -> tuple[float, float]:
    """The image and pixel threshold in force: the caller's, else the bundle's."""
    if manifest.scoring.threshold is None and threshold is None and pixel_threshold is None:
        raise BundleError(
            "The bundle has no thresholds. Expected those from its build; pass --threshold and "
            "--pixel-threshold."
        )
    image = _chosen("threshold", threshold, manifest.scoring.threshold)
    stored = manifest.scoring.threshold
    if pixel_threshold is None and threshold is not None and manifest.scoring.pixel_threshold and stored:
        # A stricter verdict should mark smaller areas too: both thresholds move by the same factor.
        factor = threshold / stored.value if stored.value > 0 else 1.0
        return image, min(manifest.scoring.pixel_threshold.value * factor, NO_THRESHOLD)
    return image, _chosen("pixel-threshold", pixel_threshold, manifest.scoring.pixel_threshold)


def _chosen(name: str, given: float | None, stored: ThresholdSpec | None) -> float:
    if given is not None:
        if not 0 <= given <= NO_THRESHOLD:  # NaN too
            raise ValueError(f"{name} must be a finite number, at least 0 as scores are; got {given}")
        return given
    if stored is None:
        raise BundleError(f"The bundle has no {name}. Expected one from its build; pass --{name}.")
    return stored.value
