"""What the live page shows of each line: the last frame, scores, latencies, events, anomalies."""

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pcrun.percentiles import percentiles
from pcrun.sinks.record import VERDICT_ANOMALOUS, VERDICTS

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Line, Verdict

# Frames whose scores and latencies are kept, per line.
HISTORY_FRAMES = 1000
KEPT_ANOMALIES = 12
# A live source shows the same part many times: the next picture of it comes after so long.
_SAME_PART_S = 1.0
_KEPT_EVENTS = 50
_FPS_OVER_S = 5.0
# What an event says about the source it comes from.
_STATES = {
    "connected": "connected",
    "reconnected": "connected",
    "lost": "lost",
    "failed": "failed",
    "stopped": "stopped",
}


@dataclass
class Anomaly:
    """A frame in the gallery.

    Attributes:
        number: counts the anomalies of a line.
        record: of its verdict.
        verdict: until it has been painted.
        jpeg: from then on.
    """

    number: int
    record: dict[str, Any]
    verdict: "Verdict | None"
    jpeg: bytes | None = None


class LineState:
    """One line, as far as the page is concerned. All methods may be called from any thread."""

    def __init__(self, line: "Line") -> None:
        self.name = line.source.name
        self._line = line
        self._lock = threading.Lock()
        self._state = "waiting" if line.source.live else "running"
        self._reason: str | None = None
        self._counts = dict.fromkeys(VERDICTS, 0)
        self._dropped = 0
        self._latest: tuple[Verdict, dict[str, Any]] | None = None
        self._number = 0
        # Score (None without one) and verdict of each frame.
        self._history: deque[tuple[float | None, str]] = deque(maxlen=HISTORY_FRAMES)
        self._timings: deque[dict[str, float]] = deque(maxlen=HISTORY_FRAMES)
        self._done_at: deque[float] = deque(maxlen=HISTORY_FRAMES)
        self._anomalies: deque[Anomaly] = deque(maxlen=KEPT_ANOMALIES)
        self._anomaly_numbers = itertools.count(1)
        self._kept_anomaly_at = -math.inf
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)

    def take_verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """One frame is done."""
        now = time.monotonic()
        with self._lock:
            same_part = (
                self._line.source.live
                and now - self._kept_anomaly_at < _SAME_PART_S
                and bool(self._history)
                and self._history[-1][1] == VERDICT_ANOMALOUS
            )
            self._number += 1
            self._latest = (verdict, record)
            self._counts[record["verdict"]] += 1
            self._dropped += verdict.dropped
            self._history.append((record.get("score"), record["verdict"]))
            self._done_at.append(now)
            if "timings_ms" in record:
                age = {"age": record["age_ms"]} if "age_ms" in record else {}
                self._timings.append({**record["timings_ms"], **age})
            if record["verdict"] == VERDICT_ANOMALOUS and not same_part:
                self._kept_anomaly_at = now
                self._anomalies.append(Anomaly(next(self._anomaly_numbers), record, verdict))

    def take_event(self, record: dict[str, Any]) -> None:
        """Something happened to this line, or to all."""
        with self._lock:
            self._events.append(record)
            if record["source"] == self.name and record["event"] in _STATES:
                self._state = _STATES[record["event"]]
                self._reason = record.get("reason")

    def latest(self) -> "tuple[int, Verdict] | None":
        """The last frame that has a picture to show, and its number."""
        with self._lock:
            if self._latest is None:
                return None
            return self._number, self._latest[0]

    def anomaly(self, number: int) -> Anomaly | None:
        """A frame of the gallery."""
        with self._lock:
            return next((a for a in self._anomalies if a.number == number), None)

    def unpainted(self) -> Anomaly | None:
        """The newest frame of the gallery that has no picture yet."""
        with self._lock:
            return next((a for a in reversed(self._anomalies) if a.verdict is not None), None)

    def summary(self) -> dict[str, Any]:
        """What a list of lines shows."""
        with self._lock:
            verdict = self._latest[1]["verdict"] if self._latest else None
            alarm = self._latest[1].get("alarm") if self._latest else None
            return {"name": self.name, "state": self._state, "verdict": verdict, "alarm": alarm}

    def details(self) -> dict[str, Any]:
        """Everything about the line, plain types only."""
        detector = self._line.detector
        own = detector.manifest.scoring.threshold
        with self._lock:
            now = time.monotonic()
            recent = [moment for moment in self._done_at if now - moment <= _FPS_OVER_S]
            timings = list(self._timings)
            facts = {
                "name": self.name,
                "live": self._line.source.live,
                "state": self._state,
                "reason": self._reason,
                "number": self._number,
                "record": self._latest[1] if self._latest else None,
                "fps": _rate(recent, now),
                "counts": dict(self._counts),
                "dropped": self._dropped,
                "history": list(self._history),
                "anomalies": [_entry(anomaly) for anomaly in reversed(self._anomalies)],
                "events": list(reversed(self._events)),
            }
        return facts | {
            "bundle": detector.manifest.name,
            "threshold": detector.threshold,
            "bundle_threshold": own.value if own else None,
            "pixel_threshold": detector.pixel_threshold,
            "runs_on": f"{detector.provider} {detector.precision}, {detector.search} search, "
            f"exactness {detector.exactness}",
            "latency_ms": _by_stage(timings),
        }


def _rate(moments: Sequence[float], now: float) -> float:
    """Frames a second over the last seconds."""
    if len(moments) < 2:
        return 0.0
    return round((len(moments) - 1) / max(now - moments[0], 1e-9), 2)


def _entry(anomaly: Anomaly) -> dict[str, Any]:
    record = anomaly.record
    fields = ("source", "frame", "time", "score", "threshold")
    return {
        "number": anomaly.number,
        "painted": anomaly.jpeg is not None,
        **{f: record[f] for f in fields if f in record},
    }


def _by_stage(timings: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """p50, p90 and p99 per stage."""
    if not timings:
        return {}
    stages: dict[str, dict[str, float]] = {}
    for stage in timings[-1]:
        samples = [t[stage] for t in timings if stage in t]
        stages[stage] = percentiles(samples, digits=2)
    return stages
