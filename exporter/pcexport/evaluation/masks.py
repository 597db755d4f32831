"""Defect masks of labelled images."""

import cv2
import numpy as np

from pcexport.datasets import TestImage
from pcexport.errors import BuildError
from pcrun.types import BoolArray


def load_mask(image: TestImage, image_hw: tuple[int, int]) -> BoolArray | None:
    """True on defects, (height, width); None for a defective image without a mask."""
    if not image.is_defective:
        return np.zeros(image_hw, bool)
    if image.mask is None:
        return None
    mask = cv2.imread(str(image.mask), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise BuildError(f"{image.mask} cannot be read as a mask. Expected a grey image.")
    if mask.shape != image_hw:
        raise BuildError(
            f"{image.mask} has {mask.shape[1]}x{mask.shape[0]} px, its image {image_hw[1]}x{image_hw[0]}. "
            "Expected masks of their image's size."
        )
    marked: BoolArray = mask > 0
    return marked
