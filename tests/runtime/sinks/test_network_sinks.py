"""Sinks that need somebody else: a real broker and real web servers, which die and come back."""

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pcrun.errors import SinkError
from pcrun.sinks.background import BackgroundSink, Undeliverable
from pcrun.sinks.webhook import WebhookSink
from tests.runtime.servers import free_port
from tests.runtime.sinks.test_sink_set import verdict

RECORDS: list[dict[str, Any]] = [
    {"source": "camera:0", "frame": n, "verdict": "anomalous"} for n in range(2000)
]


def wait_for(condition: Callable[[], Any], limit_s: float = 15) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def put_all(sink: Any, records: list[dict[str, Any]], pause_s: float = 0.0) -> list[str]:
    """Hand over records; the problems that were said."""
    problems = []
    for record in records:
        try:
            sink.verdict(verdict(record["frame"], anomalous=True), record)
        except SinkError as error:
            problems.append(str(error))
        time.sleep(pause_s)
    return problems


class TestBackground:
    class Flaky(BackgroundSink[int]):
        def __init__(self, broken: int, capacity: int = 100) -> None:
            self.taken: list[int] = []
            self.broken, self.attempts = broken, 0
            super().__init__("flaky", capacity=capacity, first_wait_s=0.01, longest_wait_s=0.05)

        def deliver(self, item: int) -> None:
            self.attempts += 1
            if item < 0:
                raise Undeliverable("negative")
            if self.broken:
                self.broken -= 1
                raise SinkError("not now")
            self.taken.append(item)

    def test_in_order_each_once_after_a_failure(self) -> None:
        sink = self.Flaky(broken=3)
        for number in range(20):
            with contextlib.suppress(SinkError):
                sink.put(number)
        wait_for(lambda: len(sink.taken) == 20)
        sink.close()
        assert sink.taken == list(range(20)) and sink.lost == 0 and sink.attempts == 23

    def test_the_oldest_is_lost_when_too_many_wait(self) -> None:
        sink = self.Flaky(broken=10**9, capacity=5)
        problems = 0
        for number in range(12):
            try:
                sink.put(number)
            except SinkError:
                problems += 1
            time.sleep(0.01)
        sink.broken = 0
        wait_for(lambda: 11 in sink.taken)
        sink.close()
        assert problems > 5
        assert sink.taken[-5:] == [7, 8, 9, 10, 11]
        assert sink.lost + len(sink.taken) == 12

    def test_what_will_never_be_taken_does_not_block_the_rest(self) -> None:
        sink = self.Flaky(broken=0)
        for number in (1, -1, 2):
            with contextlib.suppress(SinkError):
                sink.put(number)
        wait_for(lambda: sink.taken == [1, 2])
        assert sink.lost == 1
        sink.close()

    def test_closing_hands_on_what_waits(self) -> None:
        sink = self.Flaky(broken=0)
        for number in range(50):
            sink.put(number)
        sink.close()
        assert len(sink.taken) == 50

    def test_closing_ends_although_nobody_takes_anything(self) -> None:
        sink = self.Flaky(broken=10**9)
        sink.put(1)
        started = time.monotonic()
        with pytest.raises(SinkError, match="1 records are lost: not now"):
            sink.close()
        assert time.monotonic() - started < 7 and sink.lost == 1


class Hook:
    """A web server that keeps what is POSTed to it."""

    def __init__(self, port: int, *, status: int = 200, pause_s: float = 0.0) -> None:
        self.got: list[dict[str, Any]] = []
        self.status, self.pause_s = status, pause_s
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                time.sleep(hook.pause_s)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hook.status == 200:
                    hook.got.append(json.loads(body))
                with contextlib.suppress(OSError):
                    self.send_response(hook.status)
                    self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def frames(self) -> list[int]:
        return [record["frame"] for record in self.got if "frame" in record]


