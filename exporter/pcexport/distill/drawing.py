"""Drawing all pictures of a training, one process per core; imports no torch, which each would load anew."""

import multiprocessing
from collections.abc import Iterator
from functools import partial

import cv2
import numpy as np

from pcexport.distill.own_images import OwnImages
from pcexport.distill.pictures import make_picture
from pcrun.machine.threads import available_cores
from pcrun.types import UInt8Array

_CHUNK = 16


def draw_pictures(
    count: int, seed: int, size: int, own: OwnImages | None
) -> Iterator[tuple[int, UInt8Array]]:
    """All pictures in order, in chunks of (n, size, size, 3) uint8 RGB, each with the number of its first.

    Args:
        count: how many.
        seed: of the set; picture `i` depends on it, on `i` and on `size` alone.
        size: height and width, pixels.
        own: the user's images; every other picture is a crop of one of them.
    """
    starts = range(0, count, _CHUNK)
    draw = partial(_draw_chunk, count, seed, size, own)
    processes = min(available_cores(), len(starts))
    # Spawned: a fork of a process that computes with threads may hang.
    with multiprocessing.get_context("spawn").Pool(processes, cv2.setNumThreads, (1,)) as pool:
        yield from zip(starts, pool.imap(draw, starts), strict=True)


def _draw_chunk(count: int, seed: int, size: int, own: OwnImages | None, start: int) -> UInt8Array:
    return np.stack(
        [
            own.crop(seed, number, size) if own and number % 2 else make_picture(seed, number, size)
            for number in range(start, min(start + _CHUNK, count))
        ]
    )
