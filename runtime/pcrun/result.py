"""What the detector returns for one image."""

from dataclasses import dataclass

from pcrun.types import BoolArray, FloatArray


@dataclass(frozen=True)
class StageTimings:
    """Milliseconds spent in each stage of one image (decoding belongs to the source).

    Copies to and from a GPU are stages of their own, and None where nothing runs on one.
    """

    preprocess_ms: float
    embed_ms: float
    search_ms: float
    verify_ms: float
    map_ms: float
    host_to_device_ms: float | None = None
    device_to_host_ms: float | None = None

    @property
    def total_ms(self) -> float:
        """Sum of all stages."""
        computing = self.preprocess_ms + self.embed_ms + self.search_ms + self.verify_ms + self.map_ms
        return computing + (self.host_to_device_ms or 0.0) + (self.device_to_host_ms or 0.0)


@dataclass(frozen=True)
class Region:
    """Bounding box of one part of the mask, in whole pixels of the original image.

    Attributes:
        x, y: left and top edge.
        width, height: size, at least 1.
        area_px: pixels of the part itself, in original pixels (rounded).
        max_score: largest anomaly-map value inside, L2 units.
    """

    x: int
    y: int
    width: int
    height: int
    area_px: int
    max_score: float


@dataclass(frozen=True)
class AnomalyResult:
    """Verdict, scores and map of one image.

    Attributes:
        image_score: in L2 units.
        threshold: the image is anomalous above it.
        is_anomalous: image_score > threshold.
        patch_scores: (grid_h, grid_w) float32, L2 units.
        anomaly_map: (height, width) float32 at the embedder's input size, L2 units.
        pixel_threshold: the mask is where the map is above it.
        mask: (height, width) bool, same size as the map.
        regions: parts of the mask, strongest first, in original pixels.
        timings: per stage.
        exactness: what is equal to brute force: "none", "image" (the image score), "mask" (that, the mask and
            the map inside it) or "full" (every patch).
        search: one of `pcrun.search.SEARCH_NAMES`.
        verified_patches: patches whose distance was confirmed to be exact.
    """

    image_score: float
    threshold: float
    is_anomalous: bool
    patch_scores: FloatArray
    anomaly_map: FloatArray
    pixel_threshold: float
    mask: BoolArray
    regions: tuple[Region, ...]
    timings: StageTimings
    exactness: str
    search: str
    verified_patches: int
