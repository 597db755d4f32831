"""Verdicts and events to an MQTT broker."""

import json
import threading
import time
import urllib.parse
from typing import TYPE_CHECKING, Any

from pcrun.errors import BackendError, SinkError
from pcrun.sources.urls import expanded, redacted

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_CAPACITY = 10_000
_CLOSE_S = 5.0
# The first connection takes a moment.
_FIRST_CONNECTION_S = 1.0


class MqttSink:
    """Publishes records on TOPIC/results and TOPIC/events, and its own state on TOPIC/status.

    Records wait while the broker is away, at most 10,000; with QoS 1 or 2 a broken connection loses none.
    TOPIC/status is retained: "online", or "offline" by the broker when this process is gone.
    """

    def __init__(self, address: str, *, qos: int = 1, retain: bool = False) -> None:
        """Begin to connect, in a thread; a broker that is away is tried again and again.

        Args:
            address: mqtt://[user:password@]host[:port]/topic or mqtts://...; `$NAME` in it is taken from the
                environment.
            qos: 0, 1 or 2.
            retain: let the broker keep the last result and event for whoever comes later.

        Raises:
            SinkError: it is no such address.
            BackendError: paho-mqtt is not installed.
        """
        try:
            import paho.mqtt.client as paho
        except ImportError as error:
            raise BackendError(
                f"MQTT needs the package paho-mqtt ({error}). Run `pip install 'patchcore-edge[mqtt]'`."
            ) from error
        self.name = redacted(address)
        self.lost = 0
        parts = urllib.parse.urlsplit(expanded(address))
        topic = parts.path.strip("/")
        odd = parts.query or "#" in address or "+" in topic
        if parts.scheme not in _PORTS or not parts.hostname or not topic or odd:
            raise SinkError(
                f"{self.name} is no MQTT address. Expected mqtt://[user:password@]host[:port]/topic or "
                "mqtts://..., a topic without + and #."
            )
        self._topic, self._qos, self._retain = topic, qos, retain
        self._paho = paho
        self._lock = threading.Lock()
        self._problem: str | None = "no connection to the broker yet"
        self._started = time.monotonic()
        # Set when the first attempt to connect has ended, well or not.
        self._tried = threading.Event()
        # Records lost since a problem was told last.
        self._untold = 0
        # Message numbers of records that are on their way.
        self._waiting: set[int] = set()
        self._client = self._made_client(parts)
        self._client.connect_async(parts.hostname, parts.port or _PORTS[parts.scheme], keepalive=15)
        self._client.loop_start()

    def _say_status(self, status: str) -> Any:
        return self._client.publish(f"{self._topic}/status", status, qos=1, retain=True)

    def _made_client(self, parts: urllib.parse.SplitResult) -> Any:
        client = self._paho.Client(self._paho.CallbackAPIVersion.VERSION2)
        if parts.username:
            client.username_pw_set(
                urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")
            )
        if parts.scheme == "mqtts":
            client.tls_set()
        client.max_queued_messages_set(_CAPACITY)
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_connect_fail = self._connect_failed
        client.on_publish = self._published
        return client

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        self._publish("results", record)

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""
        self._publish("events", record)

    def close(self) -> None:
        """See `Sink.close`."""
        deadline = time.monotonic() + _CLOSE_S
        while self._waiting and self._client.is_connected() and time.monotonic() < deadline:
            time.sleep(0.02)
        left = len(self._waiting)
        if self._client.is_connected():
            status = self._say_status("offline")
            while not status.is_published() and self._client.is_connected() and time.monotonic() < deadline:
                time.sleep(0.02)
        self._client.disconnect()
        self._client.loop_stop()
        self.lost += left
        if left or self._untold:
            reason = self._problem or ("there was no time for them" if left else "there was no connection")
            raise SinkError(f"{left + self._untold} records are lost: {reason}")

    def _publish(self, kind: str, record: dict[str, Any]) -> None:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        if self._qos == 0:
            self._tried.wait(max(0.0, self._started + _FIRST_CONNECTION_S - time.monotonic()))
        # Not under the lock: paho calls `_published` with its own locks held.
        info = self._client.publish(f"{self._topic}/{kind}", text, qos=self._qos, retain=self._retain)
        refused = info.rc == self._paho.MQTT_ERR_QUEUE_SIZE
        # Without a guarantee nothing waits for a connection.
        unsent = self._qos == 0 and info.rc == self._paho.MQTT_ERR_NO_CONN
        with self._lock:
            if refused or unsent:
                self.lost += 1
                self._untold += 1
            else:
                self._waiting.add(info.mid)
        if not refused and info.rc == self._paho.MQTT_ERR_SUCCESS and info.is_published():
            # Before it was in the set.
            self._published(self._client, None, info.mid, None, None)
        with self._lock:
            if self._problem is not None and time.monotonic() - self._started > _FIRST_CONNECTION_S:
                self._untold = 0
                raise SinkError(self._problem)

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._lock:
            self._problem = f"the broker refuses: {reason}" if reason.is_failure else None
        self._tried.set()
        if not reason.is_failure:
            self._say_status("online")

    def _published(self, client: Any, data: Any, number: int, reason: Any, properties: Any) -> None:
        with self._lock:
            self._waiting.discard(number)

    def _disconnected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._lock:
            self._problem = f"the connection to the broker is lost ({reason})"

    def _connect_failed(self, client: Any, data: Any) -> None:
        with self._lock:
            self._problem = "the broker cannot be reached"
        self._tried.set()
