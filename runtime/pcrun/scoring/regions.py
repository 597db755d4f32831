"""From parts of the mask to regions of the original image."""

import math
from typing import Any

from pcrun.preprocess import PreprocessSpec, Window, input_window
from pcrun.result import Region
from pcrun.scoring.heatmap import Component


def found_regions(
    found: list[Component], original_hw: tuple[Any, ...], spec: PreprocessSpec
) -> tuple[Region, ...]:
    """The regions of some parts of a mask.

    Args:
        found: at the embedder's input size.
        original_hw: height and width of the image in pixels.
        spec: how the input was made from it.
    """
    window = input_window((original_hw[0], original_hw[1]), spec)
    return tuple(_region(component, window, spec.input_hw, original_hw) for component in found)


def _region(
    component: Component, window: Window, input_hw: tuple[int, int], original_hw: tuple[Any, ...]
) -> Region:
    scale_y, scale_x = window.height / input_hw[0], window.width / input_hw[1]
    left, top = math.floor(window.x + component.x * scale_x), math.floor(window.y + component.y * scale_y)
    right = math.ceil(window.x + (component.x + component.width) * scale_x)
    bottom = math.ceil(window.y + (component.y + component.height) * scale_y)
    left, right = max(0, left), min(original_hw[1], right)
    top, bottom = max(0, top), min(original_hw[0], bottom)
    area = max(1, round(component.area_px * scale_x * scale_y))
    return Region(left, top, max(1, right - left), max(1, bottom - top), area, component.max_score)
