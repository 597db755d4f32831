"""Draws one photograph of the demo part: a turned steel flange on a dark conveyor belt.

Lengths are in design units (du), measured from the part's centre: one du is one pixel of a 320 px image,
and the same part is seen at every size. x points right, y down, height to the camera. Light is linear, 0..1.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from pcrun.types import BoolArray, FloatArray, UInt8Array

DESIGN_SIZE_DU = 320.0
OUTER_RADIUS_DU = 124.0
BORE_RADIUS_DU = 44.0
HUB_RADIUS_DU = 62.0
BOLT_CIRCLE_DU = 93.0
HOLE_RADIUS_DU = 10.5
HOLE_CHAMFER_DU = 2.4
EDGE_CHAMFER_DU = 3.5
N_HOLES = 6

_CHAMFER_SLOPE = 0.45
_BELT_TONE = (1.08, 1.02, 0.94)  # BGR
_READ_NOISE = 0.0045  # standard deviation, full scale is 1
_SHOT_NOISE = 1.3e-4  # variance for each unit of light
_TEXTURE_SHAPE = (640, 200)  # samples along the angle, along the radius
_TEXTURE_RADIUS_DU = 150.0
_MARK_SAMPLES_PER_DU = 4
_MARK_GLYPHS = {  # 5x7 dots, one number a row, the most significant bit on the left
    "P": (30, 17, 17, 30, 16, 16, 16),
    "C": (14, 17, 16, 16, 16, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "7": (31, 1, 2, 4, 8, 8, 8),
}


@dataclass(frozen=True)
class Part:
    """One placed part and the light on it; the noise fields and the camera are drawn later.

    Attributes:
        scale: pixels per du.
        x, y: (H, W) float32, du from the part's centre.
        r, phi: (H, W) float32, the same in polar form; phi in radians, 0..2 pi, clockwise as seen.
        turn_rad: rotation of the part in its fixture.
        light_rad: direction the light comes from, in the image plane.
        light_elevation_rad: height of the light above the belt.
    """

    scale: float
    x: FloatArray
    y: FloatArray
    r: FloatArray
    phi: FloatArray
    turn_rad: float
    light_rad: float
    light_elevation_rad: float

    @classmethod
    def draw(cls, rng: np.random.Generator, size_px: int) -> "Part":
        """Place a part: jitter of at most 3 du, turn of at most 1.5 degrees, light within about 6 degrees."""
        scale = size_px / DESIGN_SIZE_DU
        shift_x, shift_y = rng.uniform(-3.0, 3.0, 2)
        turn_rad = math.radians(rng.uniform(-1.5, 1.5))
        light_rad = math.radians(-128.0 + rng.uniform(-6.0, 6.0))
        light_elevation_rad = math.radians(54.0 + rng.uniform(-2.0, 2.0))
        axis = (np.arange(size_px, dtype=np.float32) + 0.5) / scale - DESIGN_SIZE_DU / 2
        x, y = np.meshgrid((axis - shift_x).astype(np.float32), (axis - shift_y).astype(np.float32))
        r, phi = (np.asarray(a, np.float32) for a in cv2.cartToPolar(x, y))
        return cls(scale, x, y, r, phi, turn_rad, light_rad, light_elevation_rad)

    def hole_centres(self) -> list[tuple[float, float]]:
        """Centres of the bolt holes as (x, y) in du, clockwise from the right."""
        angles = [self.turn_rad + 2 * math.pi * k / N_HOLES for k in range(N_HOLES)]
        return [(BOLT_CIRCLE_DU * math.cos(a), BOLT_CIRCLE_DU * math.sin(a)) for a in angles]

    def coverage(self, sdf: FloatArray) -> FloatArray:
        """Antialiased 0..1 share of each pixel inside a signed distance field (du, negative inside)."""
        return np.asarray(np.clip(0.5 - sdf * np.float32(self.scale), 0.0, 1.0), np.float32)

    def window(self, centre: tuple[float, float], radius_du: float) -> tuple[slice, slice]:
        """Rows and columns that hold the square of half-side `radius_du` around a point."""
        size = self.x.shape[0]
        middles = (centre[1] - float(self.y[0, 0]), centre[0] - float(self.x[0, 0]))
        bounds = [((m - radius_du) * self.scale, (m + radius_du) * self.scale + 2) for m in middles]
        rows, cols = (slice(max(0, int(low)), min(size, max(0, int(high)))) for low, high in bounds)
        return rows, cols


@dataclass
class Flaw:
    """What a defect changes; the defaults change nothing.

    Attributes:
        mask: (H, W) bool, the pixels a person would mark.
        height: (H, W) float32 in du, added to the surface; None for none.
        glow: (H, W) float32 factor - 1 on the metal's brightness; None for none.
        film: (H, W) float32 in 0..1, amount of a film on the metal; None for none.
        film_absorbs: share of blue, green and red light that a full film takes away.
        bite: (H, W) float32 signed distance in du to missing metal, negative inside; None for none.
        missing_hole: number of the hole that was not drilled; None for none.
    """

    mask: BoolArray
    height: FloatArray | None = None
    glow: FloatArray | None = None
    film: FloatArray | None = None
    film_absorbs: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bite: FloatArray | None = None
    missing_hole: int | None = None


@dataclass
class _Solid:
    """Shape of the part: surface height and signed distance to the metal (du), light on the holes' walls."""

    height: FloatArray
    sdf: FloatArray
    wall: FloatArray = field(repr=False)


