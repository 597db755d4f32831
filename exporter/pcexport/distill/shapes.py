"""Outlines for procedural pictures: masks in 0..1 with smooth edges, (size, size) float32."""

import math
import string

import cv2
import numpy as np

from pcexport.distill.surfaces import Rng, coordinates
from pcrun.types import FloatArray, UInt8Array

_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_PLAIN,
)
_SYMBOLS = string.ascii_letters + string.digits + "-+#/%&"


def polygon(rng: Rng, size: int, centre: tuple[float, float], radius: float) -> FloatArray:
    """A convex or jagged polygon of 3 to 9 corners."""
    corners = int(rng.integers(3, 10))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radii = radius * rng.uniform(0.5 if rng.random() < 0.5 else 0.95, 1.0, corners)
    points = np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], 1)
    return _filled(size, points)


def box(rng: Rng, size: int, centre: tuple[float, float], radius: float) -> FloatArray:
    """A rectangle, upright more often than turned."""
    angle = 0.0 if rng.random() < 0.6 else rng.uniform(0, math.pi)
    half = radius * np.array([1.0, rng.uniform(0.1, 1.0)])
    if rng.random() < 0.5:
        half = half[::-1]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    cos, sin = math.cos(angle), math.sin(angle)
    return _filled(size, corners @ np.array([[cos, sin], [-sin, cos]]) + centre)


def ellipse(rng: Rng, size: int, centre: tuple[float, float], radius: float) -> FloatArray:
    """A disc, an ellipse or a ring."""
    mask = empty_mask(size)
    shape = (radius, radius * (1.0 if rng.random() < 0.5 else rng.uniform(0.3, 1.0)))
    turn = rng.uniform(0, 180)
    _draw_ellipse(mask, centre, shape, turn, 255)
    if rng.random() < 0.35:
        inner = rng.uniform(0.3, 0.92)
        _draw_ellipse(mask, centre, (shape[0] * inner, shape[1] * inner), turn, 0)
    return as_field(mask)


def gear(rng: Rng, size: int, centre: tuple[float, float], radius: float) -> FloatArray:
    """An outline whose radius swings: gears, screws seen from the end, nuts, petals."""
    x, y = coordinates(size, 0.0)
    x, y = x + np.float32(size / 2 - centre[0]), y + np.float32(size / 2 - centre[1])
    wave = np.sin(np.arctan2(y, x) * np.float32(rng.integers(3, 28)))
    swing = np.tanh(wave * np.float32(rng.uniform(1, 4)))
    edge = np.float32(radius) * (1 + np.float32(rng.uniform(0.03, 0.2)) * swing)
    return np.clip(edge - np.hypot(x, y), 0, 1).astype(np.float32)


def thread(rng: Rng, size: int, centre: tuple[float, float], radius: float) -> FloatArray:
    """A rod with a wavy edge on both sides: screws, springs, cables, seen from the side."""
    along, across = coordinates(size, rng.uniform(0, math.pi))
    along = along + np.float32(size / 2 - centre[0])
    across = across + np.float32(size / 2 - centre[1])
    period = rng.uniform(3, 14)
    wave = np.abs(((along / np.float32(period)) % 1) - np.float32(0.5)) * np.float32(2)
    half = np.float32(radius * rng.uniform(0.12, 0.35)) + wave * np.float32(period * rng.uniform(0.1, 0.6))
    inside = np.minimum(half - np.abs(across), np.float32(radius) - np.abs(along))
    return np.clip(inside, 0, 1).astype(np.float32)


def letters(rng: Rng, size: int, centre: tuple[float, float], radius: float) -> FloatArray:
    """Printed characters."""
    mask = empty_mask(size)
    text = "".join(rng.choice(list(_SYMBOLS), int(rng.integers(1, 9))))
    scale, thickness = radius / 22 * rng.uniform(0.5, 1.0), max(1, int(radius / 18 * rng.uniform(0.5, 2)))
    font = int(rng.choice(_FONTS))
    (width, height), _ = cv2.getTextSize(text, font, scale, thickness)
    origin = (int(centre[0] - width / 2), int(centre[1] + height / 2))
    cv2.putText(mask, text, origin, font, scale, 255, thickness, cv2.LINE_AA)
    if rng.random() < 0.4:
        matrix = cv2.getRotationMatrix2D(centre, rng.uniform(-180, 180), 1.0)
        mask = cv2.warpAffine(mask, matrix, (size, size))
    return as_field(mask)


SHAPES = (polygon, box, box, ellipse, ellipse, gear, thread, letters)


def shape(rng: Rng, size: int, centre: tuple[float, float], radius: float) -> FloatArray:
    """A mask of some kind about `centre` (x, y) of about `radius` pixels."""
    return SHAPES[int(rng.integers(len(SHAPES)))](rng, size, centre, radius)


def empty_mask(size: int) -> UInt8Array:
    """What to draw a mask on: OpenCV draws smooth edges on 8-bit images alone."""
    return np.zeros((size, size), np.uint8)


def as_field(mask: UInt8Array) -> FloatArray:
    """A drawn mask as float32, 0..1."""
    return mask.astype(np.float32) * np.float32(1 / 255)


def _filled(size: int, points: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> FloatArray:
    mask = empty_mask(size)
    # Four binary digits of a pixel, for edges that do not snap to the grid.
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return as_field(mask)


def _draw_ellipse(
    mask: UInt8Array, centre: tuple[float, float], axes: tuple[float, float], turn: float, value: int
) -> None:
    cv2.ellipse(mask, (centre, (2 * axes[0] + 1, 2 * axes[1] + 1), turn), value, -1, cv2.LINE_AA)
