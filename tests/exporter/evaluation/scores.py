"""Scored images that nobody had to score."""

from pathlib import Path

import numpy as np

from pcexport.datasets import TestImage
from pcexport.evaluation.pixels import PixelCounts, count_pixels
from pcexport.evaluation.scored import ScoredImage

THRESHOLD = 2.0


def scored(
    number: int, score: float, defect: str | None, *, pixels: PixelCounts | None = None, labelled: bool = True
) -> ScoredImage:
    """One image with a score."""
    return ScoredImage(
        TestImage(Path(f"{number:04d}.png"), defect),
        labelled,
        score,
        score > THRESHOLD,
        score * 1.1,
        int(score > THRESHOLD),
        (32, 24),
        {"embed": 5.0, "total": 8.0},
        pixels,
    )


def some(
    normal: int = 40, defective: int = 30, *, seed: int = 0, shift: float = 1.0, masks: bool = True
) -> list[ScoredImage]:
    """Normal images around 1.5, defective ones `shift` above, of two classes."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(normal + defective):
        defect = None if number < normal else ("scratch", "hole")[number % 2]
        mask = np.zeros((24, 32), bool)
        if defect:
            mask[4:12, 5:15] = True
        heat = rng.gamma(4, 0.3, mask.shape) + shift * mask
        score = float(np.float32(rng.normal(1.5, 0.3) + shift * bool(defect)))
        counts = count_pixels(heat.astype(np.float32), mask, 2.2) if masks or not defect else None
        images.append(scored(number, score, defect, pixels=counts))
    return images
