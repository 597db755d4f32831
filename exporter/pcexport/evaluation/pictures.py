"""Pictures of single images for the report: as they are, their map, their mask, and all together."""

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from pcexport.datasets.reader import ImageReader
from pcexport.evaluation.scored import ScoredImage, mask_of
from pcexport.report.page import jpeg_address
from pcrun.detector import AnomalyDetector
from pcrun.images.overlay import draw_small_overlay, map_on_frame, shrunk
from pcrun.result import AnomalyResult
from pcrun.sources.view import FrameView
from pcrun.types import UInt8Array

_QUALITY = 82
_LARGE_PX, _SMALL_PX = 300, 200
# A map's colours end at this multiple of the pixel threshold.
_MAP_FULL_SCALE = 1.5
_MASK_BGR = (80, 80, 235)


@dataclass(frozen=True)
class Pictures:
    """An image in the report.

    Attributes:
        scored: what it scored.
        overlay: `data:` address of the image with map and regions.
        image, map, mask: the same apart, where they are shown; mask is None without one.
    """

    scored: ScoredImage
    overlay: str
    image: str | None = None
    map: str | None = None
    mask: str | None = None


class Painter:
    """Scores images once more for their pictures: thousands of maps would not fit into memory."""

    def __init__(self, detector: AnomalyDetector, reader: ImageReader) -> None:
        self._detector = detector
        self._reader = reader

    def overlay(self, scored: ScoredImage) -> Pictures:
        """For the gallery."""
        pixels = self._reader.read(scored.image.ref)
        return Pictures(scored, self._overlay(pixels, self._detector(pixels), _SMALL_PX))

    def everything(self, scored: ScoredImage) -> Pictures:
        """For the worst ones."""
        pixels = self._reader.read(scored.image.ref)
        result = self._detector(pixels)
        small = shrunk(pixels, _LARGE_PX)
        mask = mask_of(scored.image, (pixels.shape[0], pixels.shape[1])) if scored.labelled else None
        marked = None
        if mask is not None and mask.any():
            marked = small // 2
            inside = shrunk(mask.astype(np.uint8) * 255, _LARGE_PX) > 0
            marked[inside] = _MASK_BGR
        return Pictures(
            scored,
            self._overlay(pixels, result, _LARGE_PX),
            jpeg_address(small, _QUALITY),
            jpeg_address(self._map(small, result), _QUALITY),
            jpeg_address(marked, _QUALITY) if marked is not None else None,
        )

    def _overlay(self, pixels: UInt8Array, result: AnomalyResult, largest_px: int) -> str:
        spec = self._detector.manifest.preprocess
        drawn = draw_small_overlay(pixels, _without_threshold(result), spec, FrameView(), largest_px)
        # Score and verdict stand below: the strip that the overlay adds on top is cut off.
        return jpeg_address(drawn[-shrunk(pixels, largest_px).shape[0] :], _QUALITY)

    def _map(self, small: UInt8Array, result: AnomalyResult) -> UInt8Array:
        spec = self._detector.manifest.preprocess
        full = map_on_frame(result.anomaly_map, small.shape, spec, FrameView())
        scale = _MAP_FULL_SCALE * max(result.pixel_threshold, float(np.finfo(np.float32).tiny))
        levels = np.rint(np.clip(np.nan_to_num(full) / scale, 0, 1) * 255).astype(np.uint8)
        coloured: UInt8Array = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)
        return coloured


def _without_threshold(result: AnomalyResult) -> AnomalyResult:
    """The overlay's caption, which is cut off, would be as wide as the largest float32."""
    return dataclasses.replace(result, threshold=0.0)
