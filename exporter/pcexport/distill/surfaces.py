"""Grey surfaces for procedural pictures: each a (size, size) float32 field in 0..1 drawn from one generator.

They stand for what industrial cameras see: rough, brushed, turned, woven, granular and printed surfaces.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from pcrun.types import FloatArray

Rng = np.random.Generator


def unit(field: FloatArray) -> FloatArray:
    """The field stretched to 0..1, its 1st and 99th percentiles at the ends; a constant one is 0.5."""
    low, high = np.percentile(field[::3, ::3], (1, 99))
    if high - low < 1e-6:
        return np.full_like(field, 0.5)
    return np.clip((field - low) / (high - low), 0, 1).astype(np.float32)


def coordinates(size: int, angle: float) -> tuple[FloatArray, FloatArray]:
    """Pixel coordinates from the centre, turned by `angle` radians: along and across."""
    axis = np.arange(size, dtype=np.float32) - np.float32(size / 2)
    x, y = np.meshgrid(axis, axis)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def white(rng: Rng, shape: tuple[int, ...]) -> FloatArray:
    """Independent Gaussian noise, float32."""
    return rng.standard_normal(shape, np.float32)


def flat(rng: Rng, size: int) -> FloatArray:
    """A nearly even surface."""
    return unit(cv2.resize(white(rng, (4, 4)), (size, size), interpolation=cv2.INTER_CUBIC))


def power_noise(rng: Rng, size: int) -> FloatArray:
    """Noise whose amplitude falls with frequency as f^-slope, the statistics of natural images."""
    slope = rng.uniform(0.4, 2.2)
    spectrum = np.fft.rfft2(white(rng, (size, size)))
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    frequency = np.sqrt(fy * fy + fx * fx)
    frequency[0, 0] = 1
    return unit(np.fft.irfft2(spectrum / frequency**slope, (size, size)).astype(np.float32))


def brushed(rng: Rng, size: int) -> FloatArray:
    """Long parallel streaks: brushed, rolled or drawn metal, wood grain."""
    along = int(rng.integers(15, 90)) | 1
    noise = white(rng, (size * 2, size * 2))
    streaks = cv2.blur(noise, (along, 1))
    if rng.random() < 0.5:
        streaks = streaks + rng.uniform(0.3, 1.5) * cv2.blur(noise[::-1], (along * 2 + 1, 3)) * 2
    turned = _turned(streaks, math.degrees(rng.uniform(0, math.pi)), size)
    return unit(turned)


def _turned(field: FloatArray, degrees: float, size: int) -> FloatArray:
    """The middle of a field of at least twice the size, turned."""
    middle = field.shape[0] / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, 1.0)
    matrix[:, 2] += size / 2 - middle
    turned: FloatArray = cv2.warpAffine(
        field, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return turned


def turned_metal(rng: Rng, size: int) -> FloatArray:
    """Concentric or passing arcs of a lathe or a face mill."""
    x, y = coordinates(size, 0.0)
    reach = rng.choice([0.3, 1.5, 4.0]) * size
    cx, cy = rng.uniform(-reach, reach, 2)
    radius = np.hypot(x - np.float32(cx), y - np.float32(cy))
    profile = white(rng, (int(radius.max()) * 2 + 4,))
    profile = cv2.GaussianBlur(profile[None], (0, 0), rng.uniform(0.6, 3.0))[0]
    period = rng.uniform(3, 16)
    steps = (radius * 2).astype(np.int32)
    wave = np.sin(radius * np.float32(2 * math.pi / period))
    return unit(profile[steps] * np.float32(2) + wave * np.float32(rng.uniform(0, 1.2)))


def grating(rng: Rng, size: int) -> FloatArray:
    """One to three waves, from sinusoidal to square, of any direction and period, often bent."""
    total = np.zeros((size, size), np.float32)
    bend = _slow(rng, size) * np.float32(rng.choice([0.0, 0.5, 3.0]))
    for _ in range(int(rng.integers(1, 4))):
        along, _across = coordinates(size, rng.uniform(0, math.pi))
        period = math.exp(rng.uniform(math.log(3), math.log(60)))
        wave = np.sin(along * np.float32(2 * math.pi / period) + bend + np.float32(rng.uniform(0, 7)))
        total += np.tanh(wave * np.float32(math.exp(rng.uniform(-1, 2))))
    return unit(total)


def woven(rng: Rng, size: int) -> FloatArray:
    """Threads over and under each other: cloth, mesh, carbon fibre."""
    angle, period = rng.uniform(0, math.pi), math.exp(rng.uniform(math.log(5), math.log(28)))
    along, across = coordinates(size, angle)
    bend = _slow(rng, size) * np.float32(rng.uniform(0, 0.15) * period)
    u, v = (along + bend) / np.float32(period), (across - bend) / np.float32(period)
    shift = int(rng.integers(1, 3))
    warp_on_top = ((np.floor(u) + np.floor(v) * shift) % (shift + 1)) < 1
    warp = np.abs(np.sin(u * np.float32(math.pi)))
    weft = np.abs(np.sin(v * np.float32(math.pi)))
    tone = np.float32(rng.uniform(0.4, 1.0))
    fibres = white(rng, (size, size)) * np.float32(rng.uniform(0, 0.15))
    return unit(np.where(warp_on_top, warp, weft * tone) + fibres)


def granular(rng: Rng, size: int) -> FloatArray:
    """Cells around random points: grains, leather, foam, cobbles."""
    spacing = math.exp(rng.uniform(math.log(4), math.log(40)))
    count = max(4, int((size / spacing) ** 2))
    mask = np.full((size, size), 255, np.uint8)
    mask[rng.integers(0, size, count), rng.integers(0, size, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        mask, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    tones = rng.random(int(labels.max()) + 1, np.float32)
    cells = tones[labels] * np.float32(rng.uniform(0, 1))
    return unit(cells + distance / np.float32(spacing) * np.float32(rng.uniform(-1.5, 1.5)))


def speckled(rng: Rng, size: int) -> FloatArray:
    """Islands of two or three tones: cast iron, stone, terrazzo, camouflage."""
    field = cv2.GaussianBlur(white(rng, (size, size)), (0, 0), math.exp(rng.uniform(-0.5, 2.3)))
    ranks = unit(field)
    sharpness = np.float32(math.exp(rng.uniform(0.5, 3.5)))
    level = np.float32(rng.uniform(0.25, 0.75))
    return unit(np.tanh((ranks - level) * sharpness) + ranks * np.float32(rng.uniform(0, 0.5)))


def pores(rng: Rng, size: int) -> FloatArray:
    """Dark or bright dots of many sizes on an even ground."""
    field = np.full((size, size), 0.5, np.float32)
    for _ in range(int(rng.integers(20, 220))):
        centre = (int(rng.integers(0, size)), int(rng.integers(0, size)))
        radius = int(min(0.5 + rng.pareto(2.0), size / 16) + 0.5)
        cv2.circle(field, centre, radius, float(rng.random()), -1, cv2.LINE_AA)
    return unit(cv2.GaussianBlur(field, (0, 0), rng.uniform(0.4, 1.2)))


def _slow(rng: Rng, size: int) -> FloatArray:
    """A smooth field of about -2..2."""
    side = int(rng.integers(3, 8))
    slow: FloatArray = cv2.resize(white(rng, (side, side)), (size, size), interpolation=cv2.INTER_CUBIC)
    return slow


SURFACES: tuple[tuple[Callable[[Rng, int], FloatArray], float], ...] = (
    (flat, 2.0),
    (power_noise, 2.5),
    (brushed, 1.5),
    (turned_metal, 1.2),
    (grating, 1.5),
    (woven, 1.2),
    (granular, 1.5),
    (speckled, 1.2),
    (pores, 0.8),
)
_SHARES = np.array([share for _, share in SURFACES]) / sum(share for _, share in SURFACES)


def surface(rng: Rng, size: int) -> FloatArray:
    """A surface of a kind drawn by its share; (size, size) float32 in 0..1."""
    draw = SURFACES[int(rng.choice(len(SURFACES), p=_SHARES))][0]
    return draw(rng, size)
