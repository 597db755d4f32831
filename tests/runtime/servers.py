"""Real servers in processes of their own, killed for real."""

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class CameraServer:
    """A camera on the network that can be killed, frozen and started again.

    Attributes:
        url: of its stream.
    """

    def __init__(self, command: Sequence[object], url: str) -> None:
        """Prepare; `start` runs the command, which says "ready" when it listens."""
        self.url = url
        self._command = [str(word) for word in command]
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: object) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            [*self._command, *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
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

    def freeze(self) -> None:
        """It stays connected, and sends nothing any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)


class MjpegServer(CameraServer):
    """Motion JPEG over HTTP."""

    def __init__(self) -> None:
        port = free_port()
        script = Path(__file__).with_name("mjpeg_server.py")
        super().__init__([sys.executable, script, port], f"http://127.0.0.1:{port}/stream.mjpg")


class RtspServer(CameraServer):
    """RTSP with a password, by GStreamer."""

    # GStreamer's bindings come with the system's Python.
    PYTHON = "/usr/bin/python3"
    PASSWORD = "geheim"

    def __init__(self) -> None:
        port = free_port()
        script = Path(__file__).with_name("rtsp_server.py")
        super().__init__(
            [self.PYTHON, script, port, "viewer", self.PASSWORD],
            f"rtsp://viewer:{self.PASSWORD}@127.0.0.1:{port}/cam",
        )

    @classmethod
    def problem(cls) -> str | None:
        """Why there can be none here."""
        try:
            wanted = "import gi; gi.require_version('GstRtspServer', '1.0')"
            found = subprocess.run([cls.PYTHON, "-c", wanted], capture_output=True, check=False)
        except OSError as error:
            return str(error)
        return found.stderr.decode().strip().splitlines()[-1] if found.returncode else None


@contextlib.contextmanager
def mjpeg_server(*options: object) -> Iterator[MjpegServer]:
    """A running server, killed at the end."""
    server = MjpegServer()
    server.start(*options)
    try:
        yield server
    finally:
        server.kill()
