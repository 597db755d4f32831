"""Small parts around sources: addresses, views, raw frames, smoothing, and what --source understands."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcrun.errors import SourceError
from pcrun.pipeline.debounce import Debounce
from pcrun.sources import Frame, Source
from pcrun.sources.files import ImageFiles, VideoFile
from pcrun.sources.live import LiveSource
from pcrun.sources.spec import SourceOptions, open_source, raw_frames
from pcrun.sources.stdin import RawFrames
from pcrun.sources.urls import expanded, redacted
from pcrun.sources.view import FrameView, Roi
from pcrun.sources.watch import WatchedFolder
from tests.runtime.sources.test_sources import write_image, write_video


class TestRedaction:
    @pytest.mark.parametrize(
        "address, shown",
        [
            ("rtsp://admin:hunter2@10.0.0.5:554/ch1", "rtsp://***@10.0.0.5:554/ch1"),
            ("rtsp://admin@10.0.0.5/ch1", "rtsp://***@10.0.0.5/ch1"),
            ("rtsp://admin:p@ss@w0rd@cam/ch1", "rtsp://***@cam/ch1"),
            ("http://cam/video?user=a&password=geheim&x=1", "http://cam/video?user=a&password=***&x=1"),
            ("http://cam/video?access_token=abc", "http://cam/video?access_token=***"),
            (
                "rtspsrc location=rtsp://u:geheim@cam/1 ! decodebin",
                "rtspsrc location=rtsp://***@cam/1 ! decodebin",
            ),
            ("rtsp://cam/ch1", "rtsp://cam/ch1"),
            ("parts/a@b.png", "parts/a@b.png"),
        ],
    )
    def test_credentials_are_not_shown(self, address: str, shown: str) -> None:
        assert redacted(address) == shown

    @given(st.text("abcXYZ019:@!$%&*", min_size=1).filter(lambda p: "***" not in f"u:{p}@"))
    def test_no_password_survives(self, password: str) -> None:
        marked = f"q7{password}q7"
        assert marked not in redacted(f"rtsp://user:{marked}@camera/stream")


class TestEnvironment:
    def test_names_in_addresses_are_filled_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CAM_USER", "u")
        monkeypatch.setenv("CAM_PASS", "p:1")
        assert expanded("rtsp://$CAM_USER:${CAM_PASS}@cam/1") == "rtsp://u:p:1@cam/1"

    def test_a_name_that_is_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CAM_PASS", raising=False)
        with pytest.raises(SourceError, match=r"names the variable CAM_PASS, which is not set") as raised:
            expanded("rtsp://me:geheim@x/$CAM_PASS")
        assert "geheim" not in str(raised.value)


class TestView:
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)

    @pytest.mark.parametrize("degrees, turns", [(0, 0), (90, -1), (180, 2), (270, 1)])
    def test_rotation_is_clockwise(self, degrees: int, turns: int) -> None:
        np.testing.assert_array_equal(FrameView(degrees).turn(self.image), np.rot90(self.image, turns))

    def test_the_region_of_interest_is_cut_from_the_upright_frame(self) -> None:
        view = FrameView(90, Roi(1, 2, 3, 4))
        upright = view.turn(self.image)
        np.testing.assert_array_equal(view.cut(upright), upright[2:6, 1:4])

    @pytest.mark.parametrize("roi", [Roi(0, 0, 8, 5), Roi(0, 0, 7, 6), Roi(7, 0, 1, 1), Roi(3, 3, 5, 1)])
    def test_outside_the_frame(self, roi: Roi) -> None:
        with pytest.raises(SourceError, match="does not lie in the frame of 7x5 px"):
            FrameView(0, roi).cut(self.image)

    @pytest.mark.parametrize("values", [(-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)])
    def test_no_rectangle(self, values: tuple[int, int, int, int]) -> None:
        with pytest.raises(ValueError, match="region of interest"):
            Roi(*values)


class TestRawFrames:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)

    def read(self, data: bytes) -> list[Frame]:
        source = RawFrames(io.BytesIO(data), width=5, height=4)
        return list(source.items(threading.Event()))

    def test_frames_of_one_size_one_after_the_other(self) -> None:
        frames = self.read(self.frames.tobytes())
        assert [frame.index for frame in frames] == [0, 1, 2]
        for frame, expected in zip(frames, self.frames, strict=True):
            assert frame.image is not None
            np.testing.assert_array_equal(frame.image, expected)

    def test_half_a_frame_is_an_error_and_no_frame(self) -> None:
        *whole, last = self.read(self.frames.tobytes()[:-7])
        assert len(whole) == 2 and last.image is None
        assert "ended after 53 of 60 bytes" in str(last.error) and "5x4 px" in str(last.error)

    def test_no_input_is_no_frame(self) -> None:
        assert self.read(b"") == []

    @pytest.mark.parametrize("size", ["640", "640x", "axb", "640x480x3", "-1x4", ""])
    def test_no_size(self, size: str) -> None:
        with pytest.raises(SourceError, match="Expected WIDTHxHEIGHT"):
            raw_frames(size)

    @pytest.mark.parametrize("size", ["0x480", "640x99999"])
    def test_an_impossible_size(self, size: str) -> None:
        with pytest.raises(SourceError, match="cannot be read"):
            raw_frames(size)


class TestDebounce:
    @pytest.mark.parametrize(
        "needed, window, verdicts, alarms",
        [
            (1, 1, "0101", "0101"),
            (2, 3, "1010110", "0010111"),
            (3, 3, "111011100", "001000100"),
            (2, 5, "1000010001", "0000000001"),
        ],
    )
    def test_alarms(self, needed: int, window: int, verdicts: str, alarms: str) -> None:
        debounce = Debounce(needed, window)
        got = "".join(str(int(debounce.update(v == "1"))) for v in verdicts)
        assert got == alarms

    @given(st.lists(st.booleans(), max_size=40), st.integers(1, 6), st.integers(0, 6))
    def test_it_is_a_count_over_the_last_ones(self, verdicts: list[bool], needed: int, more: int) -> None:
        window = needed + more
        debounce = Debounce(needed, window)
        for number, verdict in enumerate(verdicts):
            recent = verdicts[max(0, number + 1 - window) : number + 1]
            assert debounce.update(verdict) == (sum(recent) >= needed)

    def test_a_frame_without_a_verdict_changes_nothing(self) -> None:
        debounce = Debounce(2, 2)
        assert [debounce.update(v) for v in (True, None, True, None, False, None)] == [
            False, False, True, True, False, False,
        ]  # fmt: skip

    @pytest.mark.parametrize("k, n", [(0, 1), (2, 1)])
    def test_impossible_fractions(self, k: int, n: int) -> None:
        with pytest.raises(ValueError, match="1 <= k <= n"):
            Debounce(k, n)


class TestSpec:
    def open(self, text: str, **options: float) -> Source:
        return open_source(text, SourceOptions(**options), white_level_16bit=65535)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "text, name",
        [
            ("0", "camera:0"),
            ("camera:3", "camera:3"),
            ("rtsp://u:geheim@cam/1", "rtsp://***@cam/1"),
            ("HTTP://cam/x.mjpg", "HTTP://cam/x.mjpg"),
            ("gstreamer:videotestsrc ! appsink", "gstreamer:videotestsrc ! appsink"),
        ],
    )
    def test_live_sources_are_not_opened_yet(self, text: str, name: str) -> None:
        source = self.open(text)
        assert isinstance(source, LiveSource) and source.live and source.name == name

    def test_files_and_folders(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png")
        video = write_video(tmp_path / "v.avi", 3)
        assert isinstance(self.open(str(tmp_path)), ImageFiles)
        assert isinstance(self.open(f"{tmp_path}/*.png"), ImageFiles)
        assert isinstance(self.open(f"watch:{tmp_path}"), WatchedFolder)
        assert isinstance(self.open(str(video)), VideoFile)
        odd = video.rename(tmp_path / "video without a suffix")
        assert isinstance(self.open(f"video:{odd}"), VideoFile)

    def test_properties_are_for_cameras(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png")
        with pytest.raises(SourceError, match="has no properties to set"):
            open_source(str(tmp_path), SourceOptions(properties={"FPS": 3.0}), white_level_16bit=65535)

    def test_nothing_of_that_name(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="There is no file or folder"):
            self.open(str(tmp_path / "gone"))