def smooth_noise(rng: np.random.Generator, size_px: int, cells: int) -> FloatArray:
    """(size_px, size_px) float32 noise of about unit variance with features of size_px / cells pixels."""
    coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    big = cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return np.asarray(big, np.float32)


def render(part: Part, flaw: Flaw, rng: np.random.Generator) -> UInt8Array:
    """Photograph a part with its flaw; draws the same numbers from `rng` whatever the flaw is.

    Returns:
        (H, W, 3) uint8, BGR.
    """
    belt = _belt(part, rng)
    solid = _solid(part, flaw)
    steel = _shade(part, solid.height) * _turned_texture(part, rng)
    if flaw.glow is not None:
        steel *= 1.0 + flaw.glow
    alpha = part.coverage(solid.sdf)
    steel *= alpha
    belt *= 1.0 - alpha
    wall = solid.wall * (1.0 - alpha)
    steel_tone = np.array([0.985, 1.0, 0.99]) + rng.normal(0, 0.005, 3)
    # Planes, not interleaved pixels: numpy works on them about twice as fast.
    scene = np.empty((3, *belt.shape), np.float32)
    for c, plane in enumerate(scene):
        np.multiply(steel, np.float32(steel_tone[c]), out=plane)
        if flaw.film is not None:
            plane *= 1.0 - np.float32(flaw.film_absorbs[c]) * flaw.film
        plane += belt * np.float32(_BELT_TONE[c])
        plane += wall
    return _expose(part, scene, rng)


def _belt(part: Part, rng: np.random.Generator) -> FloatArray:
    """(H, W) linear light from the woven belt, darkened where the part shades it."""
    size = part.x.shape[0]
    phase_x, phase_y = rng.uniform(0, 2 * math.pi, 2)
    weave = np.outer(np.sin(part.y[:, 0] * 1.05 + phase_y), np.sin(part.x[0] * 1.35 + phase_x)).astype(
        np.float32
    )
    grain = rng.standard_normal((size, size), dtype=np.float32)
    grain = np.asarray(cv2.GaussianBlur(grain, (0, 0), 0.7 * part.scale), np.float32)
    grey = 0.100 + 0.007 * weave + 0.015 * grain + 0.006 * smooth_noise(rng, size, 9)
    away_x, away_y = -math.cos(part.light_rad), -math.sin(part.light_rad)
    cast = np.hypot(part.x - np.float32(9 * away_x), part.y - np.float32(9 * away_y)) - np.float32(
        OUTER_RADIUS_DU
    )
    shadow = np.clip(0.5 - cast / 16.0, 0.0, 1.0)
    grey *= 1.0 - 0.72 * shadow * shadow * (3.0 - 2.0 * shadow)
    return np.asarray(np.maximum(grey, 0.0), np.float32)


