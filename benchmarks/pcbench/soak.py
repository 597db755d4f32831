"""`pcbench soak`: a line that runs for long. Are all frames accounted for, does memory stay where it is?"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pcbench.machine import machine_facts, versions
from pcbench.results import save_result
from pcrun.bench.camera import PacedFrames
from pcrun.bundle.bundle import Bundle
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.errors import SourceError
from pcrun.percentiles import percentiles
from pcrun.pipeline.pipeline import Line, Pipeline, Receiver, Verdict
from pcrun.sources import Event
from pcrun.sources.live import LiveSource
from pcrun.types import UInt8Array

_WARM_UP_MINUTES = 1


def looped_video(path: Path, fps: float | None = None) -> PacedFrames:
    """A camera that shows a video again and again, at its own rate or another.

    Raises:
        SourceError: it cannot be decoded, or does not say its rate where `fps` is None.
    """
    capture = _opened(path)
    rate = fps or float(capture.get(cv2.CAP_PROP_FPS))
    capture.release()
    if not rate > 0:
        raise SourceError(f"{path} does not say its frame rate. Give one with --fps.")
    return PacedFrames(_frames_again_and_again(path), rate, str(path))


def _frames_again_and_again(path: Path) -> Iterator[UInt8Array]:
    while True:
        capture = _opened(path)
        try:
            ok, image = capture.read()
            if not ok:
                raise SourceError(f"{path} holds no frame that can be decoded.")
            while ok:
                yield image
                ok, image = capture.read()
        finally:
            capture.release()


def _opened(path: Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise SourceError(
            f"{path} cannot be opened as a video. Expected a format this OpenCV decodes (MP4, AVI, MKV)."
        )
    return capture


@dataclass
class _Minute:
    """What happened in one minute."""

    scored: int = 0
    dropped: int = 0
    total_ms: list[float] = field(default_factory=list)
    age_ms: list[float] = field(default_factory=list)

    def summary(self, number: int) -> dict[str, Any]:
        """Percentiles and resources at its end."""
        return {
            "minute": number,
            "scored": self.scored,
            "dropped": self.dropped,
            "total_ms": _percentiles(self.total_ms),
            "age_ms": _percentiles(self.age_ms),
            "rss_mb": round(_resident_bytes() / 1e6, 2),
            "files": _open_files(),
            "threads": _threads(),
        }


class _Watch(Receiver):
    """Collects minutes."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self.minutes: list[dict[str, Any]] = []
        self.ages: list[float] = []
        self.events: dict[str, int] = {}
        self._say = say
        self._current = _Minute()
        self._ends = time.monotonic() + 60

    def verdict(self, verdict: Verdict) -> None:
        assert verdict.result is not None and verdict.age_ms is not None  # a live source of whole frames
        self._current.scored += 1
        self._current.dropped += verdict.dropped
        self._current.total_ms.append(verdict.result.timings.total_ms)
        self._current.age_ms.append(verdict.age_ms)
        self.ages.append(verdict.age_ms)

    def event(self, event: Event) -> None:
        self.events[event.name] = self.events.get(event.name, 0) + 1

    def idle(self) -> None:
        if time.monotonic() >= self._ends:
            self.finish_minute()

    def finish_minute(self) -> None:
        """Sum up and begin anew."""
        if self._current.scored:
            self.minutes.append(self._current.summary(len(self.minutes) + 1))
            self._say(self.minutes[-1])
        self._current = _Minute()
        self._ends += 60


def measure_soak(
    bundle: Path,
    video: Path,
    *,
    minutes: float,
    fps: float | None,
    all_normal: bool,
    output: Path,
    name: str,
    say: Callable[[dict[str, Any]], None] = lambda minute: None,
) -> dict[str, Any]:
    """Run a line on a looped video, and save what each minute was like.

    Args:
        bundle: what judges.
        video: shown as a live source.
        minutes: how long.
        fps: of the source; None is the video's own.
        all_normal: judge every frame normal, as nearly all of a line are: the video need not fit the bundle.
        output: result file.
        name: title in reports.
        say: called with each minute.
    """
    limit = NO_THRESHOLD if all_normal else None
    detector = AnomalyDetector.load(Bundle.load(bundle), threshold=limit, pixel_threshold=limit)
    device = looped_video(video, fps)
    line = Line(LiveSource(device), detector)
    watch = _Watch(say)
    Pipeline([line], watch, duration_s=minutes * 60).run()
    watch.finish_minute()
    result: dict[str, Any] = {
        "name": name,
        "machine": machine_facts(),
        "versions": versions(),
        "bank": detector.manifest.memory_bank.count,
        "provider": f"{detector.provider} {detector.precision}",
        "search": detector.search,
        "device_profile": detector.profile is not None,
        "fps": round(device.fps, 3),
        "frames": device.frames,
        "scored": line.scored,
        "dropped": line.dropped,
        # Those read when it was over.
        "left_over": device.frames - line.scored - line.dropped,
        "events": watch.events,
        "age_ms": _percentiles(watch.ages),
        "rss_slope_mb_per_minute": _slope(watch.minutes),
        "minutes": watch.minutes,
    }
    save_result(output, "soak", result)
    return result


def _slope(minutes: list[dict[str, Any]]) -> float | None:
    """Growth of resident memory by least squares, after the first minute; None for fewer than three."""
    values = [minute["rss_mb"] for minute in minutes[_WARM_UP_MINUTES:]]
    return round(float(np.polyfit(range(len(values)), values, 1)[0]), 3) if len(values) >= 2 else None


def _percentiles(samples: list[float]) -> dict[str, float]:
    return percentiles(samples, digits=2) if samples else {}


def _resident_bytes() -> int:
    """Resident memory now; where the system does not tell, the largest so far."""
    import resource  # not everywhere

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * resource.getpagesize()


def _open_files() -> int | None:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else None


def _threads() -> int | None:
    folder = Path("/proc/self/task")
    return len(list(folder.iterdir())) if folder.is_dir() else None


def described(result: dict[str, Any]) -> list[str]:
    """The totals for a terminal."""
    slope = result["rss_slope_mb_per_minute"]
    return [
        f"{result['frames']} frames = {result['scored']} scored + {result['dropped']} dropped "
        f"+ {result['left_over']} left over at the end",
        "age at verdict: " + ", ".join(f"{name} {value:.1f} ms" for name, value in result["age_ms"].items()),
        f"resident memory: {result['minutes'][-1]['rss_mb']} MB, "
        + (f"{slope:+.3f} MB a minute after the first" if slope is not None else "too short for a slope"),
    ]


def minute_line(minute: dict[str, Any]) -> str:
    """One minute for a terminal."""
    return (
        f"minute {minute['minute']:>3}: {minute['scored']:>5} scored, {minute['dropped']:>4} dropped, "
        f"total p50 {minute['total_ms']['p50']:.1f} p99 {minute['total_ms']['p99']:.1f} ms, "
        f"age p99 {minute['age_ms']['p99']:.1f} ms, {minute['rss_mb']:.1f} MB, {minute['files']} files, "
        f"{minute['threads']} threads"
    )
