"""Pixel scores in bounded memory: how many pixels of an image have which score, in defects and outside."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pcexport.evaluation.curves import Counts
from pcrun.types import BoolArray, FloatArray

# A float32 without its lowest bits is a bin: 512 of them from any value to its double, so two values in one
# bin differ by 0.2 % at most. No range has to be known beforehand.
_DROPPED_BITS = 14
_LARGEST_BIN = int(np.float32(np.finfo(np.float32).max).view(np.uint32)) >> _DROPPED_BITS


@dataclass(frozen=True)
class PixelCounts:
    """What is kept of one image's map.

    Attributes:
        first_bin: of the arrays below.
        normal: (bins,) pixels without a defect.
        defective: (bins,) pixels of a defect.
        overlaps: (bins,) for each bin, the sum over defect regions of the share of their pixels in it.
        regions: connected defect regions.
        true, false, missed: pixels above the pixel threshold with and without a defect, and defective ones
            that are not.
    """

    first_bin: int
    normal: npt.NDArray[np.uint32]
    defective: npt.NDArray[np.uint32]
    overlaps: npt.NDArray[np.float32]
    regions: int
    true: int
    false: int
    missed: int


def count_pixels(anomaly_map: FloatArray, mask: BoolArray, pixel_threshold: float) -> PixelCounts:
    """Count one image.

    Args:
        anomaly_map: (height, width) float32 at the image's size, L2 units; NaN, where nobody looked, counts
            as 0.
        mask: (height, width) bool, True on defects.
        pixel_threshold: L2 units.
    """
    scores = np.nan_to_num(anomaly_map, nan=0.0)
    bins = np.clip(bins_of(scores), 0, _LARGEST_BIN)
    first = int(bins.min())
    bins -= first
    size = int(bins.max()) + 1
    overlaps: Counts = np.zeros(size)
    # Regions touch at corners too, as in the metric's own definition.
    regions, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    if regions > 1:
        areas = np.bincount(labels.ravel(), minlength=regions)
        inside = labels > 0
        shares = 1.0 / areas[labels[inside]]
        overlaps = np.bincount(bins[inside], weights=shares, minlength=size).astype(np.float64)
    above = scores > pixel_threshold
    return PixelCounts(
        first,
        np.bincount(bins[~mask], minlength=size).astype(np.uint32),
        np.bincount(bins[mask], minlength=size).astype(np.uint32),
        overlaps.astype(np.float32),
        regions - 1,
        int((above & mask).sum()),
        int((above & ~mask).sum()),
        int((~above & mask).sum()),
    )


def bins_of(scores: FloatArray) -> npt.NDArray[np.int64]:
    """The bin of each score; larger scores have larger or equal bins."""
    positive = np.ascontiguousarray(np.maximum(scores, 0), np.float32)
    return (positive.view(np.uint32) >> _DROPPED_BITS).astype(np.int64)


@dataclass(frozen=True)
class PixelTable:
    """Several images over the same bins, as matrices that resampling can be multiplied with.

    Attributes:
        normal, defective, overlaps: (images, bins).
        regions: (images,).
        scores: (bins,) smallest score of each bin, L2 units.
    """

    normal: Counts
    defective: Counts
    overlaps: Counts
    regions: Counts
    scores: FloatArray

    @classmethod
    def of(cls, images: Sequence[PixelCounts]) -> "PixelTable":
        """Put images side by side; bins that no image has are left out."""
        filled = [counts.first_bin + np.flatnonzero(counts.normal | counts.defective) for counts in images]
        used = np.unique(np.concatenate(filled))
        shape = (len(images), len(used))
        table = cls(
            np.zeros(shape),
            np.zeros(shape),
            np.zeros(shape),
            np.array([counts.regions for counts in images], np.float64),
            (used.astype(np.uint32) << _DROPPED_BITS).view(np.float32),
        )
        for row, (counts, bins) in enumerate(zip(images, filled, strict=True)):
            columns, own = np.searchsorted(used, bins), bins - counts.first_bin
            table.normal[row, columns] = counts.normal[own]
            table.defective[row, columns] = counts.defective[own]
            table.overlaps[row, columns] = counts.overlaps[own]
        return table
