"""`pcbench soak`: a live source made of a video, and an account of all its frames."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from pcbench.cli import cli
from pcbench.results import load_results
from pcbench.soak import looped_video
from pcrun.commands.support import run_command
from pcrun.sources import Frame
from pcrun.sources.live import LiveSource
from tests.runtime.sources.test_sources import write_video


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "v.avi", 12)


def test_the_video_begins_again_and_keeps_its_time(video: Path) -> None:
    stop = threading.Event()
    device = looped_video(video, fps=100)
    frames = []
    for item in LiveSource(device).items(stop):
        if isinstance(item, Frame):
            frames.append(item)
        if len(frames) == 40:
            break
    assert device.frames >= 40
    seconds = frames[-1].ready - frames[0].ready
    # On time on average: 100 a second.
    assert (frames[-1].index - frames[0].index) / 115 < seconds < (frames[-1].index - frames[0].index) / 85
    greys = [float(frame.image.mean()) for frame in frames if frame.image is not None]
    assert min(greys) < 10 and np.ptp(greys) > 60


def test_all_frames_are_accounted_for(
    tiny_bundle: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "soak.json"
    code = run_command(
        cli,
        "pcbench",
        ["soak", "--bundle", str(tiny_bundle), "--video", str(video), "--minutes", "0.05", "--fps", "60",
         "--all-normal", "--name", "test", "-o", str(output)],
    )  # fmt: skip
    assert code == 0
    (result,) = load_results(output.parent)
    assert result["kind"] == "soak" and result["frames"] > 100
    assert 0 <= result["left_over"] < 60  # what comes in a second; two of them on an idle machine
    assert result["frames"] == result["scored"] + result["dropped"] + result["left_over"]
    (minute,) = result["minutes"]
    assert minute["scored"] == result["scored"] and minute["rss_mb"] > 20
    assert result["rss_slope_mb_per_minute"] is None and result["events"]["stopped"] == 1
    json.dumps(result)
    assert f"age at verdict: p50 {result['age_ms']['p50']:.1f} ms, p90 " in capsys.readouterr().out


def test_no_video(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"x")
    arguments = ["soak", "--bundle", str(tiny_bundle), "--video", str(path), "--name", "x", "-o", str(path)]
    assert run_command(cli, "pcbench", arguments) == 2
    assert "cannot be opened as a video" in capsys.readouterr().err
