"""Live sources: reconnected for ever, never an invented frame, never a hang."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from pcrun.errors import SourceError
from pcrun.sources import Event, Frame
from pcrun.sources.live import LiveSource
from pcrun.sources.opencv import CameraDevice, GstreamerDevice, StreamDevice, check_property, has_gstreamer
from tests.runtime.mjpeg_server import number_in, numbered_frame
from tests.runtime.servers import mjpeg_server

FAST = {"first_wait_s": 0.01, "longest_wait_s": 0.05}


class FakeCapture:
    """Gives numbered frames, then what comes next: the end, a hang, or an error of OpenCV."""

    def __init__(self, first: int, count: int, then: str = "end", pause_s: float = 0.002) -> None:
        self._next, self._end, self._then, self._pause_s = first, first + count, then, pause_s
        self.released = threading.Event()
        self.hang = threading.Event()

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self._next < self._end:
            time.sleep(self._pause_s)
            self._next += 1
            return True, numbered_frame(self._next - 1)
        if self._then == "hang":
            self.hang.wait(20)
        if self._then == "error":
            raise cv2.error("the driver is gone")
        return False, None

    def release(self) -> None:
        self.released.set()


class FakeDevice:
    """Opens the captures given, one after the other; a text is the reason why it cannot be opened."""

    name = "fake"

    def __init__(self, *captures: FakeCapture | str) -> None:
        self.captures = list(captures)
        self.opened: list[float] = []

    def open(self) -> Any:
        self.opened.append(time.monotonic())
        if not self.captures:
            raise SourceError("nothing is left")
        capture = self.captures.pop(0)
        if isinstance(capture, str):
            raise SourceError(capture)
        return capture


def taken(source: LiveSource, until: Any, limit_s: float = 10) -> list[Frame | Event]:
    """Items until one of them satisfies `until`; that one is the last."""
    stop = threading.Event()
    items: list[Frame | Event] = []
    timer = threading.Timer(limit_s, stop.set)
    timer.start()
    try:
        for item in source.items(stop):
            items.append(item)
            if until(items):
                break
        else:
            pytest.fail(f"did not come within {limit_s} s: {items[-3:]}")
    finally:
        stop.set()
        timer.cancel()
    return items


def lost(times: int) -> Any:
    return lambda items: sum(isinstance(i, Event) and i.name == "lost" for i in items) == times


def events(items: list[Frame | Event]) -> list[str]:
    return [item.name for item in items if isinstance(item, Event)]


def numbers(items: list[Frame | Event]) -> list[int]:
    return [number_in(item.image) for item in items if isinstance(item, Frame) and item.image is not None]


class TestReconnection:
    def test_a_new_capture_object_each_time_and_the_old_one_released(self) -> None:
        captures = [FakeCapture(0, 5), FakeCapture(100, 5), FakeCapture(200, 5)]
        items = taken(LiveSource(FakeDevice(*captures), **FAST), lost(3))
        assert events(items) == ["connected", "lost", "reconnected", "lost", "reconnected", "lost"]
        assert all(capture.released.wait(1) for capture in captures)

    def test_no_frame_twice_and_none_made_up(self) -> None:
        captures = [FakeCapture(100 * n, 20) for n in range(4)]
        seen = numbers(taken(LiveSource(FakeDevice(*captures), **FAST), lost(4)))
        assert seen == sorted(set(seen)) and len(seen) > 20
        assert all(number % 100 < 20 and number < 400 for number in seen)

    def test_the_index_goes_on_and_counts_what_nobody_took(self) -> None:
        captures = [FakeCapture(0, 50), FakeCapture(50, 50)]
        items = taken(LiveSource(FakeDevice(*captures), **FAST), lost(2))
        frames = [item for item in items if isinstance(item, Frame)]
        assert [number_in(f.image) - f.index for f in frames if f.image is not None and f.index < 50] == [
            0
        ] * sum(f.index < 50 for f in frames)
        assert [f.index for f in frames] == sorted({f.index for f in frames})

    def test_the_wait_doubles_up_to_its_cap_and_starts_anew_after_a_frame(self) -> None:
        device = FakeDevice("no", "no", "no", "no", "no", FakeCapture(0, 3), "no")
        source = LiveSource(device, first_wait_s=0.02, longest_wait_s=0.1)
        items = taken(source, lost(7))
        waits = [i.detail["retry_in_s"] for i in items if isinstance(i, Event) and i.name == "lost"]
        assert waits == [0.02, 0.04, 0.08, 0.1, 0.1, 0.02, 0.04]
        gaps = np.diff(device.opened)[:5]
        assert (gaps >= np.array(waits[:5]) * 0.9).all()

    def test_the_reason_is_that_of_the_device(self) -> None:
        items = taken(LiveSource(FakeDevice("it is unplugged"), **FAST), lost(1))
        (event,) = items
        assert isinstance(event, Event) and event.detail["reason"] == "it is unplugged"

    @pytest.mark.parametrize("then, reason", [("end", "stopped delivering"), ("error", "driver is gone")])
    def test_an_end_and_an_error_of_opencv_are_losses(self, then: str, reason: str) -> None:
        items = taken(LiveSource(FakeDevice(FakeCapture(0, 2, then)), **FAST), lost(1))
        assert isinstance(items[-1], Event) and reason in items[-1].detail["reason"]


class TestWatchdog:
    def test_a_hanging_read_is_noticed_within_the_time_out(self) -> None:
        hanging = FakeCapture(0, 3, "hang")
        source = LiveSource(FakeDevice(hanging, FakeCapture(100, 3)), stall_timeout_s=0.3, **FAST)
        started = time.monotonic()
        items = taken(source, lost(1))
        assert 0.3 <= time.monotonic() - started < 2
        assert isinstance(items[-1], Event) and items[-1].detail["reason"] == "no frame for 0.3 s"
        hanging.hang.set()
        assert hanging.released.wait(2), "the thread that hung must end with its read"

    def test_what_a_hanging_read_gives_too_late_is_not_a_frame(self) -> None:
        late = FakeCapture(0, 3, "hang")
        source = LiveSource(
            FakeDevice(late, FakeCapture(100, 1000, pause_s=0.01)), stall_timeout_s=0.2, **FAST
        )

        def until(items: list[Frame | Event]) -> bool:
            if "lost" in events(items):
                late._end = 9  # it goes on after all
                late.hang.set()
            return sum(number >= 100 for number in numbers(items)) > 20

        seen = numbers(taken(source, until))
        assert set(seen) <= {0, 1, 2} | set(range(100, 1100))

    def test_threads_do_not_grow(self) -> None:
        before = threading.active_count()
        captures = [FakeCapture(10 * n, 2) for n in range(30)]
        taken(LiveSource(FakeDevice(*captures), **FAST), lost(30))
        deadline = time.monotonic() + 2
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before


class TestNewest:
    def test_a_slow_taker_gets_the_newest_frame(self) -> None:
        stop = threading.Event()
        items = LiveSource(FakeDevice(FakeCapture(0, 500, pause_s=0.002)), **FAST).items(stop)
        next(item for item in items if isinstance(item, Frame))
        ages = []
        for _ in range(5):
            time.sleep(0.1)
            frame = next(items)
            assert isinstance(frame, Frame)
            ages.append(time.perf_counter() - frame.ready)
        stop.set()
        assert frame.index > 100 and max(ages) < 0.05

    def test_fps_limits_what_is_taken(self) -> None:
        source = LiveSource(FakeDevice(FakeCapture(0, 200, pause_s=0.002)), fps=20, **FAST)
        items = taken(source, lost(1))
        seconds = 200 * 0.002
        assert 2 <= len(numbers(items)) <= seconds * 2 * 20 + 3

    def test_grey_frames_get_three_channels(self) -> None:
        capture = FakeCapture(0, 1)
        capture.read = lambda: (True, np.full((4, 6), 50, np.uint8))  # type: ignore[method-assign]
        items = taken(LiveSource(FakeDevice(capture), **FAST), lambda items: isinstance(items[-1], Frame))
        assert isinstance(items[-1], Frame) and items[-1].image is not None
        assert items[-1].image.shape == (4, 6, 3)

    def test_a_stop_ends_it_at_once(self) -> None:
        stop = threading.Event()
        source = LiveSource(FakeDevice("no"), first_wait_s=60)
        threading.Timer(0.1, stop.set).start()
        started = time.monotonic()
        list(source.items(stop))
        assert time.monotonic() - started < 2


class TestDevices:
    def test_a_camera_that_is_not_there(self) -> None:
        with pytest.raises(SourceError, match="Camera 99 cannot be opened"):
            CameraDevice(99).open()

    def test_a_stream_that_nobody_serves(self) -> None:
        device = StreamDevice("http://user:secret@127.0.0.1:9/x", timeout_s=1)
        with pytest.raises(SourceError, match=r"http://\*\*\*@127\.0\.0\.1:9/x cannot be opened") as raised:
            device.open()
        assert "secret" not in str(raised.value) and "secret" not in device.name

    @pytest.mark.skipif(has_gstreamer(), reason="this OpenCV has GStreamer")
    def test_an_opencv_without_gstreamer_says_so(self) -> None:
        with pytest.raises(SourceError, match="built without GStreamer"):
            GstreamerDevice("videotestsrc ! appsink").open()

    def test_a_property_that_does_not_exist(self) -> None:
        with pytest.raises(SourceError, match="no capture property 'BRIGHTNES'"):
            check_property("BRIGHTNES")
        assert check_property("exposure") == cv2.CAP_PROP_EXPOSURE

    def test_properties_are_set_and_a_refused_one_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Capture:
            def __init__(self, number: int) -> None:
                self.set_to: dict[int, float] = {}

            def isOpened(self) -> bool:
                return True

            def set(self, number: int, value: float) -> bool:
                self.set_to[number] = value
                return value >= 0

            def release(self) -> None:
                pass

        monkeypatch.setattr(cv2, "VideoCapture", Capture)
        capture = CameraDevice(0, {"EXPOSURE": 5.0, "FPS": 30.0}).open()
        assert capture.set_to == {cv2.CAP_PROP_EXPOSURE: 5.0, cv2.CAP_PROP_FPS: 30.0}  # type: ignore[attr-defined]
        with pytest.raises(SourceError, match=r"camera:0 refuses EXPOSURE=-6"):
            CameraDevice(0, {"EXPOSURE": -6.0}).open()


class TestRealStream:
    """Motion JPEG over HTTP from another process."""

    @pytest.fixture
    def quiet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")

    def source(self, url: str, stall_timeout_s: float = 2.0) -> LiveSource:
        return LiveSource(StreamDevice(url, 2.0), stall_timeout_s=stall_timeout_s, first_wait_s=0.1)

    def frames_after(self, count: int) -> Any:
        return lambda items: len(numbers(items)) >= count

    def test_frames_are_those_that_were_sent(self, quiet: None) -> None:
        with mjpeg_server() as server:
            items = taken(self.source(server.url), self.frames_after(30))
        assert events(items) == ["connected"]
        seen = numbers(items)
        assert seen == sorted(set(seen))

    def test_a_server_that_is_killed_and_started_again(self, quiet: None) -> None:
        with mjpeg_server() as server:
            restarted: list[int] = []

            def until(items: list[Frame | Event]) -> bool:
                if len(numbers(items)) >= 10 and not restarted:
                    restarted.append(1)
                    server.kill()
                    server.start("--first", 1000)
                return "reconnected" in events(items) and numbers(items)[-1] >= 1005

            items = taken(self.source(server.url), until, limit_s=20)
        assert events(items)[:3] == ["connected", "lost", "reconnected"]
        seen = numbers(items)
        assert seen == sorted(set(seen))

    def test_a_stalled_server_is_noticed_within_the_time_out(self, quiet: None) -> None:
        with mjpeg_server("--stall-after", 20) as server:
            source = self.source(server.url, stall_timeout_s=0.7)
            times: list[float] = []

            def until(items: list[Frame | Event]) -> bool:
                times.append(time.monotonic())
                return "lost" in events(items)

            items = taken(source, until)
        assert 0.6 < times[-1] - times[-2] < 2.0
        assert isinstance(items[-1], Event) and "no frame for 0.7 s" in items[-1].detail["reason"]

    @pytest.mark.parametrize("damage", ["cut", "noise"])
    def test_a_corrupt_frame_is_no_frame(self, quiet: None, damage: str) -> None:
        """The stream is opened anew; what a decoder would make of the damaged one is never given."""
        with mjpeg_server("--damage", damage) as server:
            items = taken(self.source(server.url), self.frames_after(40), limit_s=20)
        assert events(items).count("lost") >= 3
        assert events(items).count("reconnected") >= 3
        seen = numbers(items)
        assert seen == sorted(set(seen))
        assert not [number for number in seen if number % 10 == 9]

    def test_a_black_frame_is_a_frame_as_it_is(self, quiet: None) -> None:
        with mjpeg_server("--damage", "black") as server:
            items = taken(self.source(server.url), self.frames_after(30))
        assert events(items) == ["connected"]
        black = [item for item in items if isinstance(item, Frame) and item.image is not None]
        assert any(not frame.image.any() for frame in black if frame.image is not None)

    def test_a_frame_of_another_size_stops_nothing(self, quiet: None) -> None:
        """OpenCV brings it to the size of the first one."""
        with mjpeg_server("--damage", "size") as server:
            items = taken(self.source(server.url), self.frames_after(30))
        assert events(items) == ["connected"]
        shapes = {item.image.shape for item in items if isinstance(item, Frame) and item.image is not None}
        assert shapes == {(48, 64, 3)}
        assert [number for number in numbers(items) if number % 10 == 9]


def test_a_cameras_items_end_when_the_caller_stops_early() -> None:
    capture = FakeCapture(0, 10_000)
    items: Iterator[Frame | Event] = LiveSource(FakeDevice(capture), **FAST).items(threading.Event())
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert capture.released.wait(2)
