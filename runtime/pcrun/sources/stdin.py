"""Raw frames from another program: bytes on standard input."""

import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from pcrun.errors import SourceError
from pcrun.sources import Frame

MAX_SIDE_PX = 16_384


class RawFrames:
    """Frames of one size, one after the other: width x height x 3 bytes each, BGR, row by row."""

    live = False
    name = "stdin"

    def __init__(self, stream: BinaryIO, *, width: int, height: int) -> None:
        """Read frames from a binary stream.

        Raises:
            SourceError: the size is not one of a frame.
        """
        if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
            raise SourceError(
                f"Frames of {width}x{height} px cannot be read. Expected 1 to {MAX_SIDE_PX} px a side."
            )
        self._stream = stream
        self._shape = (height, width, 3)

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.items`."""
        size = int(np.prod(self._shape))
        index = 0
        while not stop.is_set():
            started = time.perf_counter()
            data = self._stream.read(size)
            now, ready = time.time(), time.perf_counter()
            if not data:
                return
            if len(data) < size:
                reason = (
                    f"the input ended after {len(data)} of {size} bytes of a frame. Expected frames of "
                    f"{self._shape[1]}x{self._shape[0]} px, 3 bytes (BGR) a pixel; check the size."
                )
                yield Frame(self.name, index, None, reason, 0.0, now, ready)
                return
            image = np.frombuffer(data, np.uint8).reshape(self._shape)
            yield Frame(self.name, index, image, None, (ready - started) * 1e3, now, ready)
            index += 1
