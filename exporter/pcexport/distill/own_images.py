"""Crops of the user's own normal images, to learn from beside the procedural pictures."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pcexport.datasets import find_dataset
from pcexport.errors import BuildError
from pcrun.errors import SourceError
from pcrun.images.image_io import decode_image
from pcrun.types import UInt8Array


@dataclass(frozen=True)
class OwnImages:
    """Image files to cut crops from, and the SHA-256 over their bytes."""

    paths: tuple[Path, ...]
    sha256: str

    @classmethod
    def find(cls, folders: tuple[str, ...]) -> "OwnImages | None":
        """The normal images of some folders, globs or lists; None where none is given.

        Raises:
            BuildError: one cannot be read, or is a frame of a video or a tile of an image.
        """
        if not folders:
            return None
        paths: list[Path] = []
        for folder in folders:
            images = find_dataset(folder, "auto").normal
            if any(image.frame is not None for image in images):
                raise BuildError(f"{folder} holds videos. Expected image files; extract their frames first.")
            paths += dict.fromkeys(image.path for image in images)
        digest = hashlib.sha256()
        for path in paths:
            data = path.read_bytes()
            try:
                decode_image(data)
            except SourceError as error:
                raise BuildError(f"{path}: {error}") from error
            digest.update(hashlib.sha256(data).digest())
        return cls(tuple(paths), digest.hexdigest())

    def crop(self, seed: int, number: int, size: int) -> UInt8Array:
        """A square crop of one of the images, (size, size, 3) uint8 RGB; depends on its arguments alone.

        The image is shrunk or enlarged so that its shorter side is one to two crops long, and mirrored or
        turned by quarters.
        """
        rng = np.random.default_rng((seed, number))
        image = decode_image(self.paths[int(rng.integers(len(self.paths)))].read_bytes())
        scale = size * rng.uniform(1, 2) / min(image.shape[:2])
        shape = tuple(max(size, round(side * scale)) for side in image.shape[1::-1])
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, left = (int(rng.integers(0, side - size + 1)) for side in image.shape[:2])
        crop = np.rot90(image[top : top + size, left : left + size, ::-1], int(rng.integers(4)))
        return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)
