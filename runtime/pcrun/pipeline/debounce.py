"""Smoothing of verdicts over time: one bad frame of a video need not stop the line."""

from collections import deque


class Debounce:
    """Alarm when at least `needed` of the last `window` verdicts are anomalous.

    Before there are `window` verdicts those missing count as normal. A frame without one changes nothing.
    """

    def __init__(self, needed: int, window: int) -> None:
        if not 1 <= needed <= window:
            raise ValueError(f"debounce needs 1 <= k <= n, got {needed}/{window}")
        self._needed = needed
        self._recent: deque[bool] = deque(maxlen=window)

    def update(self, anomalous: bool | None) -> bool:
        """Take a verdict (None for a frame without); whether there is an alarm."""
        if anomalous is not None:
            self._recent.append(anomalous)
        return sum(self._recent) >= self._needed
