"""Verdicts and events as HTTP POST requests to somebody else's server."""

import http.client
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from pcrun.errors import SinkError
from pcrun.sinks.background import BackgroundSink, Undeliverable
from pcrun.sinks.record import VERDICT_NORMAL
from pcrun.sources.urls import expanded, redacted

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

CAPACITY = 1000
# What a server says about itself, not about the request.
_TRY_AGAIN_STATUS = (408, 425, 429)


class WebhookSink(BackgroundSink[bytes]):
    """POSTs records as JSON: those that are not normal, and events."""

    def __init__(
        self, url: str, *, everything: bool = False, timeout_s: float = 5.0, capacity: int = CAPACITY
    ) -> None:
        """Start to wait for records.

        Args:
            url: http or https; `$NAME` in it is taken from the environment.
            everything: also POST normal verdicts.
            timeout_s: of a request.
            capacity: records that may wait.

        Raises:
            SinkError: it is no such address.
        """
        self._url = expanded(url)
        if not self._url.lower().startswith(("http://", "https://")):
            raise SinkError(f"{redacted(url)} is no address to POST to. Expected http:// or https://.")
        self._everything = everything
        self._timeout_s = timeout_s
        super().__init__(f"webhook {redacted(url)}", capacity=capacity)

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        if self._everything or record["verdict"] != VERDICT_NORMAL or record.get("alarm"):
            self.put(_encoded(record))

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""
        self.put(_encoded(record))

    def deliver(self, item: bytes) -> None:
        """See `BackgroundSink.deliver`."""
        request = urllib.request.Request(self._url, item, {"Content-Type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                answer.read(1024)
        except urllib.error.HTTPError as error:
            error.close()
            kind = Undeliverable if _is_final(error.code) else SinkError
            raise kind(f"the server answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise SinkError(
                f"the server cannot be reached ({redacted(str(error))}). Check address and network."
            ) from error


def _is_final(status: int) -> bool:
    return 400 <= status < 500 and status not in _TRY_AGAIN_STATUS


def _encoded(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
