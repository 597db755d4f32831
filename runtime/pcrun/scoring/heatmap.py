"""The anomaly map: from patch scores to pixels, and from pixels back to the patches that shape them."""

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from pcrun.types import AnyArray, BoolArray, FloatArray, Int64Array

_GAUSSIAN_TRUNCATE = 4.0


@dataclass(frozen=True)
class MapGeometry:
    """Sizes that turn a grid of patch scores into an anomaly map.

    Attributes:
        grid_hw: patches, rows and columns.
        output_hw: height and width of the map in pixels.
        sigma_px: Gaussian sigma in map pixels; 0 disables smoothing.
    """

    grid_hw: tuple[int, int]
    output_hw: tuple[int, int]
    sigma_px: float

    def draw(self, patch_scores: FloatArray) -> FloatArray:
        """The map of (patches,) float32 scores, row-major over the grid."""
        return anomaly_map(patch_scores.reshape(self.grid_hw), self.output_hw, self.sigma_px)

    def patches_reaching(self, pixels: BoolArray) -> BoolArray:
        """Which patches have any weight in any of the given pixels.

        Args:
            pixels: (height, width) bool.

        Returns:
            (patches,) bool, row-major; a patch at the rim of the weights may be named without need.
        """
        counts = cv2.integral(pixels.astype(np.uint8))
        (top, bottom), (left, right) = self._supports
        inside: AnyArray = counts[np.ix_(bottom, right)] - counts[np.ix_(top, right)]
        inside += counts[np.ix_(top, left)] - counts[np.ix_(bottom, left)]
        return (inside > 0).ravel()

    @functools.cached_property
    def _supports(self) -> tuple[tuple[Int64Array, Int64Array], ...]:
        """First and one past the last pixel of each patch's weights, per axis."""
        radius = gaussian_radius(self.sigma_px)
        return tuple(
            _support(patches, pixels, radius)
            for patches, pixels in zip(self.grid_hw, self.output_hw, strict=True)
        )


def _support(patches: int, pixels: int, radius: int) -> tuple[Int64Array, Int64Array]:
    """Bilinear weights reach one patch to each side, the Gaussian `radius` pixels farther.

    Reflection at the border only brings back pixels that are as near. One pixel of margin for rounding.
    """
    scale = pixels / patches
    first = np.floor((np.arange(patches) - 0.5) * scale - 0.5) - radius - 1
    last = np.ceil((np.arange(patches) + 1.5) * scale - 0.5) + radius + 1
    return (
        np.clip(first, 0, pixels).astype(np.int64),
        np.clip(last + 1, 0, pixels).astype(np.int64),
    )


def gaussian_radius(sigma_px: float) -> int:
    """Pixels that the Gaussian reaches to each side; it is cut off there."""
    return int(_GAUSSIAN_TRUNCATE * sigma_px + 0.5) if sigma_px else 0


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
    side = 2 * gaussian_radius(sigma_px) + 1
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
