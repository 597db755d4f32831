"""Running a bundle over images, exactly as a device would, and keeping what the metrics need."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcexport.calibration.seen import SeenImages
from pcexport.datasets import ImageRef, TestImage
from pcexport.datasets.masks import load_mask
from pcexport.datasets.reader import ImageReader
from pcexport.errors import BuildError
from pcexport.evaluation.pixels import PixelCounts, count_pixels
from pcexport.progress import Step
from pcrun.detector import AnomalyDetector
from pcrun.preprocess import map_on_original
from pcrun.result import AnomalyResult
from pcrun.types import BoolArray, UInt8Array


@dataclass(frozen=True)
class ScoredImage:
    """What one image scored.

    Attributes:
        image: which one.
        labelled: whether it is known to be normal or defective.
        score: image score, L2 units.
        is_anomalous: the verdict.
        map_maximum: largest value of its anomaly map, L2 units.
        regions: number of regions above the pixel threshold.
        size: width and height in pixels.
        timings_ms: per stage of the runtime.
        pixels: for pixel metrics; None without a label or a mask.
    """

    image: TestImage
    labelled: bool
    score: float
    is_anomalous: bool
    map_maximum: float
    regions: int
    size: tuple[int, int]
    timings_ms: dict[str, float]
    pixels: PixelCounts | None

    @property
    def label(self) -> str:
        """ "normal", "defective" or "unlabelled"."""
        if not self.labelled:
            return "unlabelled"
        return "defective" if self.image.is_defective else "normal"


def score_images(
    images: Sequence[TestImage], reader: ImageReader, detector: AnomalyDetector, step: Step, *, labelled: bool
) -> tuple[list[ScoredImage], list[ImageRef]]:
    """Score every readable image; one map is in memory at a time.

    Returns:
        What each scored, and which of them are in the memory bank.

    Raises:
        BuildError: none can be read, or a mask does not belong to its image.
    """
    scored = []
    seen = SeenImages(detector)
    pixels_by_ref = reader.read_all(image.ref for image in images)
    for done, (image, (_, pixels)) in enumerate(zip(images, pixels_by_ref, strict=True), start=1):
        if pixels is not None:
            embedded = detector.embed(pixels)
            result = detector.score(embedded)
            seen.look(image.ref, embedded.embeddings, result.patch_scores)
            scored.append(_scored(image, pixels, result, detector, labelled=labelled))
        step.advance_to(done)
    if not scored:
        raise BuildError(f"None of the {len(images)} images can be read. Expected images to evaluate on.")
    return scored, seen.found()


def mask_of(image: TestImage, image_hw: tuple[int, int]) -> BoolArray | None:
    """True on defects, (height, width); None for a defective image without a mask.

    Raises:
        BuildError: the mask does not belong to the image.
    """
    if not image.is_defective and not image.masks:
        return np.zeros(image_hw, bool)
    return load_mask(image, image_hw)


def _scored(
    image: TestImage, pixels: UInt8Array, result: AnomalyResult, detector: AnomalyDetector, *, labelled: bool
) -> ScoredImage:
    height, width = pixels.shape[:2]
    mask = mask_of(image, (height, width)) if labelled else None
    counts = None
    if mask is not None:
        full = map_on_original(result.anomaly_map, (height, width), detector.manifest.preprocess)
        counts = count_pixels(full, mask, result.pixel_threshold)
    timings = {
        **{
            stage.removesuffix("_ms"): value
            for stage, value in dataclasses.asdict(result.timings).items()
            if value is not None  # copies, where there is no GPU
        },
        "total": result.timings.total_ms,
    }
    return ScoredImage(
        image,
        labelled,
        result.image_score,
        result.is_anomalous,
        float(result.anomaly_map.max()),
        len(result.regions),
        (width, height),
        timings,
        counts,
    )
