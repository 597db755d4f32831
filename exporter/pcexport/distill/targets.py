"""What a student learns from: pictures and the teacher's maps of them, on disk, made once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pcexport.backbones.loader import LoadedBackbone
from pcexport.distill.drawing import draw_pictures
from pcexport.distill.own_images import OwnImages
from pcexport.errors import BuildError
from pcexport.progress import Steps
from pcrun.files import write_file
from pcrun.types import AnyArray, UInt8Array

_FACTS = "facts.json"
# Activations beyond 32 MB are mapped and unmapped by malloc at every layer, which takes as long as computing.
_TAUGHT = 8


@dataclass(frozen=True)
class Targets:
    """Pictures and the teacher's 3x3-averaged maps of them, mapped from disk.

    Attributes:
        pictures: (n, size, size, 3) uint8, RGB.
        shallow: (n, C8, size/8, size/8) float16.
        deep: (n, C16, size/16, size/16) float16.
    """

    pictures: UInt8Array
    shallow: AnyArray
    deep: AnyArray

    def __len__(self) -> int:
        return len(self.pictures)


def prepare_targets(
    folder: Path, teacher: LoadedBackbone, facts: dict[str, Any], own: OwnImages | None, steps: Steps
) -> Targets:
    """The targets in a folder; made where they are not there yet.

    Args:
        folder: where they are kept.
        teacher: loaded for pictures of `facts["size_px"]`.
        facts: everything the targets depend on; "pictures", "size_px" and "seed" among them.
        own: the user's own images, which stand for every other picture, or None.
        steps: progress.

    Raises:
        BuildError: the folder holds targets of other facts.
    """
    shapes = _shapes(teacher, facts)
    kept = folder / _FACTS
    if kept.exists():
        found = json.loads(kept.read_text())
        if found != facts:
            different = sorted(key for key in {*found, *facts} if found.get(key) != facts.get(key))
            raise BuildError(
                f"{folder} holds pictures and targets of another call, which differs in "
                f"{', '.join(different)}. Expected those of this one; remove the folder, or choose another "
                "--work."
            )
        return _open(folder, shapes, "r")
    folder.mkdir(parents=True, exist_ok=True)
    targets = _open(folder, shapes, "w+")
    # One after the other: the processes that draw and the threads that teach would fight for the cores.
    with steps.step("pictures", len(targets)) as step:
        drawn = draw_pictures(facts["pictures"], facts["seed"], facts["size_px"], own)
        for start, pictures in drawn:
            targets.pictures[start : start + len(pictures)] = pictures
            step.advance_to(start + len(pictures))
    with steps.step("targets", len(targets)) as step:
        for start in range(0, len(targets), _TAUGHT):
            rows = slice(start, start + _TAUGHT)
            targets.shallow[rows], targets.deep[rows] = _teach(teacher, targets.pictures[rows])
            step.advance_to(min(start + _TAUGHT, len(targets)))
    for array in (targets.pictures, targets.shallow, targets.deep):
        assert isinstance(array, np.memmap)
        array.flush()
    # Last: without it the folder is made anew.
    write_file(kept, (json.dumps(facts, indent=1) + "\n").encode())
    return _open(folder, shapes, "r")


def _shapes(teacher: LoadedBackbone, facts: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    n, size = facts["pictures"], facts["size_px"]
    shallow, deep = (
        (n, channels, *grid) for channels, grid in zip(teacher.channels, teacher.grids, strict=True)
    )
    return {
        "pictures": ((n, size, size, 3), "uint8"),
        "shallow": (shallow, "float16"),
        "deep": (deep, "float16"),
    }


def _open(folder: Path, shapes: dict[str, tuple[tuple[int, ...], str]], mode: Any) -> Targets:
    arrays = {
        name: np.memmap(folder / f"{name}.bin", dtype, mode, shape=shape)
        for name, (shape, dtype) in shapes.items()
    }
    return Targets(**arrays)


def _teach(teacher: LoadedBackbone, pictures: UInt8Array) -> tuple[AnyArray, AnyArray]:
    with torch.inference_mode():
        maps = teacher.extractor(normalised(torch.from_numpy(np.array(pictures)), teacher))
        shallow, deep = (functional.avg_pool2d(m, 3, 1, 1, count_include_pad=True) for m in maps)
    return shallow.numpy().astype(np.float16), deep.numpy().astype(np.float16)


def normalised(pictures: torch.Tensor, teacher: LoadedBackbone) -> torch.Tensor:
    """(B, h, w, 3) uint8 RGB to (B, 3, h, w) float32 as the teacher, and so the student, takes them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (teacher.mean, teacher.std))
    images: torch.Tensor = (pictures.permute(0, 3, 1, 2).float() - mean) / std
    return images.contiguous(memory_format=torch.channels_last)


def channel_statistics(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each of the C8 + C16 channels over all pictures, float32.

    A channel that never changes has the standard deviation 1: there is nothing to learn.
    """
    means, deviations = zip(*map(_map_statistics, (targets.shallow, targets.deep)), strict=True)
    return torch.from_numpy(np.concatenate(means)), torch.from_numpy(np.concatenate(deviations))


def _map_statistics(array: AnyArray) -> tuple[AnyArray, AnyArray]:
    total, squares = np.zeros(array.shape[1]), np.zeros(array.shape[1])
    for start in range(0, len(array), 256):
        block = array[start : start + 256].astype(np.float32)
        total += block.sum((0, 2, 3), dtype=np.float64)
        squares += np.square(block).sum((0, 2, 3), dtype=np.float64)
    count = array.size / array.shape[1]
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    return mean.astype(np.float32), np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
