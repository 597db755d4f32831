"""The live page as a sink."""

import os
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pcrun.errors import BackendError, SinkError
from pcrun.page.pictures import GalleryPainter
from pcrun.page.state import LineState
from pcrun.pipeline.thresholds import ThresholdChanges

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Line, Verdict

TOKEN_VARIABLE = "PCRUN_TOKEN"
_SHORTEST_TOKEN = 16
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class PageSink:
    """Shows a run in browsers. Nothing is painted while nobody looks, but the gallery of anomalies."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        lines: "Sequence[Line]",
        thresholds: ThresholdChanges,
        say: Callable[[str], None],
    ) -> None:
        """Begin to serve.

        Args:
            host, port: address; port 0 takes a free one.
            lines: of the run.
            thresholds: take what is changed on the page.
            say: tells a person the address, with the token where it was made up here.

        Raises:
            BackendError: starlette or uvicorn is not installed.
            SinkError: there is no token although it is needed, or the address cannot be used.
        """
        try:
            from pcrun.page.server import PageServer
        except ImportError as error:
            raise BackendError(
                f"The live page needs the packages starlette and uvicorn ({error}). Run "
                "`pip install 'patchcore-edge[web]'`."
            ) from error
        token, made_up = _token(host)
        self.lost = 0
        self._lines = [LineState(line) for line in lines]
        self._server = PageServer(
            host, port, lines=self._lines, change_threshold=thresholds.request, token=token
        )
        self._gallery = GalleryPainter(self._lines)
        self.name = f"page {self._server.url}"
        self.port = self._server.port
        # After the #: no browser sends that to a server, or writes it into a log.
        say(f"live page at {self._server.url}" + (f"#token={token}" if made_up else ""))

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        self._lines[verdict.line].take_verdict(verdict, record)

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""
        known = [line for line in self._lines if line.name == record["source"]]
        for line in known or self._lines:
            line.take_event(record)

    def close(self) -> None:
        """See `Sink.close`."""
        self._server.close()
        self._gallery.close()


def _token(host: str) -> tuple[str, bool]:
    """The token from the environment, or a new one for a page that this machine alone can reach.

    Raises:
        SinkError: there is none, or a short one, and others can reach the page.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if not given and host in _LOOPBACK_NAMES:
        return secrets.token_urlsafe(24), True
    if len(given) < _SHORTEST_TOKEN:
        raise SinkError(
            f"${TOKEN_VARIABLE} holds {len(given)} characters. Expected at least {_SHORTEST_TOKEN}: others "
            f"can reach a page on {host}. Make one with "
            "`python -c 'import secrets; print(secrets.token_urlsafe(24))'`."
        )
    return given, False
