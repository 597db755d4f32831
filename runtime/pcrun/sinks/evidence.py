"""Evidence: anomalous frames kept on disk, the newest ones, in a bounded number of bytes."""

import json
import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcrun.errors import SinkError
from pcrun.files import make_folder, write_file
from pcrun.images.image_io import encode_jpeg, encode_png
from pcrun.sinks.background import BackgroundSink
from pcrun.sinks.pictures import overlay_of
from pcrun.sinks.record import VERDICT_ANOMALOUS, utc_time

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

_QUEUE = 16
_OVERLAY_QUALITY = 90
_SUFFIXES = (".png", ".overlay.jpg", ".json")
_NAME = re.compile(r"(\d{8}T\d{9}Z_.+)(\.png|\.overlay\.jpg|\.json)")


@dataclass(frozen=True)
class _Piece:
    verdict: "Verdict"
    record: dict[str, Any]


class EvidenceSink(BackgroundSink[_Piece]):
    """For each anomalous frame the original (PNG), its overlay (JPEG) and its record (JSON), under one name.

    The name begins with the time, so names sort by it. When the folder would hold more bytes than allowed,
    the oldest frames are deleted, all their files. Files of other origin are left alone.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        """Make the folder, and take stock of what is there.

        Raises:
            SinkError: it cannot be made or read.
        """
        make_folder(folder)
        self._folder = folder
        self._max_bytes = max_bytes
        try:
            self._kept: deque[tuple[str, int]] = deque(_kept_in(folder))
        except OSError as error:
            raise SinkError(f"{folder} cannot be read ({error.strerror or error}).") from error
        self._bytes = sum(size for _, size in self._kept)
        super().__init__(f"evidence {folder}", capacity=_QUEUE)

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        if record["verdict"] == VERDICT_ANOMALOUS and verdict.image is not None:
            self.put(_Piece(verdict, record))

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""

    def deliver(self, item: _Piece) -> None:
        """See `BackgroundSink.deliver`."""
        verdict = item.verdict
        assert verdict.image is not None and verdict.result is not None  # asked in `verdict`
        contents = (
            encode_png(verdict.image),
            encode_jpeg(overlay_of(verdict, verdict.image, verdict.result), _OVERLAY_QUALITY),
            (json.dumps(item.record, ensure_ascii=False, indent=1) + "\n").encode(),
        )
        size = sum(map(len, contents))
        self._make_room(size)
        name = self._name_of(item)
        try:
            for suffix, data in zip(_SUFFIXES, contents, strict=True):
                write_file(self._folder / f"{name}{suffix}", data)
        except SinkError:
            self._delete(name)
            raise
        self._kept.append((name, size))
        self._bytes += size

    def _make_room(self, size: int) -> None:
        while self._kept and self._bytes + size > self._max_bytes:
            name, freed = self._kept.popleft()
            self._delete(name)
            self._bytes -= freed

    def _delete(self, name: str) -> None:
        for suffix in _SUFFIXES:
            try:
                (self._folder / f"{name}{suffix}").unlink(missing_ok=True)
            except OSError as error:
                raise SinkError(
                    f"{self._folder / name} cannot be deleted ({error.strerror or error})."
                ) from error

    def _name_of(self, item: _Piece) -> str:
        frame = item.verdict.frame
        moment = utc_time(frame.captured_at if frame.captured_at is not None else time.time())
        source = re.sub(r"[^\w.-]+", "_", frame.source)[-80:].strip("_")
        return f"{re.sub('[-:.]', '', moment)}_{source}_{frame.index:06d}"


def _kept_in(folder: Path) -> list[tuple[str, int]]:
    """Names and bytes of the frames in a folder, oldest first."""
    sizes: dict[str, int] = {}
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            sizes[match[1]] = sizes.get(match[1], 0) + path.stat().st_size
    return sorted(sizes.items())
