"""The defects of the demo part; one small function each, from barely visible to clear.

Every function takes a generator and a placed part and returns a `Flaw`: what changes, and the mask of where.
Lengths are in design units (du), see `render`.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from pcexport.demo import render as dr
from pcrun.types import BoolArray, FloatArray


def no_flaw(part: dr.Part) -> dr.Flaw:
    """A good part."""
    return dr.Flaw(np.zeros(part.x.shape, np.bool_))


def scratch(rng: np.random.Generator, part: dr.Part) -> dr.Flaw:
    """A thin bent groove, 14 to 80 du long, with raised lips and a floor that shines or is dark."""
    severity = rng.uniform()
    half_length = 7 + 33 * severity * rng.uniform(0.8, 1.0)
    x0, y0 = _spot_on_face(rng, part, clearance_du=2.0)
    angle = rng.uniform(0, math.pi)
    bend, wobble, phase = rng.uniform(-0.006, 0.006), rng.uniform(0.2, 0.7), rng.uniform(0, 6.3)
    width = 0.55 + 0.35 * severity
    cos, sin = math.cos(angle), math.sin(angle)
    dx, dy = part.x - np.float32(x0), part.y - np.float32(y0)
    t = dx * np.float32(cos) + dy * np.float32(sin)
    n = dy * np.float32(cos) - dx * np.float32(sin)
    off = n - np.float32(bend) * t * t - np.float32(wobble) * np.sin(t / 6 + np.float32(phase))
    pressure = np.interp(np.linspace(-1, 1, 64), np.linspace(-1, 1, 7), rng.uniform(0.45, 1.0, 7))
    along = np.interp(t, np.linspace(-half_length, half_length, 64), pressure, left=0, right=0)
    along *= np.clip((half_length - np.abs(t)) / 4, 0, 1)
    groove = np.exp(-np.square(off / width))
    lips = np.exp(-np.square((np.abs(off) - 2.0 * width) / width))
    depth = (0.45 + 0.55 * severity) * along
    shine = rng.uniform(0.25, 0.6) * (0.5 + 0.5 * severity) * np.where(rng.uniform() < 0.75, 1.0, -0.8)
    mask = (np.abs(off) < 2.2 * width + 0.4) & (along > 0.12) & _metal(part)
    return dr.Flaw(
        mask,
        height=(depth * (0.35 * lips - groove)).astype(np.float32),
        glow=(shine * along * groove).astype(np.float32),
    )


def dent(rng: np.random.Generator, part: dr.Part) -> dr.Flaw:
    """A smooth uneven hollow, 10 to 34 du across, with a low pushed-up rim; the texture runs through it."""
    severity = rng.uniform()
    radius = 5 + 12 * severity
    x0, y0 = _spot_on_face(rng, part, clearance_du=0.8 * radius)
    angle, squeeze = rng.uniform(0, math.pi), rng.uniform(0.6, 1.0)
    cos, sin = math.cos(angle), math.sin(angle)
    dx, dy = part.x - np.float32(x0), part.y - np.float32(y0)
    d2 = (np.square(dx * cos + dy * sin) + np.square((dy * cos - dx * sin) / squeeze)) / radius**2
    uneven = dr.smooth_noise(rng, part.x.shape[0], 22)
    d2 *= np.clip(1.0 + 0.10 * uneven, 0.7, 1.4)
    bowl = np.square(np.clip(1.0 - d2, 0.0, 1.0))
    rim = np.square(np.clip(1.0 - np.square((np.sqrt(d2) - 1.0) / 0.2), 0.0, 1.0))
    depth = radius * rng.uniform(0.07, 0.19)
    mask = (d2 < 1.2**2) & _metal(part)
    return dr.Flaw(mask, height=(depth * (0.10 * rim - bowl)).astype(np.float32))


def chip(rng: np.random.Generator, part: dr.Part) -> dr.Flaw:
    """A piece broken off the outer edge, 5 to 18 du deep: missing metal and a rough sloped fracture."""
    severity = rng.uniform()
    depth = 4.5 + 11 * severity
    stretch = rng.uniform(0.9, 1.6)
    angle = rng.uniform(0, 2 * math.pi)
    turned = (
        np.remainder(part.phi - np.float32(angle) + np.float32(math.pi), np.float32(2 * math.pi)) - math.pi
    )
    s = turned * dr.OUTER_RADIUS_DU / stretch
    q = part.r - dr.OUTER_RADIUS_DU - 2.0
    distance, theta = cv2.cartToPolar(s, q)
    ragged = sum(
        rng.normal(0, 0.09 / k**0.5) * np.sin(k * theta + rng.uniform(0, 2 * math.pi))
        for k in (2, 3, 5, 9, 14)
    )
    bite = distance - (depth + 2.0) * (1.0 + ragged)
    slope_width = 1.5 + 0.22 * depth
    facet = np.clip(1.0 - bite / slope_width, 0.0, 1.0)
    rough = dr.smooth_noise(rng, part.x.shape[0], 110)
    mask = (bite < slope_width) & (part.r < dr.OUTER_RADIUS_DU + 0.5)
    return dr.Flaw(
        mask,
        height=(-facet * (0.5 * slope_width + 0.35 * rough)).astype(np.float32),
        glow=np.where(facet > 0, -0.05 + 0.14 * rough, 0.0).astype(np.float32),
        bite=bite.astype(np.float32),
    )


def stain(rng: np.random.Generator, part: dr.Part) -> dr.Flaw:
    """Oil (brown film with a darker rim) or rust (orange, speckled), 10 to 50 du across."""
    severity = rng.uniform()
    radius = 7 + 24 * severity
    x0, y0 = _spot_on_face(rng, part, clearance_du=0.0)
    size = part.x.shape[0]
    d = np.hypot(part.x - np.float32(x0), part.y - np.float32(y0)) / np.float32(radius)
    ragged = 0.20 * dr.smooth_noise(rng, size, 16) + 0.07 * dr.smooth_noise(rng, size, 50)
    edge = d - 0.75 + ragged * np.clip(2 * d, 0.0, 1.0)
    amount = 0.30 + 0.45 * severity
    rusty = rng.uniform() < 0.5
    if rusty:
        speckle = np.clip(0.62 + 0.35 * dr.smooth_noise(rng, size, 90), 0.15, 1.0)
        film = np.clip(-edge / 0.45, 0.0, 1.0) * speckle
        absorbs = (0.85, 0.62, 0.30)
    else:
        inside = np.clip(-edge / 0.22, 0.0, 1.0)
        thickness = 0.55 + 0.14 * dr.smooth_noise(rng, size, 24)
        film = inside * np.clip(thickness + 0.30 * np.exp(-np.square((edge + 0.18) / 0.10)), 0.0, 1.0)
        absorbs = (0.80, 0.60, 0.48)
    film = (amount * film).astype(np.float32)
    return dr.Flaw((film > 0.04) & _metal(part), film=film, film_absorbs=absorbs)


def missing_hole(rng: np.random.Generator, part: dr.Part) -> dr.Flaw:
    """One bolt hole was not drilled; half of them show the punch mark where the drill should have started."""
    k = int(rng.integers(dr.N_HOLES))
    cx, cy = part.hole_centres()[k]
    d = np.hypot(part.x - np.float32(cx), part.y - np.float32(cy))
    punch = rng.uniform(0.5, 1.1) * (rng.uniform() < 0.5)
    mask = d < dr.HOLE_RADIUS_DU + dr.HOLE_CHAMFER_DU
    return dr.Flaw(mask, height=(-punch * np.exp(-np.square(d / 1.5))).astype(np.float32), missing_hole=k)


DEFECTS: dict[str, Callable[[np.random.Generator, dr.Part], dr.Flaw]] = {
    "scratch": scratch,
    "dent": dent,
    "chip": chip,
    "stain": stain,
    "missing_hole": missing_hole,
}


def _spot_on_face(rng: np.random.Generator, part: dr.Part, *, clearance_du: float) -> tuple[float, float]:
    """A point of the flange face, `clearance_du` from hub, edge and holes where that is possible."""
    low, high = dr.HUB_RADIUS_DU + 4, dr.OUTER_RADIUS_DU - dr.EDGE_CHAMFER_DU - 2
    inset = min(clearance_du, (high - low) / 2 - 1)
    x = y = 0.0
    for _ in range(50):
        r, a = rng.uniform(low + inset, high - inset), rng.uniform(0, 2 * math.pi)
        x, y = r * math.cos(a), r * math.sin(a)
        nearest = min(math.hypot(x - cx, y - cy) for cx, cy in part.hole_centres())
        if nearest > dr.HOLE_RADIUS_DU + dr.HOLE_CHAMFER_DU + clearance_du:
            break
    return x, y


def _metal(part: dr.Part) -> BoolArray:
    """(H, W) bool, pixels where a good part shows metal."""
    inside: FloatArray = np.maximum(part.r - dr.OUTER_RADIUS_DU, dr.BORE_RADIUS_DU - part.r)
    for cx, cy in part.hole_centres():
        rows, cols = part.window((cx, cy), dr.HOLE_RADIUS_DU + 2)
        d = np.hypot(part.x[rows, cols] - np.float32(cx), part.y[rows, cols] - np.float32(cy))
        inside[rows, cols] = np.maximum(inside[rows, cols], dr.HOLE_RADIUS_DU - d)
    return np.asarray(inside < 0.5 / part.scale)
