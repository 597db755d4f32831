"""The part of a frame that is inspected: rotated first, then cut out."""

from dataclasses import dataclass

import cv2

from pcrun.errors import SourceError
from pcrun.types import AnyArray, UInt8Array

_ROTATIONS = {
    90: cv2.ROTATE_90_CLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_COUNTERCLOCKWISE,
}
ROTATIONS_DEG = (0, *_ROTATIONS)


@dataclass(frozen=True)
class Roi:
    """A rectangle in whole pixels of the (rotated) frame."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.x < 0 or self.y < 0 or self.width < 1 or self.height < 1:
            raise ValueError(
                f"a region of interest needs x, y >= 0 and a size of at least 1x1 px, got {self}"
            )

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


@dataclass(frozen=True)
class FrameView:
    """How a camera's picture is turned and cut before it is scored.

    Attributes:
        rotate_deg: clockwise, one of 0, 90, 180, 270.
        roi: what is inspected; None is all of it.
    """

    rotate_deg: int = 0
    roi: Roi | None = None

    def turn(self, image: UInt8Array) -> UInt8Array:
        """The whole frame, upright: results are in its pixels."""
        return cv2.rotate(image, _ROTATIONS[self.rotate_deg]) if self.rotate_deg else image

    def cut(self, upright: AnyArray) -> AnyArray:
        """The inspected part of a frame, or of a map of its size, sharing its memory.

        Raises:
            SourceError: it does not lie in the frame.
        """
        roi = self.roi
        if roi is None:
            return upright
        height, width = upright.shape[:2]
        if roi.x + roi.width > width or roi.y + roi.height > height:
            raise SourceError(
                f"the region of interest {roi} does not lie in the frame of {width}x{height} px. "
                "Expected x,y,w,h inside it."
            )
        return upright[roi.y : roi.y + roi.height, roi.x : roi.x + roi.width]