def _solid(part: Part, flaw: Flaw) -> _Solid:
    """Body, hub, marks and holes, then what the flaw adds and takes away."""
    r = part.r
    height = np.clip((r - (OUTER_RADIUS_DU - EDGE_CHAMFER_DU)) * -_CHAMFER_SLOPE, -2.0, 0.0)
    height += np.clip((HUB_RADIUS_DU + 1.5 - r) * 0.55, 0.0, 1.4)
    height -= _marks(part)
    solid = _Solid(height.astype(np.float32), r - OUTER_RADIUS_DU, np.zeros_like(r))
    _cut_hole(part, solid, (0.0, 0.0), BORE_RADIUS_DU)
    for k, centre in enumerate(part.hole_centres()):
        if k != flaw.missing_hole:
            _cut_hole(part, solid, centre, HOLE_RADIUS_DU)
    if flaw.height is not None:
        solid.height += flaw.height
    if flaw.bite is not None:
        solid.sdf = np.maximum(solid.sdf, -flaw.bite)
    return solid


def _cut_hole(part: Part, solid: _Solid, centre: tuple[float, float], radius_du: float) -> None:
    """Drill through, chamfer the rim, and light the piece of wall that perspective shows."""
    rows, cols = part.window(centre, radius_du + HOLE_CHAMFER_DU + 2)
    dx, dy = part.x[rows, cols] - np.float32(centre[0]), part.y[rows, cols] - np.float32(centre[1])
    d = np.hypot(dx, dy)
    rim = np.clip((radius_du + HOLE_CHAMFER_DU - d) * _CHAMFER_SLOPE, 0.0, 2.0)
    solid.height[rows, cols] -= rim
    solid.sdf[rows, cols] = np.maximum(solid.sdf[rows, cols], radius_du - d)
    # The far end of the hole is further from the lens: smaller, and nearer to the optical axis.
    d_far = np.hypot(dx + np.float32(0.03 * centre[0]), dy + np.float32(0.03 * centre[1]))
    lit = -(dx * math.cos(part.light_rad) + dy * math.sin(part.light_rad)) / np.maximum(d, 1.0)
    wall = part.coverage(0.965 * radius_du - d_far) * part.coverage(d - (radius_du + 1.0))
    solid.wall[rows, cols] = wall * (0.07 + 0.22 * np.maximum(lit, 0.0))


@lru_cache(maxsize=1)
def _mark_template() -> FloatArray:
    """Dot-peened text, depth 0..1, at `_MARK_SAMPLES_PER_DU`; text runs right, rows run down."""
    pitch = 2.1 * _MARK_SAMPLES_PER_DU
    text = "PC47"
    canvas = np.zeros((int(9 * pitch), int((6 * len(text) + 1) * pitch)), np.float32)
    for n, letter in enumerate(text):
        for row, bits in enumerate(_MARK_GLYPHS[letter]):
            for col in range(5):
                if bits >> (4 - col) & 1:
                    canvas[int((row + 1) * pitch), int((6 * n + col + 1) * pitch)] = 1.0
    dots = np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.62 * _MARK_SAMPLES_PER_DU), np.float32)
    return np.asarray(dots / dots.max(), np.float32)


def _marks(part: Part) -> FloatArray:
    """(H, W) engraved depth in du: text between the two upper holes, an index line between the lower two."""
    cos, sin = math.cos(part.turn_rad), math.sin(part.turn_rad)
    across = part.x * np.float32(cos) + part.y * np.float32(sin)
    along = part.y * np.float32(cos) - part.x * np.float32(sin)
    template = _mark_template()
    rows, cols = part.window((0.0, -BOLT_CIRCLE_DU), 32.0)
    middle_v, middle_u = (np.float32(n / 2) for n in template.shape)
    u = across[rows, cols] * _MARK_SAMPLES_PER_DU + middle_u
    v = (along[rows, cols] + np.float32(BOLT_CIRCLE_DU)) * _MARK_SAMPLES_PER_DU + middle_v
    depth = np.zeros_like(part.x)
    depth[rows, cols] = 0.75 * np.asarray(cv2.remap(template, u, v, cv2.INTER_LINEAR))
    ends = part.coverage(np.abs(along - np.float32(BOLT_CIRCLE_DU + 9)) - np.float32(13))
    depth += 0.9 * ends * np.exp(-np.square(across / 0.95))
    return depth