class TestWebhook:
    def test_what_is_not_normal_and_events_are_posted(self) -> None:
        port = free_port()
        hook = Hook(port)
        sink = WebhookSink(f"http://127.0.0.1:{port}/alarm")
        for record in (
            RECORDS[0],
            {**RECORDS[1], "verdict": "normal"},
            {**RECORDS[2], "verdict": "normal", "alarm": True},
            {**RECORDS[3], "verdict": "error"},
        ):
            sink.verdict(verdict(0), record)
        sink.event({"event": "lost", "source": "camera:0"})
        sink.close()
        hook.close()
        assert hook.frames() == [0, 2, 3] and hook.got[-1] == {"event": "lost", "source": "camera:0"}

    def test_everything(self) -> None:
        port = free_port()
        hook = Hook(port)
        sink = WebhookSink(f"http://127.0.0.1:{port}", everything=True)
        sink.verdict(verdict(0), {**RECORDS[1], "verdict": "normal"})
        sink.close()
        hook.close()
        assert hook.frames() == [1]

    def test_a_dead_server_is_told_and_what_waited_arrives_when_it_is_back(self) -> None:
        port = free_port()
        sink = WebhookSink(f"http://127.0.0.1:{port}")
        problems = put_all(sink, RECORDS[:30], pause_s=0.02)
        assert problems and "cannot be reached" in problems[0]
        hook = Hook(port)
        wait_for(lambda: len(hook.frames()) == 30)
        sink.close()
        hook.close()
        assert hook.frames() == list(range(30)) and sink.lost == 0

    @pytest.mark.parametrize("status, lost", [(404, 1), (400, 1), (503, 0), (429, 0)])
    def test_answers_that_are_final_and_those_that_are_not(self, status: int, lost: int) -> None:
        port = free_port()
        hook = Hook(port, status=status)
        sink = WebhookSink(f"http://127.0.0.1:{port}")
        sink.verdict(verdict(0), RECORDS[0])
        wait_for(lambda: sink._problem is not None)
        assert f"answers {status}" in str(sink._problem) and sink.lost == lost
        hook.status = 200
        with contextlib.suppress(SinkError):
            sink.verdict(verdict(1), RECORDS[1])
        wait_for(lambda: hook.frames() == ([1] if lost else [0, 1]))
        sink.close()
        hook.close()

    def test_a_server_that_does_not_answer_holds_nobody_up(self) -> None:
        port = free_port()
        hook = Hook(port, pause_s=3)
        sink = WebhookSink(f"http://127.0.0.1:{port}", timeout_s=0.2)
        started = time.monotonic()
        put_all(sink, RECORDS[:50])
        assert time.monotonic() - started < 1
        wait_for(lambda: sink._problem is not None)
        hook.pause_s = 0
        wait_for(lambda: len(hook.frames()) >= 50)
        sink.close()
        hook.close()

    @pytest.mark.parametrize("url", ["ftp://x/y", "x", "file:///etc/passwd"])
    def test_other_addresses(self, url: str) -> None:
        with pytest.raises(SinkError, match="no address to POST to"):
            WebhookSink(url)

    def test_no_password_in_its_name(self) -> None:
        sink = WebhookSink("https://u:geheim@127.0.0.1:9/x?token=geheim")
        sink.close()
        assert "geheim" not in sink.name


class TestMetrics:
    def test_what_prometheus_reads(self) -> None:
        pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
        from pcrun.sinks.metrics import MetricsSink

        sink = MetricsSink("127.0.0.1", 0)
        sink.event({"event": "connected", "source": "camera:0"})
        record = {
            "source": "camera:0", "frame": 3, "verdict": "anomalous", "score": 3.5, "threshold": 2.5,
            "alarm": True, "timings_ms": {"embed": 7.0, "total": 11.0},
        }  # fmt: skip
        for _ in range(3):
            sink.verdict(verdict(3, anomalous=True), record)
        with urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/metrics") as answer:
            text = answer.read().decode()
        sink.close()
        for line in (
            'pcrun_verdicts_total{source="camera:0",verdict="anomalous"} 3.0',
            'pcrun_source_up{source="camera:0"} 1.0',
            'pcrun_score{source="camera:0"} 3.5',
            'pcrun_alarm{source="camera:0"} 1.0',
            'pcrun_stage_seconds_count{stage="embed"} 3.0',
            'pcrun_frame_age_seconds_sum{source="camera:0"} 0.015',
        ):
            assert line in text

    def test_a_port_in_use(self) -> None:
        pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")
        from pcrun.sinks.metrics import MetricsSink

        first = MetricsSink("127.0.0.1", 0)
        with pytest.raises(SinkError, match="cannot serve metrics"):
            MetricsSink("127.0.0.1", first.port)
        first.close()


