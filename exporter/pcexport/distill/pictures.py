"""One procedural picture from a seed and a number: scene, irregularities, light, camera."""

import math

import cv2
import numpy as np

from pcexport.distill.details import add_details
from pcexport.distill.shapes import shape
from pcexport.distill.surfaces import Rng, coordinates, surface, white
from pcrun.images.image_io import decode_image
from pcrun.types import FloatArray, UInt8Array

# Changes whenever the pictures do: a student names it, and a cache of other pictures is not taken for these.
GENERATOR_VERSION = 1


def make_picture(seed: int, number: int, size: int) -> UInt8Array:
    """Draw a picture that depends on its arguments alone (and the versions of numpy and OpenCV).

    Args:
        seed: of the whole set.
        number: which picture.
        size: height and width, pixels.

    Returns:
        (size, size, 3) uint8, RGB.
    """
    rng = np.random.default_rng((seed, number))
    # Drawn larger and shrunk, a scene has a camera's soft edges; drawn at size, the sharp ones of a print.
    drawn = int(size * rng.choice([1.0, 1.0, 1.4, 2.0]))
    image = _scene(rng, drawn)
    image = _light(rng, add_details(rng, image))
    if drawn != size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return _camera(rng, image)


def _scene(rng: Rng, size: int) -> FloatArray:
    """A background and, mostly, things on it; (size, size, 3) float32."""
    grey = rng.random() < 0.45
    image = _painted(rng, size, grey)
    kind = rng.random()
    if kind < 0.3:
        return image
    if kind < 0.55:
        return _dead_leaves(rng, image, grey)
    if kind < 0.7:
        return _array(rng, image, grey)
    for _ in range(int(rng.integers(1, 5))):
        image = _put(rng, image, _anywhere(rng, size), size * rng.uniform(0.1, 0.6), grey)
    return image


def _painted(rng: Rng, size: int, grey: bool) -> FloatArray:
    """A surface between two colours, of any contrast."""
    base = rng.uniform(0.05, 0.95, 3).astype(np.float32)
    contrast = math.exp(rng.uniform(math.log(0.02), math.log(0.9)))
    change = rng.normal(0, 1, 3).astype(np.float32)
    # Most things in a factory are nearly grey.
    colour = np.float32(0 if grey else rng.uniform(0, 1))
    base = base[0] + colour * (base - base[0])
    change = np.sign(change[0]) + colour * (change - np.sign(change[0]))
    change *= np.float32(contrast / max(float(np.abs(change).max()), 1e-6))
    field = surface(rng, size)
    if rng.random() < 0.35:
        field = field + np.float32(rng.uniform(0.1, 0.8)) * surface(rng, size)
    return base + (field[..., None] - np.float32(0.5)) * change


def _put(rng: Rng, image: FloatArray, centre: tuple[float, float], radius: float, grey: bool) -> FloatArray:
    """Lay a thing onto the image, with its own surface, often shaded, outlined or casting a shadow."""
    size = image.shape[0]
    mask = shape(rng, size, centre, radius)
    thing = _painted(rng, size, grey)
    if rng.random() < 0.5:
        thing = thing * _shading(rng, mask, radius)
    if rng.random() < 0.4:
        offset = rng.uniform(-0.08, 0.08, 2) * radius
        matrix = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], np.float64)
        shadow = cv2.GaussianBlur(cv2.warpAffine(mask, matrix, (size, size)), (0, 0), max(radius * 0.05, 0.6))
        image = image * (1 - np.float32(rng.uniform(0.1, 0.7)) * shadow[..., None])
    mask = mask[..., None]
    return image + mask * (thing - image)


def _shading(rng: Rng, mask: FloatArray, radius: float) -> FloatArray:
    """Light on a raised or hollow thing: brighter where its smoothed outline leans towards the lamp."""
    soft = cv2.GaussianBlur(mask, (0, 0), max(radius * rng.uniform(0.03, 0.3), 0.7))
    gradient = np.stack([cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)])
    gradient /= max(float(np.abs(gradient).max()), 1e-6)
    angle = rng.uniform(0, 2 * math.pi)
    lean = gradient[0] * np.float32(math.cos(angle)) + gradient[1] * np.float32(math.sin(angle))
    return (1 + np.float32(rng.uniform(0.2, 1.2)) * lean)[..., None].astype(np.float32)


