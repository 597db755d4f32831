"""A real RTSP camera with a password, which dies, comes back and freezes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.commands.test_cli_live import events_in, lines_of, live, running, wait_for
from tests.runtime.commands.test_cli_run import ended
from tests.runtime.servers import RtspServer

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")


def reasons(path: Path) -> list[str]:
    return [record["reason"] for record in lines_of(path) if record.get("event") == "lost"]


@pytest.fixture
def camera() -> Iterator[RtspServer]:
    problem = RtspServer.problem()
    if problem:
        pytest.skip(f"GStreamer's RTSP server is not installed: {problem}")
    server = RtspServer()
    server.start()
    yield server
    server.kill()


def test_it_dies_comes_back_and_freezes(tiny_bundle: Path, tmp_path: Path, camera: RtspServer) -> None:
    path = tmp_path / "r.jsonl"
    with running(live(tiny_bundle, camera.url, "--output", path, "--stall-timeout", 1)) as process:
        wait_for(lambda: len(lines_of(path)) > 5)
        for death in range(3):
            camera.kill()
            wait_for(lambda death=death: events_in(path).count("lost") > death)  # type: ignore[misc]
            camera.start()
            wait_for(lambda death=death: events_in(path).count("reconnected") > death)  # type: ignore[misc]
            count = len(lines_of(path))
            wait_for(lambda count=count: len(lines_of(path)) > count + 3)  # type: ignore[misc]
        camera.freeze()
        wait_for(lambda: "no frame for 1 s" in reasons(path))
        process.send_signal(signal.SIGTERM)
        code, out, err = ended(process)
    assert code == 0, err
    assert events_in(path).count("reconnected") == 3
    frames = [record for record in lines_of(path) if "frame" in record]
    assert frames[-1]["frame"] + 1 == len(frames) + sum(frame["dropped"] for frame in frames)
    assert lines_of(path)[0]["width"] == 320
    everything = path.read_text(encoding="utf-8") + out + err
    assert "rtsp://***@127.0.0.1" in everything and camera.PASSWORD not in everything


def test_a_wrong_password_is_said_without_showing_it(tiny_bundle: Path, camera: RtspServer) -> None:
    wrong = camera.url.replace(camera.PASSWORD, "falsch")
    with running(live(tiny_bundle, wrong)) as process:
        code, out, err = ended(process)
    assert code == 2
    assert "cannot be opened" in err and "check address, user, password and network" in err
    assert "falsch" not in out + err
