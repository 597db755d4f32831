"""Detectors of tiny bundles, and images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pcrun import AnomalyDetector, Bundle
from pcrun.backends.session import OnnxEmbedder


def load(path: Path | Bundle, **arguments: Any) -> AnomalyDetector:
    return AnomalyDetector.load(path, **{"provider": "cpu", "threads": 1, **arguments})


def random_images(count: int, seed: int = 11) -> list[np.ndarray]:
    """Normal, defective and pure noise, of many sizes."""
    from tests.data.make_tiny_bundle import smooth_image, with_defect

    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        if number % 4 == 3:
            size = rng.integers(1, 100, size=2)
            images.append(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        else:
            image = smooth_image(rng)
            images.append(with_defect(image) if number % 4 == 2 else image)
    return images


def embed(embedder: OnnxEmbedder, image: np.ndarray) -> np.ndarray:
    return embedder.embed(np.ascontiguousarray(image)[None])[0]
