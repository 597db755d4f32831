"""Annotated videos and windows."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pcrun.errors import BackendError, SinkError
from pcrun.sinks import moving
from pcrun.sinks.moving import VideoSink, WindowSink
from pcrun.sources import Frame
from tests.runtime.sinks.test_outputs import make_result, make_verdict


def frame(index: int, height: int = 64, width: int = 97, grey: int = 60) -> Frame:
    return Frame("camera:0", index, np.full((height, width, 3), grey, np.uint8), None, 0.1, 1.0, 1.0)


def read(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        ok, image = capture.read()
        if not ok:
            return frames
        frames.append(image)


class TestVideo:
    def test_every_frame_with_its_caption(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "line.mp4"
        sink = VideoSink(path, fps=10)
        for index in range(12):
            sink.verdict(make_verdict(frame(index), make_result(anomalous=index > 5, regions=())), {})
        sink.close()
        frames = read(path)
        assert len(frames) == 12 and frames[0].shape[1] == 96 and frames[0].shape[0] > 64
        assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(10)
        # The caption stands above: red for an anomaly, green for none.
        red = [float(f[:-64, :, 2].astype(int).sum() - f[:-64, :, 1].astype(int).sum()) for f in frames]
        assert red[0] < 0 < red[-1]

    def test_a_frame_of_another_size_is_lost_and_the_rest_goes_on(self, tmp_path: Path) -> None:
        sink = VideoSink(tmp_path / "v.mp4", fps=10)
        sink.verdict(make_verdict(frame(0), make_result()), {})
        with pytest.raises(SinkError, match="does not fit"):
            sink.verdict(make_verdict(frame(1, 40, 40), make_result()), {})
        sink.verdict(make_verdict(frame(2), make_result()), {})
        sink.close()
        assert len(read(tmp_path / "v.mp4")) == 2 and sink.lost == 1

    def test_another_ending(self, tmp_path: Path) -> None:
        with pytest.raises(SinkError, match=r"does not end in \.mp4"):
            VideoSink(tmp_path / "v.avi", fps=10)

    def test_no_frame_no_file(self, tmp_path: Path) -> None:
        VideoSink(tmp_path / "v.mp4", fps=10).close()
        assert list(tmp_path.iterdir()) == []


class FakeWindow:
    """What OpenCV does with a window, written down."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []
        self.key, self.visible = -1, 1.0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(cv2, "namedWindow", lambda name, flags: None)
        monkeypatch.setattr(cv2, "imshow", lambda name, image: self.shown.append(image.shape))
        monkeypatch.setattr(cv2, "waitKey", lambda ms: self.key)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda name, what: self.visible)
        monkeypatch.setattr(cv2, "destroyWindow", lambda name: None)


class TestWindow:
    def test_without_a_screen_it_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(moving.sys, "platform", "linux")
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(BackendError, match="no screen"):
            WindowSink(print)

    def test_an_opencv_without_windows_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: Any) -> None:
            raise cv2.error("not implemented")

        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(cv2, "namedWindow", refuse)
        with pytest.raises(BackendError, match="no windows"):
            WindowSink(print)

    def test_large_frames_are_shown_smaller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        window = FakeWindow()
        window.install(monkeypatch)
        sink = WindowSink(print)
        for side in (100, 3000):
            sink.verdict(make_verdict(frame(0, side, side), make_result()), {})
        assert window.shown[0][1] == 100 and max(window.shown[1][:2]) <= 1280

    @pytest.mark.parametrize("key, visible", [(ord("q"), 1.0), (27, 1.0), (-1, 0.0)])
    def test_q_escape_and_closing_end_the_run(
        self, monkeypatch: pytest.MonkeyPatch, key: int, visible: float
    ) -> None:
        window = FakeWindow()
        window.key, window.visible = key, visible
        window.install(monkeypatch)
        stops: list[int] = []
        sink = WindowSink(lambda: stops.append(1))
        sink.verdict(make_verdict(frame(0), make_result()), {})
        assert stops == [1]