def _dead_leaves(rng: Rng, image: FloatArray, grey: bool) -> FloatArray:
    """Many things over each other, small ones more often than large ones, in few materials."""
    size = image.shape[0]
    materials = [_painted(rng, size, grey) for _ in range(3)]
    for _ in range(int(rng.integers(8, 60))):
        radius = min(size * 0.03 * (1 + rng.pareto(1.6)), size * 0.4)
        mask = shape(rng, size, _anywhere(rng, size), radius)[..., None]
        tone = np.float32(rng.uniform(-0.3, 0.3)) if rng.random() < 0.7 else np.float32(0)
        image = image + mask * (materials[int(rng.integers(3))] + tone - image)
    return image


def _array(rng: Rng, image: FloatArray, grey: bool) -> FloatArray:
    """The same thing on a grid: pins, holes, tiles, tablets, printed fields."""
    size = image.shape[0]
    pitch = size * rng.uniform(0.07, 0.33)
    radius = pitch * rng.uniform(0.25, 0.5)
    cell = int(pitch * 2) | 1
    stamp = shape(rng, cell, (cell / 2, cell / 2), radius)
    mask = np.zeros((size + 2 * cell, size + 2 * cell), np.float32)
    missing = rng.choice([0.0, 0.0, 0.1])
    phase = rng.uniform(0, pitch, 2)
    for y in np.arange(phase[1], size + pitch, pitch):
        for x in np.arange(phase[0], size + pitch, pitch):
            if rng.random() >= missing:
                top, left = int(y), int(x)
                area = mask[top : top + cell, left : left + cell]
                np.maximum(area, stamp[: area.shape[0], : area.shape[1]], out=area)
    mask = mask[cell : cell + size, cell : cell + size]
    thing = _painted(rng, size, grey) * _shading(rng, mask, radius)
    return image + mask[..., None] * (thing - image)


def _anywhere(rng: Rng, size: int) -> tuple[float, float]:
    x, y = rng.uniform(0, size, 2)
    return float(x), float(y)


def _light(rng: Rng, image: FloatArray) -> FloatArray:
    """A slope of brightness, a vignette, reflections of lamps."""
    size = image.shape[0]
    if rng.random() < 0.6:
        along, _ = coordinates(size, rng.uniform(0, 2 * math.pi))
        image = image * (1 + np.float32(rng.uniform(0, 0.8) / size) * along)[..., None]
    if rng.random() < 0.3:
        x, y = coordinates(size, 0.0)
        image = image * (1 - np.float32(rng.uniform(0, 1.2) / size**2) * (x * x + y * y))[..., None]
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.3 else 0):
        along, across = coordinates(size, rng.uniform(0, math.pi))
        cx, cy = rng.uniform(-size / 2, size / 2, 2)
        width = math.exp(rng.uniform(math.log(2), math.log(size / 4)))
        length = width * rng.uniform(1, 6)
        square = ((along - np.float32(cx)) / np.float32(length)) ** 2
        glow = np.exp(-square - ((across - np.float32(cy)) / np.float32(width)) ** 2)
        image = image + (glow * np.float32(rng.uniform(0.1, 1.0)))[..., None]
    return image.astype(np.float32)


def _camera(rng: Rng, image: FloatArray) -> UInt8Array:
    """Exposure, lens, sensor and, sometimes, compression."""
    middle = np.float32(image.mean())
    if rng.random() < 0.3:
        image = (image - middle) * np.float32(math.exp(rng.uniform(-1.6, 0.3))) + middle
    if rng.random() < 0.3:
        image = image + np.float32(rng.uniform(0.1, 0.9) - middle) * np.float32(0.7)
    image = np.clip(image, 0, 1)
    if rng.random() < 0.4:
        image = image ** np.float32(math.exp(rng.uniform(-0.7, 0.7)))
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), math.exp(rng.uniform(math.log(0.4), math.log(2.2))))
    if rng.random() < 0.6:
        noise = white(rng, image.shape if rng.random() < 0.5 else (*image.shape[:2], 1))
        image = image + noise * np.float32(math.exp(rng.uniform(math.log(0.002), math.log(0.05))))
    picture: UInt8Array = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))]
        return decode_image(cv2.imencode(".jpg", picture, quality)[1].tobytes())
    return picture
