"""Where frames come from: image files, videos, watched folders, cameras, streams, raw bytes.

One small class each behind one interface. A source that is `live` goes on by itself: whoever takes its frames
gets the newest one, and older ones are dropped and counted. All others wait, and lose nothing.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pcrun.types import UInt8Array

# Source of events about the run as a whole.
RUN_ITSELF = "pcrun"


@dataclass(frozen=True)
class Frame:
    """One frame, or the reason why there is none.

    Attributes:
        source: file path, "camera:0", or a URL without its password.
        index: position among the frames that the source gave, from 0; those dropped are counted.
        image: (height, width, 3) uint8 BGR, or None when it could not be read.
        error: why, when image is None.
        decode_ms: time spent reading and decoding.
        captured_at: seconds since 1970, when the frame had been read; None for files.
        ready: `time.perf_counter()` of that moment, for its age.
    """

    source: str
    index: int
    image: UInt8Array | None
    error: str | None
    decode_ms: float
    captured_at: float | None = None
    ready: float = 0.0


@dataclass(frozen=True)
class Event:
    """Something that happened to a source or a sink.

    Attributes:
        name: for example "connected", "lost", "reconnected", "dropped".
        source: of the frames, or the sink.
        detail: more facts, plain types only.
    """

    name: str
    source: str
    detail: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Gives frames, and events in between.

    Attributes:
        name: as in results; no password in it.
        live: whether only the newest frame matters.
    """

    name: str
    live: bool

    def items(self, stop: threading.Event) -> Iterator[Frame | Event]:
        """Frames and events, until there are no more or `stop` is set."""
