"""Results as text: JSON lines, CSV or a table, on standard output or in a file that may grow for months."""

import contextlib
import csv
import io
import json
import os
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from pcrun.errors import SinkError
from pcrun.sinks.record import VERDICT_ANOMALOUS, VERDICT_ERROR

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

FORMATS = ("jsonl", "csv", "table")
_STAGES = ("decode_ms", "preprocess_ms", "embed_ms", "search_ms", "verify_ms", "map_ms", "total_ms")
CSV_FIELDS = (
    "source", "frame", "verdict", "score", "threshold", "pixel_threshold", "regions", *_STAGES,
    "exactness", "search", "verified_patches", "error",
    "time", "bundle", "alarm", "dropped", "age_ms", "event", "detail",
    "host_to_device_ms", "device_to_host_ms",
)  # fmt: skip
# Lines kept in memory while a disk is full.
_BACKLOG_LINES = 10_000


class Formatter(Protocol):
    """Turns records into lines of text."""

    def head(self) -> str:
        """What stands before the first line; may be empty."""

    def line(self, record: dict[str, Any]) -> str:
        """A verdict or an event, with its line end."""


class JsonLines:
    """One JSON object per line."""

    def head(self) -> str:
        """See `Formatter.head`."""
        return ""

    def line(self, record: dict[str, Any]) -> str:
        """See `Formatter.line`."""
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


class Csv:
    """Comma separated values; regions and details of events as JSON text in one column each."""

    def head(self) -> str:
        """See `Formatter.head`."""
        return ",".join(CSV_FIELDS) + "\n"

    def line(self, record: dict[str, Any]) -> str:
        """See `Formatter.line`."""
        flat = {key: value for key, value in record.items() if key != "timings_ms"}
        flat |= {f"{stage}_ms": value for stage, value in record.get("timings_ms", {}).items()}
        if "regions" in flat:
            flat["regions"] = json.dumps(flat["regions"])
        if "event" in flat:
            known = {"event", "source", "time"}
            flat["detail"] = json.dumps({k: flat.pop(k) for k in list(flat) if k not in known})
        buffer = io.StringIO()
        csv.DictWriter(buffer, CSV_FIELDS, restval="", lineterminator="\n").writerow(flat)
        return buffer.getvalue()


class Table:
    """Aligned columns for people."""

    _SOURCE_WIDTH = 40

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def head(self) -> str:
        """See `Formatter.head`."""
        head = f"{'source':<{self._SOURCE_WIDTH}} {'frame':>6}  {'verdict':<9} {'score':>9} {'threshold':>9} "
        return f"{head}{'regions':>7} {'ms':>7}\n"

    def line(self, record: dict[str, Any]) -> str:
        """See `Formatter.line`."""
        source = record["source"]
        if len(source) > self._SOURCE_WIDTH:
            source = "…" + source[-(self._SOURCE_WIDTH - 1) :]
        if "event" in record:
            return self._coloured(f"{source:<{self._SOURCE_WIDTH}} {described(record)}", "event") + "\n"
        line = f"{source:<{self._SOURCE_WIDTH}} {record['frame']:>6}  {record['verdict']:<9}"
        if record["verdict"] == VERDICT_ERROR:
            line += f" {record['error']}"
        else:
            line += f" {record['score']:>9.4f} {record['threshold']:>9.4f} {len(record['regions']):>7}"
            line += f" {record['timings_ms']['total']:>7.1f}"
        line += "  ALARM" if record.get("alarm") else ""
        return self._coloured(line, record["verdict"]) + "\n"

    def _coloured(self, line: str, verdict: str) -> str:
        code = {VERDICT_ANOMALOUS: "31", VERDICT_ERROR: "33", "event": "36"}.get(verdict)
        return f"\x1b[{code}m{line}\x1b[0m" if self._colour and code else line


def make_formatter(name: str, *, terminal: bool) -> Formatter:
    """The formatter called `name`; colour only for terminals."""
    if name == "jsonl":
        return JsonLines()
    if name == "csv":
        return Csv()
    return Table(colour=terminal and "NO_COLOR" not in os.environ)


