"""Where results go: JSON lines, CSV or a table for people; overlays and maps as files."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from pcrun.detector import AnomalyDetector
from pcrun.errors import SinkError
from pcrun.image_io import IMAGE_SUFFIXES, encode_png
from pcrun.overlay import draw_overlay, map_as_uint16
from pcrun.preprocess import map_on_original
from pcrun.result import AnomalyResult
from pcrun.sources import Frame
from pcrun.types import UInt8Array

VERDICT_NORMAL = "normal"
VERDICT_ANOMALOUS = "anomalous"
VERDICT_ERROR = "error"

# A 16-bit map reaches full scale at this multiple of the pixel threshold.
_MAP_FULL_SCALE_IN_THRESHOLDS = 4.0

_STAGES = ("decode_ms", "preprocess_ms", "embed_ms", "search_ms", "verify_ms", "map_ms", "total_ms")
_CSV_FIELDS = (
    "source", "frame", "verdict", "score", "threshold", "regions", *_STAGES,
    "exactness", "search", "verified_patches", "error",
)  # fmt: skip


def result_record(frame: Frame, result: AnomalyResult | None) -> dict[str, Any]:
    """One frame's line: plain types only; a frame without a result says why."""
    head = {"source": _as_utf8(frame.source), "frame": frame.index}
    if result is None:
        return {**head, "verdict": VERDICT_ERROR, "error": _as_utf8(frame.error or "")}
    stages = dataclasses.asdict(result.timings)
    return {
        **head,
        "verdict": VERDICT_ANOMALOUS if result.is_anomalous else VERDICT_NORMAL,
        "score": _significant(result.image_score),
        "threshold": _significant(result.threshold),
        "regions": [
            {**dataclasses.asdict(r), "max_score": _significant(r.max_score)} for r in result.regions
        ],
        "timings_ms": {
            key.removesuffix("_ms"): round(value, 3)
            for key, value in {
                "decode_ms": frame.decode_ms,
                **stages,
                "total_ms": frame.decode_ms + result.timings.total_ms,
            }.items()
        },
        "exactness": result.exactness,
        "search": result.search,
        "verified_patches": result.verified_patches,
    }


def _significant(value: float) -> float:
    """Eight significant digits, what float32 holds: scores may be of any scale."""
    return float(f"{value:.8g}")


def _as_utf8(text: str) -> str:
    """Linux file names may hold bytes that are not UTF-8, which no JSON file may: they are shown as `�`."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


class ResultWriter(Protocol):
    """Writes one record at a time."""

    def write(self, record: dict[str, Any]) -> None:
        """Write and flush one record of `result_record`."""


class JsonLinesWriter:
    """One JSON object per line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, record: dict[str, Any]) -> None:
        with _flushed(self._stream):
            self._stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")


class CsvWriter:
    """Comma separated values with a header line; regions as JSON text in one column."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._csv = csv.DictWriter(stream, _CSV_FIELDS, restval="", lineterminator="\n")
        with _flushed(stream):
            self._csv.writeheader()

    def write(self, record: dict[str, Any]) -> None:
        flat = {key: value for key, value in record.items() if key != "timings_ms"}
        flat |= {f"{stage}_ms": value for stage, value in record.get("timings_ms", {}).items()}
        if "regions" in flat:
            flat["regions"] = json.dumps(flat["regions"])
        with _flushed(self._stream):
            self._csv.writerow(flat)


class TableWriter:
    """Aligned columns for people."""

    _SOURCE_WIDTH = 40

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self._stream = stream
        self._colour = colour
        head = f"{'source':<{self._SOURCE_WIDTH}} {'frame':>6}  {'verdict':<9} {'score':>9} {'threshold':>9} "
        with _flushed(stream):
            stream.write(f"{head}{'regions':>7} {'ms':>7}\n")

    def write(self, record: dict[str, Any]) -> None:
        source = record["source"]
        if len(source) > self._SOURCE_WIDTH:
            source = "…" + source[-(self._SOURCE_WIDTH - 1) :]
        line = f"{source:<{self._SOURCE_WIDTH}} {record['frame']:>6}  {record['verdict']:<9}"
        if record["verdict"] == VERDICT_ERROR:
            line += f" {record['error']}"
        else:
            line += f" {record['score']:>9.4f} {record['threshold']:>9.4f} {len(record['regions']):>7}"
            line += f" {record['timings_ms']['total']:>7.1f}"
        with _flushed(self._stream):
            self._stream.write(self._coloured(line, record["verdict"]) + "\n")

    def _coloured(self, line: str, verdict: str) -> str:
        code = {VERDICT_ANOMALOUS: "31", VERDICT_ERROR: "33"}.get(verdict)
        return f"\x1b[{code}m{line}\x1b[0m" if self._colour and code else line


def make_writer(name: str, stream: TextIO) -> ResultWriter:
    """The writer called `name` on a text stream."""
    if name == "jsonl":
        return JsonLinesWriter(stream)
    if name == "csv":
        return CsvWriter(stream)
    return TableWriter(stream, colour=stream.isatty() and "NO_COLOR" not in os.environ)


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[TextIO]:
    """Open a result file for writing.

    Raises:
        SinkError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise SinkError(
            f"{path} cannot be written ({error.strerror or error}). Choose another place."
        ) from error
    try:
        with stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SinkError(_unwritable(stream, error)) from error


