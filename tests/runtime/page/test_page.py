"""The live page's server: what it shows, to whom, and who may change what. Asked over real HTTP."""

import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from pcrun.errors import SinkError
from pcrun.page.sink import PageSink
from pcrun.page.state import HISTORY_FRAMES, KEPT_ANOMALIES, LineState
from pcrun.pipeline.pipeline import Verdict
from pcrun.sinks.record import event_record, result_record
from pcrun.sources import Event, Frame
from pcrun.sources.view import FrameView, Roi
from tests.runtime.servers import free_port
from tests.runtime.sinks.test_outputs import SPEC, make_result

TOKEN = "a-token-that-is-long-enough"


SCORING = type("Scoring", (), {"threshold": type("Spec", (), {"value": 2.25})})


class FakeDetector:
    provider, precision, search, exactness = "cpu", "fp32", "quantised", "mask"
    threshold, pixel_threshold = 2.5, 2.0
    manifest = type("Manifest", (), {"name": "bottle", "preprocess": SPEC, "scoring": SCORING})


class FakeLine:
    def __init__(self, name: str, *, live: bool = True) -> None:
        self.source = type("Source", (), {"name": name, "live": live})
        self.detector = FakeDetector()


class FakeThresholds:
    def __init__(self) -> None:
        self.requested: list[tuple[int, float]] = []

    def request(self, line: int, threshold: float) -> None:
        if threshold < 0:
            raise ValueError("too low")
        self.requested.append((line, threshold))


def make_verdict(index: int, *, anomalous: bool = False, line: int = 0, **changes: Any) -> Verdict:
    image = np.full((64, 96, 3), 90, np.uint8)
    detector: Any = FakeDetector()
    values: dict[str, Any] = {
        "frame": Frame("camera:0", index, image, None, 0.5, 1.7e9 + index, 1.0),
        "image": image,
        "view": FrameView(),
        "result": make_result(anomalous=anomalous),
        "error": None,
        "detector": detector,
        "dropped": 0,
        "age_ms": 4.0,
        "alarm": None,
        "line": line,
    }
    return Verdict(**(values | changes))


def give(sink: Any, verdict: Verdict) -> None:
    record = result_record(
        verdict.frame, verdict.result, error=verdict.error, age_ms=verdict.age_ms, dropped=verdict.dropped
    )
    take = sink.verdict if isinstance(sink, PageSink) else sink.take_verdict
    take(verdict, record)