def described(record: dict[str, Any]) -> str:
    """An event in words."""
    facts = [f"{key} {value}" for key, value in record.items() if key not in ("event", "source", "time")]
    return f"{record['event']} ({', '.join(facts)})" if facts else str(record["event"])


class StreamSink:
    """Lines on a text stream, each handed over at once."""

    def __init__(self, stream: TextIO, formatter: Formatter) -> None:
        """Write the head.

        Raises:
            SinkError: the stream cannot be written.
        """
        self.name = "standard output" if stream is sys.stdout else str(getattr(stream, "name", "output"))
        self.lost = 0
        self._stream = stream
        self._formatter = formatter
        self._write(formatter.head())

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        self._write(self._formatter.line(record))

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""
        self._write(self._formatter.line(record))

    def close(self) -> None:
        """See `Sink.close`."""

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            self.lost += 1
            if self._stream is sys.stdout:
                # Python would try once more at exit, complain and change the exit code.
                sys.stdout = None
            raise SinkError(_unwritable(self.name, error)) from error


class FileSink:
    """Lines in a file: whole ones, even when the disk is full for a while; renamed when it grows too large.

    What cannot be written waits in memory, up to 10,000 lines, and is written first when there is room again.
    """

    def __init__(
        self,
        path: Path,
        formatter: Formatter,
        *,
        append: bool = False,
        rotate_bytes: int | None = None,
        keep: int = 5,
    ) -> None:
        """Open the file.

        Args:
            path: its folder is made.
            formatter: of the lines.
            append: go on after what is there, in place of starting anew.
            rotate_bytes: a file that would become larger is renamed to PATH.1, that to PATH.2 and so on.
            keep: renamed files that stay.

        Raises:
            SinkError: it cannot be written.
        """
        self.name = str(path)
        self.lost = 0
        self._path = path
        self._formatter = formatter
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._backlog: deque[str] = deque()
        self._size = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open("ab" if append else "wb")
        except OSError as error:
            raise SinkError(_unwritable(self.name, error)) from error

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        self._add(self._formatter.line(record))

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""
        self._add(self._formatter.line(record))

    def close(self) -> None:
        """See `Sink.close`."""
        try:
            self._write_backlog()
        except OSError as error:
            self.lost += len(self._backlog)
            raise SinkError(
                f"{len(self._backlog)} lines are lost: {_unwritable(self.name, error)}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                self._file.close()

    def _add(self, line: str) -> None:
        self._backlog.append(line)
        if len(self._backlog) > _BACKLOG_LINES:
            self._backlog.popleft()
            self.lost += 1
        try:
            self._write_backlog()
        except OSError as error:
            raise SinkError(_unwritable(self.name, error)) from error

    def _write_backlog(self) -> None:
        while self._backlog:
            data = self._backlog[0].encode()
            if self._rotate_bytes and self._size and self._size + len(data) > self._rotate_bytes:
                self._rotate()
            self._write(data)
            self._backlog.popleft()

    def _write(self, data: bytes) -> None:
        try:
            # Unbuffered: what a full disk took of a line is known, and taken back.
            written = self._file.write(data)
            if written != len(data):
                self._write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
                self._file.seek(self._size)
            raise
        self._size = self._file.tell()

    def _rotate(self) -> None:
        self._file.close()
        try:
            for number in range(self._keep, 0, -1):
                older = self._path if number == 1 else self._numbered(number - 1)
                if older.exists():
                    older.replace(self._numbered(number))
            if self._keep == 0:
                self._path.unlink()
        finally:
            self._open("ab")

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self, mode: str) -> None:
        self._file = self._path.open(mode, buffering=0)
        self._size = self._file.seek(0, io.SEEK_END)
        if self._size == 0:
            head = self._formatter.head().encode()
            if head:
                self._write(head)
        elif not self._ends_with_a_line():
            # A process that was killed left half a line: the next one must not be glued to it.
            self._write(b"\n")

    def _ends_with_a_line(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, io.SEEK_END)
            return file.read(1) == b"\n"


def _unwritable(name: str, error: OSError) -> str:
    return f"{name} cannot be written ({error.strerror or error}). Make room or choose another place."
