"""Pictures for people: the anomaly map over the image, with regions and verdict."""

import dataclasses

import cv2
import numpy as np

from pcrun.preprocess import PreprocessSpec, map_on_original
from pcrun.result import AnomalyResult, Region
from pcrun.sources.view import FrameView, Roi
from pcrun.types import FloatArray, UInt8Array

_NORMAL_BGR = (80, 175, 76)
_ANOMALOUS_BGR = (60, 60, 235)
_ROI_BGR = (200, 160, 60)
_MAX_OPACITY = 0.6
# In multiples of the pixel threshold. Most of a normal image lies below three quarters of it and stays clear.
_HEAT_FROM, _HEAT_TO = 0.75, 1.5


def draw_overlay(
    image_bgr: UInt8Array, result: AnomalyResult, spec: PreprocessSpec, view: FrameView | None = None
) -> UInt8Array:
    """Draw a result over its image.

    The colour runs from three quarters of the pixel threshold (transparent) to one and a half times it
    (red), so that equal colours mean equal scores on every image; an image's own range would paint a
    normal one red somewhere.

    Args:
        image_bgr: (height, width, 3) uint8, the (upright) frame.
        result: its result.
        spec: the bundle's preprocessing.
        view: what of the frame was scored; None is all of it.

    Returns:
        (height, width, 3) uint8 BGR, a new image.
    """
    view = view or FrameView()
    full_map = map_on_frame(result.anomaly_map, image_bgr.shape[:2], spec, view)
    blended = _blend(image_bgr, _relative_heat(full_map, result.pixel_threshold))
    colour = _ANOMALOUS_BGR if result.is_anomalous else _NORMAL_BGR
    line = max(1, round(min(image_bgr.shape[:2]) / 250))
    left, top = (view.roi.x, view.roi.y) if view.roi else (0, 0)
    for region in result.regions:
        first = (left + region.x, top + region.y)
        last = (first[0] + region.width - 1, first[1] + region.height - 1)
        cv2.rectangle(blended, first, last, colour, line)
    if view.roi:
        cv2.rectangle(
            blended, (left, top), (left + view.roi.width - 1, top + view.roi.height - 1), _ROI_BGR, line
        )
    return _with_caption(blended, result, colour, line)


def draw_small_overlay(
    image_bgr: UInt8Array,
    result: AnomalyResult,
    spec: PreprocessSpec,
    view: FrameView,
    largest_px: int,
) -> UInt8Array:
    """`draw_overlay` on a smaller frame, at a fraction of its cost.

    Args:
        image_bgr, result, spec, view: as there.
        largest_px: no side of the frame is drawn longer.
    """
    small = shrunk(image_bgr, largest_px)
    height, width = small.shape[:2]
    scale_y, scale_x = height / image_bgr.shape[0], width / image_bgr.shape[1]
    regions = tuple(_scaled_region(region, scale_x, scale_y) for region in result.regions)
    roi = view.roi
    if roi is not None:
        x, y = min(width - 1, round(roi.x * scale_x)), min(height - 1, round(roi.y * scale_y))
        roi = Roi(
            x,
            y,
            min(width - x, max(1, round(roi.width * scale_x))),
            min(height - y, max(1, round(roi.height * scale_y))),
        )
    return draw_overlay(
        small, dataclasses.replace(result, regions=regions), spec, dataclasses.replace(view, roi=roi)
    )


def shrunk(image_bgr: UInt8Array, largest_px: int) -> UInt8Array:
    """The image so small that no side is longer; itself where none is."""
    scale = largest_px / max(image_bgr.shape[:2])
    if scale >= 1:
        return image_bgr
    size = tuple(max(1, round(side * scale)) for side in (image_bgr.shape[1], image_bgr.shape[0]))
    smaller: UInt8Array = cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA)
    return smaller


def map_on_frame(
    anomaly_map: FloatArray, frame_hw: tuple[int, ...], spec: PreprocessSpec, view: FrameView
) -> FloatArray:
    """Bring an anomaly map to the size of the (upright) frame.

    Returns:
        (height, width) float32, L2 units; NaN where nobody looked: outside the region of interest or crop.
    """
    full = np.full(frame_hw[:2], np.nan, np.float32)
    inspected = view.cut(full)
    inspected[:] = map_on_original(anomaly_map, (inspected.shape[0], inspected.shape[1]), spec)
    return full


def map_as_uint16(
    anomaly_map: FloatArray, full_scale: float
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]":
    """Scale a map to 16 bits: 0 is 0, 65535 is `full_scale` (L2 units) and above."""
    in_scale = np.nan_to_num(anomaly_map) / max(full_scale, float(np.finfo(np.float32).tiny))
    scaled = np.clip(in_scale, 0, 1) * 65535
    levels: np.ndarray[tuple[int, ...], np.dtype[np.uint16]] = np.rint(scaled).astype(np.uint16)
    return levels


def _relative_heat(full_map: FloatArray, pixel_threshold: float) -> FloatArray:
    """0 below `_HEAT_FROM` thresholds, 1 above `_HEAT_TO`; 0 where nothing was inspected."""
    in_thresholds = np.nan_to_num(full_map) / max(pixel_threshold, float(np.finfo(np.float32).tiny))
    relative = (in_thresholds - _HEAT_FROM) / (_HEAT_TO - _HEAT_FROM)
    heat: FloatArray = np.clip(relative, 0, 1).astype(np.float32)
    return heat


def _scaled_region(region: Region, scale_x: float, scale_y: float) -> Region:
    return dataclasses.replace(
        region,
        x=round(region.x * scale_x),
        y=round(region.y * scale_y),
        width=max(1, round(region.width * scale_x)),
        height=max(1, round(region.height * scale_y)),
    )


def _blend(image_bgr: UInt8Array, heat: FloatArray) -> UInt8Array:
    colours = cv2.applyColorMap(np.rint(heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    opacity = (heat * _MAX_OPACITY)[:, :, None]
    mixed = image_bgr * (1 - opacity) + colours * opacity
    blended: UInt8Array = np.rint(mixed).astype(np.uint8)
    return blended


def _with_caption(
    image: UInt8Array, result: AnomalyResult, colour: tuple[int, int, int], line: int
) -> UInt8Array:
    verdict = "ANOMALOUS" if result.is_anomalous else "normal"
    text = f"{verdict} {result.image_score:.3f} / {result.threshold:.3f}"
    scale = max(0.35, min(image.shape[1] / 600, 2.0))
    (_, text_height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, line)
    strip = text_height + baseline + 6
    # The caption stands above the image, not on it: a defect may be anywhere.
    canvas: UInt8Array = cv2.copyMakeBorder(image, strip, 0, 0, 0, cv2.BORDER_CONSTANT, value=(24, 24, 24))
    origin = (4, text_height + 3)
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, line, cv2.LINE_AA)
    return canvas
