"""What a person sees of a batch whose results go to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pcrun.cli import main
from pcrun.pipeline.pipeline import Verdict
from pcrun.sinks.progress import ProgressSink
from pcrun.sources.view import FrameView
from tests.runtime.sinks.results import RECORDS, make_frame

NO_DETECTOR: Any = None
FRAME = Verdict(make_frame(), None, FrameView(), None, None, NO_DETECTOR, 0, None, None)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_said_every_ten_seconds() -> None:
    said: list[str] = []
    clock = Clock()
    sink = ProgressSink(said.append, clock=clock)
    for seconds in (4.0, 4.0, 4.0, 4.0):
        clock.now += seconds
        sink.verdict(FRAME, RECORDS[0])
    assert said == ["so far 3 frames: 0 normal, 3 anomalous"]
    clock.now += 9.0
    for record in RECORDS[1:]:
        sink.verdict(FRAME, record)
    assert said[1:] == ["so far 5 frames: 0 normal, 4 anomalous, 1 error"]


def test_a_batch_that_goes_to_a_file_ends_with_its_counts(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    asked = ["--bundle", str(tiny_bundle), "--images", str(tmp_path / "broken.png")]
    assert main(asked) == 2
    assert "frame" not in capsys.readouterr().err, "its lines are to be seen"
    assert main([*asked, "--output", str(tmp_path / "results.jsonl")]) == 2
    assert "pcrun: 1 frame: 0 normal, 0 anomalous, 1 error\n" in capsys.readouterr().err
