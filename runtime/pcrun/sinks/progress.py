"""What a person is told of a batch whose results go to a file."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pcrun.sinks.record import VERDICT_ERROR, VERDICTS
from pcrun.words import plural

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

_INTERVAL_S = 10.0


class ProgressSink:
    """Says every ten seconds how many frames are done, and what came of them."""

    name = "progress"
    lost = 0

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to count.

        Args:
            say: tells a person.
            clock: in seconds.
        """
        self._say, self._clock = say, clock
        self._counts: Counter[str] = Counter()
        self._said_at = clock()

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        self._counts[record["verdict"]] += 1
        if self._clock() - self._said_at >= _INTERVAL_S:
            self._said_at = self._clock()
            self._say(f"so far {counted(self._counts)}")

    def event(self, record: dict[str, Any]) -> None:
        """Nothing to count."""

    def close(self) -> None:
        """Nothing waits."""


def counted(counts: Mapping[str, int]) -> str:
    """Verdicts by name, in words."""
    listed = ", ".join(f"{counts[x]:,} {x}" for x in VERDICTS if counts[x] or x != VERDICT_ERROR)
    total = sum(counts.values())
    return f"{total:,} {plural(total, 'frame')}: {listed}"
