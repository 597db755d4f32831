"""From a decoded image to the embedder's input, in one place for the exporter and the runtime.

Scaling to [0, 1] and the mean/standard-deviation normalisation are inside the ONNX graph: nothing here can
get them wrong.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from pcrun.types import FloatArray, UInt8Array

MAX_INPUT_SIDE_PX = 4096


@dataclass(frozen=True)
class PreprocessSpec:
    """How an image becomes the embedder's input.

    Attributes:
        resize_height_px, resize_width_px: size after resizing.
        crop_height_px, crop_width_px: centred window kept after resizing; the embedder's input size.
        keep_aspect: False stretches the whole image to the resize size; True scales it, aspect kept, until it
            covers the resize size (what then lies outside the crop is not inspected).
        white_level_16bit: the value of a 16-bit image that becomes 255.
    """

    resize_height_px: int
    resize_width_px: int
    crop_height_px: int
    crop_width_px: int
    keep_aspect: bool = False
    white_level_16bit: int = 65535

    def __post_init__(self) -> None:
        for name in ("resize_height_px", "resize_width_px", "crop_height_px", "crop_width_px"):
            if not 1 <= getattr(self, name) <= MAX_INPUT_SIDE_PX:
                raise ValueError(f"{name} must be 1..{MAX_INPUT_SIDE_PX}, got {getattr(self, name)}")
        if self.crop_height_px > self.resize_height_px or self.crop_width_px > self.resize_width_px:
            raise ValueError(
                f"the crop ({self.crop_height_px}x{self.crop_width_px}) must fit into the resized image "
                f"({self.resize_height_px}x{self.resize_width_px})"
            )
        if not 1 <= self.white_level_16bit <= 65535:
            raise ValueError(f"white_level_16bit must be 1..65535, got {self.white_level_16bit}")

    @property
    def input_hw(self) -> tuple[int, int]:
        """Height and width of the embedder's input in pixels."""
        return self.crop_height_px, self.crop_width_px


@dataclass(frozen=True)
class Window:
    """Where the embedder's input lies in the original image, in original pixels (fractions allowed)."""

    x: float
    y: float
    width: float
    height: float


def preprocess(image_bgr: UInt8Array, spec: PreprocessSpec) -> UInt8Array:
    """Resize, crop and reorder one image for the embedder.

    Args:
        image_bgr: (height, width, 3) uint8, BGR.
        spec: sizes and mode.

    Returns:
        (crop_height_px, crop_width_px, 3) uint8, RGB, contiguous.
    """
    resized = resize_uint8(image_bgr, _resized_hw(image_bgr.shape[:2], spec))
    top, left = _crop_origin(resized.shape[:2], spec)
    window = resized[top : top + spec.crop_height_px, left : left + spec.crop_width_px]
    rgb: UInt8Array = cv2.cvtColor(window, cv2.COLOR_BGR2RGB)
    return rgb


def resize_uint8(image: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    """Resize with antialiasing: area averaging where an axis shrinks, bilinear where it grows.

    OpenCV's INTER_AREA falls back to bilinear (aliasing) for both axes as soon as one of them grows, so an
    image that shrinks along one axis only is resized in two steps.
    """
    height, width = image.shape[:2]
    target_h, target_w = size_hw
    if (height, width) == size_hw:
        return image
    shrunk_hw = (min(height, target_h), min(width, target_w))
    if shrunk_hw != (height, width):
        image = cv2.resize(image, shrunk_hw[::-1], interpolation=cv2.INTER_AREA)
    if shrunk_hw != size_hw:
        image = cv2.resize(image, (target_w, target_h), interpolation=cv2.INTER_LINEAR)
    return image


def input_window(original_hw: tuple[int, int], spec: PreprocessSpec) -> Window:
    """The part of an original image that the embedder sees."""
    resized_h, resized_w = _resized_hw(original_hw, spec)
    top, left = _crop_origin((resized_h, resized_w), spec)
    scale_y, scale_x = original_hw[0] / resized_h, original_hw[1] / resized_w
    return Window(left * scale_x, top * scale_y, spec.crop_width_px * scale_x, spec.crop_height_px * scale_y)


def map_on_original(
    anomaly_map: FloatArray, original_hw: tuple[int, int], spec: PreprocessSpec
) -> FloatArray:
    """Bring an anomaly map to the original image's size.

    Args:
        anomaly_map: (crop_height_px, crop_width_px) float32, L2 units.
        original_hw: height and width of the original image in pixels.
        spec: the preprocessing that the map's image went through.

    Returns:
        (height, width) float32; NaN where the embedder did not look (outside the crop).
    """
    window = input_window(original_hw, spec)
    left, top = round(window.x), round(window.y)
    # At least one pixel: a crop of a tiny image can be narrower than that.
    right = max(left + 1, round(window.x + window.width))
    bottom = max(top + 1, round(window.y + window.height))
    full = np.full(original_hw, np.nan, np.float32)
    full[top:bottom, left:right] = cv2.resize(
        anomaly_map, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR
    )
    return full


def _resized_hw(original_hw: tuple[int, ...], spec: PreprocessSpec) -> tuple[int, int]:
    if not spec.keep_aspect:
        return spec.resize_height_px, spec.resize_width_px
    height, width = original_hw[:2]
    scale = max(spec.resize_height_px / height, spec.resize_width_px / width)
    return max(spec.resize_height_px, round(height * scale)), max(spec.resize_width_px, round(width * scale))


def _crop_origin(resized_hw: tuple[int, ...], spec: PreprocessSpec) -> tuple[int, int]:
    return (resized_hw[0] - spec.crop_height_px) // 2, (resized_hw[1] - spec.crop_width_px) // 2
