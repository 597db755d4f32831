"""Thresholds that a person changes while the line runs."""

import queue
from collections.abc import Sequence

from pcrun.detector import choose_thresholds
from pcrun.pipeline.pipeline import Line
from pcrun.sources import Event


class ThresholdChanges:
    """Takes wishes from any thread, and fulfils them in the run's own, between two frames.

    A change lasts until the bundle is reloaded or the run ends. It is an event, so that whoever reads the
    results can tell which verdicts were given with which threshold.
    """

    def __init__(self, lines: Sequence[Line], *, pixel_threshold: float | None = None) -> None:
        """Prepare.

        Args:
            lines: whose detectors may be changed.
            pixel_threshold: of the run, when it was given; otherwise it moves in proportion.
        """
        self._lines = lines
        self._pixel_threshold = pixel_threshold
        self._wishes: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()

    def request(self, line: int, threshold: float) -> None:
        """Ask for a threshold (L2 units) as `--threshold` would set it, for all lines of the same bundle.

        Raises:
            ValueError: there is no such line, or it is no finite number above 0.
        """
        if not 0 <= line < len(self._lines):
            raise ValueError(f"line must be 0 to {len(self._lines) - 1}, got {line}")
        if not threshold > 0:  # NaN too; with 0 everything is anomalous, which nobody wants of a running line
            raise ValueError(f"threshold must be a finite number above 0, got {threshold}")
        self._limits(line, threshold)
        self._wishes.put((line, threshold))

    def apply(self) -> list[Event]:
        """Do what was asked for; an event per line that changed. For the thread that scores."""
        events = []
        while not self._wishes.empty():
            number, threshold = self._wishes.get()
            detector = self._lines[number].detector
            before = detector.threshold
            detector.threshold, detector.pixel_threshold = self._limits(number, threshold)
            detail = {
                "threshold": detector.threshold,
                "pixel_threshold": detector.pixel_threshold,
                "before": before,
            }
            events += [
                Event("threshold_changed", line.source.name, detail)
                for line in self._lines
                if line.detector is detector
            ]
        return events

    def _limits(self, number: int, threshold: float) -> tuple[float, float]:
        return choose_thresholds(self._lines[number].detector.manifest, threshold, self._pixel_threshold)
