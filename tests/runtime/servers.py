"""Real servers in processes of their own, killed for real."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MjpegServer:
    """A camera on the network that can be killed and started again."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/stream.mjpg"
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: object) -> None:
        """Start it, and wait until it listens."""
        script = Path(__file__).with_name("mjpeg_server.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(self.port), *map(str, options)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextlib.contextmanager
def mjpeg_server(*options: object) -> Iterator[MjpegServer]:
    """A running server, killed at the end."""
    server = MjpegServer()
    server.start(*options)
    try:
        yield server
    finally:
        server.kill()
