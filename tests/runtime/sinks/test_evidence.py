"""Evidence on disk: what is kept, under which name, and never more bytes than allowed."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pcrun.errors import SinkError
from pcrun.pipeline.pipeline import Verdict
from pcrun.sinks.evidence import EvidenceSink
from pcrun.sinks.record import result_record
from pcrun.sources import Frame
from pcrun.sources.view import FrameView
from tests.runtime.sinks.test_outputs import FakeDetector, make_result


def put(sink: EvidenceSink, index: int, *, anomalous: bool = True, seed: int = 0) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    frame = Frame("rtsp://***@cam/1", index, image, None, 0.5, 1_700_000_000 + index, 1.0)
    result = make_result(anomalous=anomalous)
    detector: Any = FakeDetector()
    verdict = Verdict(frame, image, FrameView(), result, None, detector, 0, 5.0, None)
    sink.verdict(verdict, result_record(frame, result, age_ms=5.0, dropped=0))
    time.sleep(0.02)  # a line gives no frames faster


def frames_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("_")[2]) for path in folder.glob("*.json"))


def size_of(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was being written, and has its own name now
            total += path.stat().st_size
    return total


def test_original_overlay_and_record_of_anomalous_frames_alone(tmp_path: Path) -> None:
    sink = EvidenceSink(tmp_path / "new", max_bytes=10**7)
    put(sink, 1)
    put(sink, 2, anomalous=False)
    sink.close()
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    stem = "20231114T221321000Z_rtsp_cam_1_000001"
    assert names == [f"{stem}.json", f"{stem}.overlay.jpg", f"{stem}.png"]
    image = cv2.imread(str(tmp_path / "new" / f"{stem}.png"))
    np.testing.assert_array_equal(
        image, np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    )
    assert cv2.imread(str(tmp_path / "new" / f"{stem}.overlay.jpg")).shape[1] == 96
    record = json.loads((tmp_path / "new" / f"{stem}.json").read_text(encoding="utf-8"))
    assert record["frame"] == 1 and record["verdict"] == "anomalous"


def test_the_newest_stay_and_never_too_many_bytes(tmp_path: Path) -> None:
    sink = EvidenceSink(tmp_path, max_bytes=150_000)
    for index in range(20):
        put(sink, index)
        assert size_of(tmp_path) <= 150_000
    sink.close()
    kept = frames_in(tmp_path)
    assert 2 <= len(kept) < 10 and kept == list(range(20 - len(kept), 20))
    assert len(list(tmp_path.iterdir())) == 3 * len(kept) and sink.lost == 0


def test_what_an_earlier_run_left_counts_and_other_files_do_not(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(bytes(10**6))
    for start in (0, 10):
        sink = EvidenceSink(tmp_path, max_bytes=150_000)
        for index in range(start, start + 5):
            put(sink, index)
        sink.close()
    assert size_of(tmp_path) <= 10**6 + 150_000
    assert frames_in(tmp_path)[-5:] == list(range(10, 15))[-5:] and (tmp_path / "notes.txt").exists()


def test_a_folder_that_cannot_be_written_is_told_and_later_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = EvidenceSink(tmp_path, max_bytes=10**7)
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    put(sink, 1)
    time.sleep(0.2)
    with pytest.raises(SinkError, match="No space left on device"):
        put(sink, 2)
    monkeypatch.setattr(Path, "write_bytes", real)
    deadline = time.monotonic() + 10
    while frames_in(tmp_path) != [1, 2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sink.close()
    assert sink.lost == 0 and len(list(tmp_path.iterdir())) == 6


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match="cannot be made"):
        EvidenceSink(tmp_path / "file", max_bytes=1)