class Running:
    """A page with two lines, and a browser without a face."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.said: list[str] = []
        self.thresholds: Any = FakeThresholds()
        lines: list[Any] = [FakeLine("camera:0"), FakeLine("camera:1")]
        self.sink = PageSink(host, 0, lines=lines, thresholds=self.thresholds, say=self.said.append)

    @property
    def token(self) -> str:
        found = re.search("#token=(.+)", self.said[0])
        return found[1] if found else TOKEN

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.sink.port, timeout=10)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
            response = connection.getresponse()
            self.headers = {name.lower(): value for name, value in response.getheaders()}
            data = response.read()
        finally:
            connection.close()
        is_json = self.headers.get("content-type") == "application/json"
        return response.status, json.loads(data) if is_json else data

    def apply(self, value: object, **headers: str) -> tuple[int, Any]:
        return self.ask("/api/threshold?line=1", "POST", json.dumps({"threshold": value}).encode(), **headers)

    def bearer(self, token: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {token or self.token}"}


@pytest.fixture
def page() -> Iterator[Running]:
    running = Running()
    yield running
    running.sink.close()


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """One that other machines can reach."""
    monkeypatch.setenv("PCRUN_TOKEN", TOKEN)
    running = Running("0.0.0.0")
    yield running
    running.sink.close()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def decoded(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


class TestWhoMayCome:
    def test_a_page_on_this_machine_shows_without_a_token(self, page: Running) -> None:
        assert page.ask("/")[0] == page.ask("/api/state")[0] == 200
        assert page.said[0].startswith(f"live page at http://127.0.0.1:{page.sink.port}/#token=")

    def test_changing_needs_the_token_everywhere(self, page: Running) -> None:
        assert page.apply(3.0)[0] == 401
        assert page.apply(3.0, **page.bearer("wrong"))[0] == 401
        assert page.apply(3.0, Authorization=page.token)[0] == 401
        assert page.apply(3.0, Cookie=f"token={page.token}")[0] == 401
        assert page.thresholds.requested == []
        assert page.apply(3.0, **page.bearer())[0] == 202
        assert page.thresholds.requested == [(1, 3.0)]

    def test_a_page_for_others_shows_nothing_without_the_token(self, open_page: Running) -> None:
        for path in ("/api/state", "/api/frame", "/api/anomaly?number=1"):
            assert open_page.ask(path)[0] == 401
        assert open_page.ask("/")[0] == 200, "the empty page, which asks for the token"
        assert open_page.ask("/api/state", **open_page.bearer(TOKEN))[0] == 200
        assert TOKEN not in open_page.said[0]

    @pytest.mark.parametrize("token", ["", "short"])
    def test_a_page_for_others_is_refused_without_a_long_token(
        self, monkeypatch: pytest.MonkeyPatch, token: str
    ) -> None:
        monkeypatch.setenv("PCRUN_TOKEN", token)
        with pytest.raises(SinkError, match=f"holds {len(token)} characters. Expected at least 16"):
            Running("0.0.0.0")

    def test_a_name_elsewhere_that_leads_here_is_refused(self, page: Running) -> None:
        assert page.ask("/api/state", Host="evil.example:80")[0] == 421
        for host in ("localhost", f"127.0.0.1:{page.sink.port}", "[::1]:80"):
            assert page.ask("/api/state", Host=host)[0] == 200

    def test_no_other_site_may_read_or_frame_it(self, page: Running) -> None:
        page.ask("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        page.ask("/api/state", "GET", Origin="http://evil.example")
        assert not [name for name in page.headers if name.startswith("access-control")]


class TestWhatIsShown:
    def test_verdict_scores_counts_and_latencies(self, page: Running) -> None:
        page.sink.event(event_record(Event("connected", "camera:0", {"width": 96, "height": 64}), 1.7e9))
        for index in range(20):
            give(page.sink, make_verdict(index, anomalous=index == 7, dropped=index % 2))
        _, state = page.ask("/api/state")
        line = state["line"]
        assert [entry["name"] for entry in state["lines"]] == ["camera:0", "camera:1"]
        assert line["counts"] == {"normal": 19, "anomalous": 1, "error": 0} and line["dropped"] == 10
        assert line["history"][7] == [3.5, "anomalous"] and line["history"][8] == [1.5, "normal"]
        assert line["latency_ms"]["embed"] == {"p50": 2.0, "p90": 2.0, "p99": 2.0}
        assert line["latency_ms"]["age"]["p50"] == 4.0
        assert line["state"] == "connected" and line["threshold"] == 2.5
        assert line["bundle_threshold"] == 2.25
        assert line["record"]["frame"] == 19
        assert page.ask("/api/state?line=1")[1]["line"]["history"] == []

    def test_a_lost_camera_says_why(self, page: Running) -> None:
        page.sink.event(event_record(Event("connected", "camera:1", {}), 1.7e9))
        page.sink.event(event_record(Event("lost", "camera:1", {"reason": "no frame for 5 s"}), 1.7e9))
        line = page.ask("/api/state?line=1")[1]["line"]
        assert (line["state"], line["reason"]) == ("lost", "no frame for 5 s")
        assert line["events"][0]["event"] == "lost"
        assert page.ask("/api/state")[1]["line"]["state"] == "waiting"

    def test_what_concerns_all_is_told_to_all(self, page: Running) -> None:
        page.sink.event(event_record(Event("reloaded", "pcrun", {}), 1.7e9))
        for number in range(2):
            assert page.ask(f"/api/state?line={number}")[1]["line"]["events"][0]["event"] == "reloaded"

    def test_the_frame_with_and_without_heatmap(self, page: Running) -> None:
        assert page.ask("/api/frame")[0] == 204
        heat = np.full((32, 48), 9.0, np.float32)
        give(page.sink, make_verdict(0, result=make_result(heat)))
        painted, plain = (decoded(page.ask(f"/api/frame?heatmap={n}")[1]) for n in (1, 0))
        assert plain.shape == (64, 96, 3) and abs(plain.mean() - 90) < 2
        red = painted[-40:, :, 2].mean() - painted[-40:, :, 0].mean()
        assert red > 40

    def test_a_frame_that_could_not_be_read_has_no_picture(self, page: Running) -> None:
        give(page.sink, make_verdict(0, image=None, result=None, error="torn"))
        assert page.ask("/api/frame")[0] == 204
        assert page.ask("/api/state")[1]["line"]["record"]["error"] == "torn"

    def test_the_newest_anomalies_have_pictures(self, page: Running) -> None:
        for index in range(KEPT_ANOMALIES + 3):
            give(page.sink, make_verdict(2 * index, anomalous=True))
            give(page.sink, make_verdict(2 * index + 1))
        entries = page.ask("/api/state")[1]["line"]["anomalies"]
        assert [entry["frame"] for entry in entries] == list(range(2 * KEPT_ANOMALIES + 4, 4, -2))

        def painted() -> bool:
            return all(entry["painted"] for entry in page.ask("/api/state")[1]["line"]["anomalies"])

        wait_for(painted)
        number = entries[0]["number"]
        assert decoded(page.ask(f"/api/anomaly?number={number}")[1]).shape[1] == 96
        assert page.ask("/api/anomaly?number=1")[0] == 404, "it is gone"

    def test_a_part_that_stays_before_the_camera_does_not_fill_the_gallery(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [100.0]
        monkeypatch.setattr("pcrun.page.state.time.monotonic", lambda: now[0])
        camera: Any = FakeLine("camera:0")
        folder: Any = FakeLine("parts", live=False)
        states = LineState(camera), LineState(folder)
        for index in range(8):
            now[0] += 0.4
            for state in states:
                give(state, make_verdict(index, anomalous=True))
        shown = [[a["frame"] for a in state.details()["anomalies"]] for state in states]
        assert shown == [[6, 3, 0], [7, 6, 5, 4, 3, 2, 1, 0]]

    def test_a_bounded_number_of_frames_is_remembered(self) -> None:
        line: Any = FakeLine("camera:0")
        state = LineState(line)
        for index in range(HISTORY_FRAMES + 50):
            give(state, make_verdict(index))
        details = state.details()
        assert len(details["history"]) == HISTORY_FRAMES
        assert details["counts"]["normal"] == HISTORY_FRAMES + 50

    def test_frames_a_second_are_those_of_now(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr("pcrun.page.state.time.monotonic", lambda: now[0])
        line: Any = FakeLine("camera:0")
        state = LineState(line)
        for index in range(100):
            now[0] += 0.1
            give(state, make_verdict(index))
        assert state.details()["fps"] == pytest.approx(10, rel=0.02)
        now[0] += 60
        assert state.details()["fps"] == 0


class TestBadRequests:
    @pytest.mark.parametrize(
        "path", ["/api/state?line=2", "/api/state?line=x", "/api/frame?line=-1", "/nothing"]
    )
    def test_what_is_not_there(self, page: Running, path: str) -> None:
        assert page.ask(path)[0] == 404

    @pytest.mark.parametrize("value", [-1.0, None, "3", True, [], float("nan"), float("inf")])
    def test_what_is_no_threshold(self, page: Running, value: object) -> None:
        status, answer = page.apply(value, **page.bearer())
        assert status == 400 and "expected" in answer["error"]
        assert page.thresholds.requested == []

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"other": 1}', b"\xff", b'{"threshold": 1e999}'])
    def test_what_is_not_understood(self, page: Running, body: bytes) -> None:
        assert page.ask("/api/threshold?line=0", "POST", body, **page.bearer())[0] == 400

    def test_too_much(self, page: Running) -> None:
        assert page.ask("/api/threshold?line=0", "POST", b"[" * 10_000, **page.bearer())[0] == 413

    def test_other_methods(self, page: Running) -> None:
        assert page.ask("/api/threshold?line=0", "PUT", b"{}", **page.bearer())[0] == 405
        assert page.ask("/api/threshold?line=0")[0] == 405


def test_a_port_in_use_is_said(page: Running) -> None:
    lines: list[Any] = [FakeLine("camera:0")]
    with pytest.raises(SinkError, match=f"127.0.0.1:{page.sink.port} cannot serve a page"):
        PageSink("127.0.0.1", page.sink.port, lines=lines, thresholds=page.thresholds, say=print)


def test_nothing_is_left_behind() -> None:
    before = threading.active_count()
    for _ in range(3):
        running = Running()
        assert running.ask("/api/state")[0] == 200
        running.sink.close()
        with pytest.raises(OSError):
            running.ask("/")
    wait_for(lambda: threading.active_count() <= before + 1)


def test_a_small_overlay_shows_what_the_full_one_shows() -> None:
    from pcrun.images.overlay import draw_overlay, draw_small_overlay

    heat = np.zeros((32, 48), np.float32)
    heat[10:20, 20:30] = 9
    view = FrameView(roi=Roi(200, 100, 480, 320))
    image = np.full((640, 960, 3), 120, np.uint8)
    result = make_result(heat)
    full = draw_overlay(image, result, SPEC, view)
    small = draw_small_overlay(image, result, SPEC, view, 480)
    assert small.shape[1] == 480
    shrunk = cv2.resize(full, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[-320:]
    difference = np.abs(small[-320:].astype(int) - shrunk.astype(int))
    assert difference.mean() < 3
    np.testing.assert_array_equal(draw_small_overlay(image, result, SPEC, view, 960), full)


def test_port_zero_takes_a_free_one(page: Running) -> None:
    assert page.sink.port > 0 and page.sink.port != free_port()
