"""Being a service: what the supervisor hears, and a bundle that changes while the line runs."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.commands.test_cli_live import events_in, lines_of, live, running, wait_for
from tests.runtime.commands.test_cli_run import ended
from tests.runtime.servers import MjpegServer, mjpeg_server

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGHUP") or not hasattr(socket, "AF_UNIX"), reason="systemd's protocol is for Unix"
)


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listens as systemd does."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(15)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "600000")
        yield listener


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    with mjpeg_server("--fps", 60) as running_server:
        yield running_server


def heard(listener: socket.socket, word: str) -> list[str]:
    """Everything up to the first message that holds the word."""
    messages: list[str] = []
    deadline = time.monotonic() + 15
    while not messages or word not in messages[-1]:
        assert time.monotonic() < deadline, f"{word} was not heard"
        messages.append(listener.recv(4096).decode())
    return messages


def test_ready_alive_and_stopping(tiny_bundle: Path, server: MjpegServer, supervisor: socket.socket) -> None:
    with running(live(tiny_bundle, server.url)) as process:
        assert heard(supervisor, "READY=1") == ["READY=1\nSTATUS=running tiny"]
        started = time.monotonic()
        for _ in range(5):
            heard(supervisor, "WATCHDOG=1")
        # Three words in each 0.6 s.
        assert 0.5 < time.monotonic() - started < 3
        process.send_signal(signal.SIGTERM)
        heard(supervisor, "STOPPING=1")
        assert ended(process)[0] == 0


def test_a_camera_that_is_away_does_not_kill_the_service(
    tiny_bundle: Path, server: MjpegServer, supervisor: socket.socket, tmp_path: Path
) -> None:
    output = tmp_path / "r.jsonl"
    with running(live(tiny_bundle, server.url, "--output", output)):
        heard(supervisor, "READY=1")
        wait_for(lambda: frames(output))
        server.kill()
        time.sleep(1)
        for _ in range(4):
            started = time.monotonic()
            heard(supervisor, "WATCHDOG=1")
            assert time.monotonic() - started < 1


@pytest.fixture
def links(tmp_path: Path, copied_bundle: Any) -> tuple[Path, Path, Path]:
    """A link to a bundle, that bundle, and another one."""
    first, second = copied_bundle(), copied_bundle(seed=1)
    link = tmp_path / "current.pcbundle"
    link.symlink_to(first)
    return link, first, second


def point(link: Path, target: Path) -> None:
    fresh = link.with_name("fresh")
    fresh.symlink_to(target)
    fresh.replace(link)


def service(link: Path, server: MjpegServer, output: Path) -> "subprocess.Popen[str]":
    """Without a terminal, as a supervisor starts it."""
    return live(link, server.url, "--output", output, stdin=subprocess.DEVNULL)


def frames(path: Path) -> list[dict[str, Any]]:
    return [record for record in lines_of(path) if "frame" in record]


def test_sighup_changes_the_bundle_without_losing_a_frame(
    links: tuple[Path, Path, Path], server: MjpegServer, tmp_path: Path
) -> None:
    link, _, second = links
    output = tmp_path / "r.jsonl"
    with running(service(link, server, output)) as process:
        wait_for(lambda: len(frames(output)) > 10)
        point(link, second)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded" in events_in(output))
        count = len(frames(output))
        wait_for(lambda: len(frames(output)) > count + 10)
        process.send_signal(signal.SIGTERM)
        code, _, err = ended(process)
    assert code == 0, err
    thresholds = [frame["threshold"] for frame in frames(output)]
    assert len(set(thresholds)) == 2 and thresholds == sorted(thresholds, key=thresholds.index)
    indexes = [frame["frame"] for frame in frames(output)]
    assert indexes[-1] + 1 == len(indexes) + sum(frame["dropped"] for frame in frames(output))


def test_a_bad_bundle_changes_nothing(
    links: tuple[Path, Path, Path], server: MjpegServer, tmp_path: Path
) -> None:
    link, first, second = links
    (second / "memory_bank.npy").write_bytes(b"damaged")
    output = tmp_path / "r.jsonl"
    with running(service(link, server, output)) as process:
        wait_for(lambda: len(frames(output)) > 5)
        point(link, second)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload_failed" in events_in(output))
        count = len(frames(output))
        wait_for(lambda: len(frames(output)) > count + 5)
        # And again, when it has been put right.
        point(link, first)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded" in events_in(output))
    failed = next(r for r in lines_of(output) if r.get("event") == "reload_failed")
    assert "memory_bank.npy" in failed["reason"]
    assert len({frame["threshold"] for frame in frames(output)}) == 1


def test_the_supervisor_hears_of_it(
    links: tuple[Path, Path, Path], server: MjpegServer, supervisor: socket.socket, tmp_path: Path
) -> None:
    link, _, second = links
    with running(service(link, server, tmp_path / "r.jsonl")) as process:
        heard(supervisor, "READY=1")
        point(link, second)
        os.kill(process.pid, signal.SIGHUP)
        heard(supervisor, "RELOADING=1")
        heard(supervisor, "READY=1")