def found_mosquitto() -> str | None:
    """Debian puts it where only root's path leads."""
    return shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


class Broker:
    """A real mosquitto."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        passwords = folder / "passwords"
        subprocess.run(
            ["mosquitto_passwd", "-c", "-b", str(passwords), "line3", "geheim"],
            check=True,
            capture_output=True,
        )
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
            f"persistence true\npersistence_location {folder}/\nuser root\nmax_queued_messages 0\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(found_mosquitto()), "-c", str(self._config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def address(self, password: str = "geheim") -> str:
        return f"mqtt://line3:{password}@127.0.0.1:{self.port}/factory/line3"


class Listener:
    """Somebody who listens to everything, and comes back after the broker does."""

    def __init__(self, port: int) -> None:
        import paho.mqtt.client as paho

        self.got: list[tuple[str, str]] = []
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False
        )
        self._client.username_pw_set("line3", "geheim")
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda c, *_: c.subscribe("factory/#", qos=1)
        self._client.on_message = lambda c, d, m: self.got.append((m.topic, m.payload.decode()))
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        wait_for(self._client.is_connected)

    def frames(self) -> list[int]:
        return [json.loads(text)["frame"] for topic, text in self.got if topic.endswith("/results")]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
    if found_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    running = Broker(tmp_path)
    yield running
    running.kill()


class TestMqtt:
    def sink(self, address: str, **options: Any) -> Any:
        from pcrun.sinks.mqtt import MqttSink

        return MqttSink(address, **options)

    def test_results_events_and_status(self, broker: Broker) -> None:
        listener = Listener(broker.port)
        sink = self.sink(broker.address())
        wait_for(lambda: ("factory/line3/status", "online") in listener.got)
        assert put_all(sink, RECORDS[:20]) == []
        sink.event({"event": "lost", "source": "camera:0"})
        sink.close()
        wait_for(lambda: ("factory/line3/status", "offline") in listener.got)
        listener.close()
        assert listener.frames() == list(range(20)) and sink.lost == 0
        assert ("factory/line3/events", '{"event": "lost", "source": "camera:0"}') in listener.got

    def test_a_broker_that_is_killed_and_started_again_loses_nothing(self, broker: Broker) -> None:
        listener = Listener(broker.port)
        sink = self.sink(broker.address())
        wait_for(lambda: ("factory/line3/status", "online") in listener.got)
        put_all(sink, RECORDS[:50])
        wait_for(lambda: len(listener.frames()) == 50)
        broker.kill()
        time.sleep(1.2)
        problems = put_all(sink, RECORDS[50:150], pause_s=0.002)
        broker.start()
        wait_for(lambda: set(listener.frames()) >= set(range(150)), 30)
        assert put_all(sink, RECORDS[150:200]) == []
        wait_for(lambda: set(listener.frames()) == set(range(200)))
        sink.close()
        listener.close()
        assert problems and "broker" in problems[0] and sink.lost == 0

    def test_a_dead_process_is_offline(self, broker: Broker) -> None:
        listener = Listener(broker.port)
        sink = self.sink(broker.address())
        wait_for(lambda: ("factory/line3/status", "online") in listener.got)
        sink._client._sock_close()  # as when the process is killed: no goodbye
        sink._client.loop_stop()
        wait_for(lambda: ("factory/line3/status", "offline") in listener.got, 30)
        listener.close()

    def test_a_wrong_password_is_told(self, broker: Broker) -> None:
        sink = self.sink(broker.address("falsch"))
        time.sleep(1.2)
        wait_for(lambda: any("refuses" in p or "lost" in p for p in put_all(sink, RECORDS[:1])))
        with pytest.raises(SinkError, match="records are lost"):
            sink.close()
        assert "falsch" not in sink.name

    @pytest.mark.parametrize("address", ["mqtt://host", "mqtt:///topic", "http://host/topic", "mqtt://h/a/#"])
    def test_no_address(self, address: str) -> None:
        pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
        with pytest.raises(SinkError, match="is no MQTT address"):
            self.sink(address)