def _turned_texture(part: Part, rng: np.random.Generator) -> FloatArray:
    """(H, W) factor around 1: tool rings and the short arcs that a lathe leaves, different on every part."""
    n_angle, n_radius = _TEXTURE_SHAPE
    arcs = rng.standard_normal((n_angle, n_radius), dtype=np.float32)
    wrapped = np.concatenate([arcs[-40:], arcs, arcs[:40]])
    wrapped = np.asarray(cv2.GaussianBlur(wrapped, (1, 73), sigmaX=0.01, sigmaY=12.0), np.float32)
    rings = np.convolve(rng.standard_normal(n_radius + 4), (0.36, 0.36, 0.7, 0.36, 0.36), mode="valid")
    polar = 0.22 * wrapped[40 : n_angle + 41] + (0.020 * rings).astype(np.float32)
    u = part.r * np.float32((n_radius - 1) / _TEXTURE_RADIUS_DU)
    v = part.phi * np.float32(n_angle / (2 * math.pi))
    texture = cv2.remap(polar, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    blotches = 0.012 * smooth_noise(rng, part.x.shape[0], 7)
    return np.asarray(1.0 + texture + blotches, np.float32)


def _shade(part: Part, height: FloatArray) -> FloatArray:
    """(H, W) linear light from bare metal: diffuse, a broad highlight, and the sheen of turned grooves."""
    step = part.scale / 8.0
    gx = np.asarray(cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=step), np.float32)
    gy = np.asarray(cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=step), np.float32)
    light = _light_vector(part)
    half = light + np.array([0.0, 0.0, 1.0], np.float32)
    half /= np.linalg.norm(half)
    norm = 1.0 / np.sqrt(1.0 + gx * gx + gy * gy)
    diffuse = np.maximum((light[2] - gx * light[0] - gy * light[1]) * norm, 0.0)
    gloss = np.maximum((half[2] - gx * half[0] - gy * half[1]) * norm, 0.0)
    for _ in range(4):
        gloss = gloss * gloss
    # Grooves scatter light across themselves: a turned face shines in two fans, to and from the lamp.
    across = np.sin(part.phi - np.float32(part.light_rad))
    sheen = np.exp(-np.square(across / np.float32(0.5))) * (norm * norm)
    return np.asarray(0.07 + 0.25 * diffuse + 0.27 * gloss + 0.21 * sheen, np.float32)


def _light_vector(part: Part) -> FloatArray:
    """Unit vector (x, y, z) towards the lamp."""
    flat = math.cos(part.light_elevation_rad)
    vector = [
        flat * math.cos(part.light_rad),
        flat * math.sin(part.light_rad),
        math.sin(part.light_elevation_rad),
    ]
    return np.array(vector, np.float32)


def _expose(part: Part, scene: FloatArray, rng: np.random.Generator) -> UInt8Array:
    """Uneven light, vignetting, exposure, white balance, defocus, shot and read noise, 8 bits; gives BGR."""
    gradient = rng.uniform(-0.03, 0.03, 2) - 0.05 * np.array([-0.6, -0.8])
    exposure = 1.15 * (1.0 + rng.uniform(-0.04, 0.04))
    balance = exposure * (1.0 + rng.normal(0, 0.005, 3))
    defocus_px = rng.uniform(0.60, 0.82) * part.scale
    noise = rng.standard_normal(scene.shape, dtype=np.float32)
    half = DESIGN_SIZE_DU / 2
    gain = 1.0 - (part.x * np.float32(gradient[0] / half) + part.y * np.float32(gradient[1] / half))
    gain *= 1.0 - np.float32(0.13 / (2 * half * half)) * np.square(part.r)
    planes = []
    for c in range(3):
        lit = scene[c] * gain * np.float32(balance[c])
        lit = np.asarray(cv2.GaussianBlur(lit, (0, 0), max(defocus_px, 0.3)), np.float32)
        lit += noise[c] * np.sqrt(np.float32(_READ_NOISE**2) + np.float32(_SHOT_NOISE) * lit)
        planes.append(np.clip(lit * 255.0 + 0.5, 0, 255).astype(np.uint8))
    return np.asarray(cv2.merge(planes), np.uint8)