@contextlib.contextmanager
def _flushed(stream: TextIO) -> Iterator[None]:
    """Hand what is written inside over at once; a full disk becomes a SinkError, a closed pipe stays one."""
    try:
        yield
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if stream is sys.stdout:
            # Python would try once more at exit, complain and change the exit code.
            sys.stdout = None
        raise SinkError(_unwritable(stream, error)) from error


def _unwritable(stream: TextIO, error: OSError) -> str:
    return f"{stream.name} cannot be written ({error.strerror or error}). Make room or choose another place."


class PictureWriter:
    """Saves overlays and maps, one file per frame, named after the frame."""

    def __init__(
        self, detector: AnomalyDetector, overlays: Path | None, maps: Path | None, map_format: str
    ) -> None:
        """Prepare the folders; `map_format` is "npy" (float32, L2 units) or "png" (16 bits)."""
        self._detector = detector
        self._overlays = overlays
        self._maps = maps
        self._map_format = map_format
        self._used: set[str] = set()
        for folder in (overlays, maps):
            if folder is not None:
                _make_folder(folder)

    def write(self, frame: Frame, image: UInt8Array, result: AnomalyResult) -> None:
        """Save what was asked for."""
        if self._overlays is None and self._maps is None:
            return
        stem = self._stem(frame)
        spec = self._detector.manifest.preprocess
        if self._overlays is not None:
            write_file(self._overlays / f"{stem}.png", encode_png(draw_overlay(image, result, spec)))
        if self._maps is not None:
            full = map_on_original(result.anomaly_map, image.shape[:2], spec)
            data, suffix = self._encoded_map(full, result)
            write_file(self._maps / f"{stem}{suffix}", data)

    def _encoded_map(self, full: Any, result: AnomalyResult) -> tuple[bytes, str]:
        if self._map_format == "png":
            return encode_png(
                map_as_uint16(full, _MAP_FULL_SCALE_IN_THRESHOLDS * result.pixel_threshold)
            ), ".png"
        buffer = io.BytesIO()
        np.save(buffer, full, allow_pickle=False)
        return buffer.getvalue(), ".npy"

    def _stem(self, frame: Frame) -> str:
        """A file name from the source's last two parts and the frame.

        A number is added when it was used before.
        """
        path = Path(frame.source)
        parts = [re.sub(r"[^\w.-]+", "_", part) for part in (path.parent.name, path.stem) if part]
        stem = "_".join(parts)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return f"{stem}_{frame.index:06d}"  # a video or a camera: the number makes it unique
        unique, number = stem, 1
        while unique in self._used:
            number += 1
            unique = f"{stem}_{number}"
        self._used.add(unique)
        return unique


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary name beside it, then a rename.

    Raises:
        SinkError: it cannot be written.
    """
    # Not the `tempfile` module: its files are for their owner's eyes only.
    temporary = path.with_name(f".pcrun-{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise SinkError(
            f"{path} cannot be written ({error.strerror or error}). Choose another place."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(
            f"The folder {folder} cannot be made ({error.strerror or error}). Choose another place."
        ) from error
