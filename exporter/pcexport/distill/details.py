"""Small irregularities on procedural pictures: what makes one patch differ from its neighbours.

A detector lives from such differences, most of them thin or faint, so pictures are full of them.
"""

import math

import cv2
import numpy as np

from pcexport.distill.shapes import as_field, empty_mask
from pcexport.distill.surfaces import Rng, white
from pcrun.types import FloatArray, UInt8Array


def scratch(rng: Rng, size: int) -> FloatArray:
    """A thin straight or curved line, broken or not."""
    mask = empty_mask(size)
    start, heading = rng.uniform(0, size, 2), rng.uniform(0, 2 * math.pi)
    bend, pieces = rng.normal(0, 0.04), int(rng.integers(3, 40))
    points = [start]
    for _ in range(pieces):
        heading += bend
        points.append(points[-1] + rng.uniform(2, 6) * np.array([math.cos(heading), math.sin(heading)]))
    _polyline(mask, np.array(points), 1 if rng.random() < 0.8 else 2)
    return as_field(mask)


def crack(rng: Rng, size: int) -> FloatArray:
    """A branching random walk."""
    mask = empty_mask(size)
    for _ in range(int(rng.integers(1, 4))):
        steps = rng.normal(0, 2.5, (int(rng.integers(8, 50)), 2)) + rng.normal(0, 1.5, 2)
        _polyline(mask, rng.uniform(0, size, 2) + np.cumsum(steps, 0), 1)
    return as_field(mask)


def spot(rng: Rng, size: int) -> FloatArray:
    """A dent, drop or grain: sharp or soft, round or ragged."""
    mask = empty_mask(size)
    radius = math.exp(rng.uniform(0, math.log(14)))
    centre = (float(rng.uniform(0, size)), float(rng.uniform(0, size)))
    axes = (2 * radius + 1, 2 * radius * rng.uniform(0.3, 1) + 1)
    cv2.ellipse(mask, (centre, axes, rng.uniform(0, 180)), 255, -1, cv2.LINE_AA)
    field = as_field(mask)
    if rng.random() < 0.5:
        ragged = cv2.GaussianBlur(white(rng, (size, size)), (0, 0), max(radius / 4, 0.8))
        field *= ragged > 0
    if rng.random() < 0.5:
        field = cv2.GaussianBlur(field, (0, 0), rng.uniform(0.5, 3)).astype(np.float32)
    return field


def stain(rng: Rng, size: int) -> FloatArray:
    """A faint ragged patch."""
    mask = empty_mask(size)
    centre = (int(rng.integers(0, size)), int(rng.integers(0, size)))
    cv2.circle(mask, centre, int(rng.integers(6, 36)), 255, -1, cv2.LINE_AA)
    ragged = cv2.GaussianBlur(white(rng, (size, size)), (0, 0), rng.uniform(2, 8))
    return cv2.GaussianBlur(as_field(mask) * (ragged > 0), (0, 0), rng.uniform(0.8, 4)).astype(np.float32)


def dust(rng: Rng, size: int) -> FloatArray:
    """Several tiny points or short fibres."""
    mask = empty_mask(size)
    for _ in range(int(rng.integers(2, 30))):
        x, y = rng.uniform(0, size, 2)
        angle, length = rng.uniform(0, math.pi), rng.exponential(2.5)
        end = (int(x + length * math.cos(angle)), int(y + length * math.sin(angle)))
        cv2.line(mask, (int(x), int(y)), end, 255, 1, cv2.LINE_AA)
    return as_field(mask)


DETAILS = (scratch, scratch, crack, spot, spot, stain, dust)


def add_details(rng: Rng, image: FloatArray) -> FloatArray:
    """Put some irregularities, brighter or darker than what they lie on, onto an image.

    Args:
        rng: of the picture.
        image: (size, size, 3) float32, 0..1.
    """
    size = image.shape[0]
    for _ in range(int(rng.geometric(0.28)) - 1):
        mask = DETAILS[int(rng.integers(len(DETAILS)))](rng, size)
        strength = math.exp(rng.uniform(math.log(0.04), math.log(0.8))) * rng.choice([-1.0, 1.0])
        tint = np.ones(3, np.float32)
        if rng.random() < 0.25:
            tint = rng.uniform(0, 1, 3).astype(np.float32)
        image = image + mask[..., None] * tint * np.float32(strength)
    return image


def _polyline(
    mask: UInt8Array, points: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]", width: int
) -> None:
    cv2.polylines(mask, [np.round(points * 16).astype(np.int32)], False, 255, width, cv2.LINE_AA, 4)
