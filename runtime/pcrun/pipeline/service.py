"""Being a service: telling the supervisor how it goes, and changing the bundle without stopping the line."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from pcrun.bundle.manifest import SAMPLES_NAME
from pcrun.detector import AnomalyDetector
from pcrun.errors import PcError
from pcrun.pipeline.pipeline import Line
from pcrun.selftest import run_selftest
from pcrun.sources import Event

_SOCKET_VARIABLE = "NOTIFY_SOCKET"
_WATCHDOG_VARIABLE = "WATCHDOG_USEC"


class Supervisor:
    """systemd's notification protocol (sd_notify(3)); does nothing where nobody listens."""

    def __init__(self) -> None:
        """Look for a listener in the environment."""
        self._address = os.environ.get(_SOCKET_VARIABLE)
        # Often enough that one late word does not kill the service.
        self._period_s = int(os.environ.get(_WATCHDOG_VARIABLE) or 0) / 1e6 / 3
        self._last = 0.0

    def ready(self, status: str) -> None:
        """The line runs."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """Called whenever the line gets round to it; a line that hangs does not."""
        now = time.monotonic()
        if self._period_s and now - self._last >= self._period_s:
            self._last = now
            self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The bundle is being changed; `ready` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if self._address is None or not hasattr(socket, "AF_UNIX"):
            return
        # A name that begins with @ is an abstract one.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            try:
                connection.sendto(text.encode(), address)
            except OSError as error:
                print(f"pcrun: the supervisor cannot be reached ({error})", file=sys.stderr)


class Reloader:
    """Changes the detectors of running lines.

    The new ones are loaded, replayed and so warmed in a thread, while the old ones go on; the change happens
    between two frames. When anything is wrong with the new bundle, the old one stays.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        load: Callable[[], Sequence[AnomalyDetector]],
        post: Callable[[Event], None],
        supervisor: Supervisor,
    ) -> None:
        """Prepare; `request` does it.

        Args:
            lines: to be changed.
            load: gives a new detector per line.
            post: takes events, from any thread.
            supervisor: told when a change begins and ends.
        """
        self._lines = lines
        self._load = load
        self._post = post
        self._supervisor = supervisor
        self._again = threading.Event()
        self._thread: threading.Thread | None = None

    def request(self) -> None:
        """Begin; another request meanwhile makes it begin again afterwards. For signal handlers."""
        self._again.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="reload", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._again.is_set():
            self._again.clear()
            self._supervisor.reloading()
            try:
                detectors = list(self._load())
                for detector in detectors:
                    _require_selftest(detector)
            except (PcError, OSError, ValueError) as error:
                self._post(Event("reload_failed", "pcrun", {"reason": str(error)}))
                self._supervisor.ready("the old bundle goes on: the new one cannot be used")
                continue
            for line, detector in zip(self._lines, detectors, strict=True):
                line.detector = detector
            names = [d.manifest.name for d in dict.fromkeys(detectors)]
            digests = [d.bundle.digest[:12] for d in dict.fromkeys(detectors) if d.bundle]
            self._post(Event("reloaded", "pcrun", {"bundles": names, "digests": digests}))
            self._supervisor.ready(f"running {', '.join(names)}")


def _require_selftest(detector: AnomalyDetector) -> None:
    """Replay the golden samples, where there are any.

    Raises:
        PcError: they do not agree.
    """
    if detector.bundle is None or SAMPLES_NAME not in detector.bundle.manifest.files:
        return
    report = run_selftest(detector)
    # Not the verdicts: the run may have a threshold of its own.
    if any(check.relative_difference > report.tolerance_relative for check in report.checks):
        raise PcError("the golden samples of the new bundle give other scores here than at its build.")
