"""What is said about one frame or event: plain types only, as in docs/results.schema.json."""

import dataclasses
from datetime import datetime, timezone
from typing import Any

from pcrun.result import AnomalyResult, Region
from pcrun.sources import Event, Frame
from pcrun.sources.view import FrameView

VERDICT_NORMAL = "normal"
VERDICT_ANOMALOUS = "anomalous"
VERDICT_ERROR = "error"
VERDICTS = (VERDICT_NORMAL, VERDICT_ANOMALOUS, VERDICT_ERROR)


def result_record(
    frame: Frame,
    result: AnomalyResult | None,
    *,
    view: FrameView | None = None,
    error: str | None = None,
    age_ms: float | None = None,
    dropped: int | None = None,
    alarm: bool | None = None,
    bundle: str | None = None,
) -> dict[str, Any]:
    """One frame's record; a frame without a result says why.

    Args:
        frame: as the source gave it.
        result: of the inspected part, or None.
        view: what was inspected; regions are reported in pixels of the whole upright frame.
        error: why there is no result; None takes the frame's own.
        age_ms: from the end of the frame's read to its verdict, for live sources.
        dropped: frames thrown away since the last verdict, for live sources.
        alarm: of smoothed verdicts.
        bundle: its name, where several run.
    """
    record: dict[str, Any] = {"source": as_utf8(frame.source), "frame": frame.index}
    if frame.captured_at is not None:
        record["time"] = utc_time(frame.captured_at)
    if bundle is not None:
        record["bundle"] = bundle
    if result is None:
        record |= {"verdict": VERDICT_ERROR, "error": as_utf8(error or frame.error or "")}
    else:
        record |= _judged(frame, result, view or FrameView())
    for key, value in (("alarm", alarm), ("dropped", dropped)):
        if value is not None:
            record[key] = value
    if age_ms is not None:
        record["age_ms"] = round(age_ms, 3)
    return record


def event_record(event: Event, now: float) -> dict[str, Any]:
    """One event's record; `now` in seconds since 1970."""
    detail = {key: as_utf8(value) if isinstance(value, str) else value for key, value in event.detail.items()}
    return {"event": event.name, "source": as_utf8(event.source), "time": utc_time(now), **detail}


def utc_time(seconds: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"


def as_utf8(text: str) -> str:
    """Linux file names may hold bytes that are not UTF-8, which no JSON file may: they are shown as `�`."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _judged(frame: Frame, result: AnomalyResult, view: FrameView) -> dict[str, Any]:
    # The read of a live source is mostly waiting for its next frame.
    read_ms = frame.decode_ms if frame.captured_at is None else 0.0
    stages = {
        "decode_ms": frame.decode_ms,
        **dataclasses.asdict(result.timings),
        "total_ms": read_ms + result.timings.total_ms,
    }
    return {
        "verdict": VERDICT_ANOMALOUS if result.is_anomalous else VERDICT_NORMAL,
        "score": _significant(result.image_score),
        "threshold": _significant(result.threshold),
        "pixel_threshold": _significant(result.pixel_threshold),
        "regions": [_in_frame(region, view) for region in result.regions],
        "timings_ms": {
            key.removesuffix("_ms"): round(value, 3) for key, value in stages.items() if value is not None
        },
        "exactness": result.exactness,
        "search": result.search,
        "verified_patches": result.verified_patches,
    }


def _in_frame(region: Region, view: FrameView) -> dict[str, Any]:
    left, top = (view.roi.x, view.roi.y) if view.roi else (0, 0)
    moved = dataclasses.replace(region, x=region.x + left, y=region.y + top)
    return {**dataclasses.asdict(moved), "max_score": _significant(region.max_score)}


def _significant(value: float) -> float:
    """Eight significant digits, what float32 holds: scores may be of any scale."""
    return float(f"{value:.8g}")
