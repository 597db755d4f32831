"""Overlays and maps."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pcrun.errors import SinkError
from pcrun.images.overlay import draw_overlay, map_as_uint16
from pcrun.preprocess import PreprocessSpec
from pcrun.result import AnomalyResult, Region
from pcrun.sinks.pictures import PictureSink
from pcrun.sources import Frame
from tests.runtime.sinks.results import PIXEL_THRESHOLD, SPEC, make_frame, make_result, make_verdict, names


def picture_sink(overlays: Path | None, maps: Path | None = None, map_format: str = "npy") -> PictureSink:
    return PictureSink(overlays, maps, map_format)


class TestPictureSink:
    def write(self, sink: PictureSink, *frames: Frame) -> None:
        for frame in frames:
            sink.verdict(make_verdict(frame, make_result()), {})

    def test_equal_names_from_different_folders_stay_apart(self, tmp_path: Path) -> None:
        sources = ["a/x/1.png", "b/x/1.png", "a/x/1.jpg", "y/1.png", "1.png"]
        self.write(picture_sink(tmp_path), *(make_frame(source, i) for i, source in enumerate(sources)))
        assert names(tmp_path) == ["1.png", "x_1.png", "x_1_2.png", "x_1_3.png", "y_1.png"]

    def test_video_and_camera_frames_are_numbered(self, tmp_path: Path) -> None:
        frames = [make_frame("line/day.MP4", 3), make_frame("camera:0", 12)]
        self.write(picture_sink(tmp_path), *frames)
        assert names(tmp_path) == ["camera_0_000012.png", "line_day_000003.png"]

    def test_odd_characters_stay_out_of_file_names(self, tmp_path: Path) -> None:
        self.write(picture_sink(tmp_path), make_frame("teile 1/größe 5 µm?*.png"))
        assert names(tmp_path) == ["teile_1_größe_5_µm_.png"]

    def test_npy_map_is_the_result_map_at_the_images_size(self, tmp_path: Path) -> None:
        heat = np.random.default_rng(0).uniform(0, 5, (32, 48)).astype(np.float32)
        frame = make_frame()
        picture_sink(None, tmp_path).verdict(make_verdict(frame, make_result(heat)), {})
        saved = np.load(tmp_path / "parts_a.npy", allow_pickle=False)
        assert saved.dtype == np.float32 and saved.shape == (64, 96)
        expected = cv2.resize(heat, (96, 64), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(saved, expected)

    def test_npy_map_is_unchanged_when_the_image_has_the_input_size(self, tmp_path: Path) -> None:
        heat = np.random.default_rng(0).uniform(0, 5, (32, 48)).astype(np.float32)
        image = np.zeros((32, 48, 3), np.uint8)
        picture_sink(None, tmp_path).verdict(make_verdict(make_frame(), make_result(heat), image), {})
        np.testing.assert_array_equal(np.load(tmp_path / "parts_a.npy"), heat)

    def test_png_map_reaches_white_at_four_times_the_pixel_threshold(self, tmp_path: Path) -> None:
        heat = np.zeros((32, 48), np.float32)
        heat[0, :4] = [PIXEL_THRESHOLD, 2 * PIXEL_THRESHOLD, 4 * PIXEL_THRESHOLD, 9 * PIXEL_THRESHOLD]
        image = np.zeros((32, 48, 3), np.uint8)
        picture_sink(None, tmp_path, "png").verdict(make_verdict(make_frame(), make_result(heat), image), {})
        saved = cv2.imdecode(np.fromfile(tmp_path / "parts_a.png", np.uint8), cv2.IMREAD_UNCHANGED)
        assert saved.dtype == np.uint16 and saved.shape == (32, 48)
        assert saved[0, :5].tolist() == [16384, 32768, 65535, 65535, 0]

    def test_map_outside_the_crop_is_black_in_png(self) -> None:
        values = np.array([[np.nan, 1.0, -1.0]], np.float32)
        assert map_as_uint16(values, 2.0).tolist() == [[0, 32768, 0]]

    def test_nothing_is_written_unless_asked_for(self, tmp_path: Path) -> None:
        self.write(picture_sink(None), make_frame())
        assert names(tmp_path) == []

    def test_folders_are_made(self, tmp_path: Path) -> None:
        self.write(picture_sink(tmp_path / "a" / "b", tmp_path / "c"), make_frame())
        assert names(tmp_path / "a" / "b") == ["parts_a.png"]
        assert names(tmp_path / "c") == ["parts_a.npy"]

    def test_a_file_in_the_way_is_known_before_the_first_frame(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(SinkError, match=r"The folder .*file cannot be made \(File exists\)"):
            picture_sink(tmp_path / "file")


class TestOverlay:
    IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)

    def body(self, result: AnomalyResult, spec: PreprocessSpec = SPEC) -> np.ndarray:
        """The overlay without its caption strip."""
        overlay = draw_overlay(self.IMAGE, result, spec)
        assert overlay.dtype == np.uint8 and overlay.shape[1:] == (96, 3) and overlay.shape[0] > 64
        return overlay[-64:]

    def test_pixels_change_only_where_the_map_is_hot(self) -> None:
        heat = np.full((32, 48), 0.4 * PIXEL_THRESHOLD, np.float32)
        heat[8:16, 12:24] = 1.2 * PIXEL_THRESHOLD
        body = self.body(make_result(heat, regions=()))
        changed = (body != self.IMAGE).any(axis=2)
        # Bilinear enlargement may spread the edge by one map pixel.
        near = np.zeros((64, 96), bool)
        near[14:34, 22:50] = True
        assert not changed[~near].any()
        assert changed[18:30, 26:46].mean() > 0.95

    @pytest.mark.parametrize("multiple, changes", [(0.0, False), (0.75, False), (0.9, True), (1.5, True)])
    def test_colour_starts_at_three_quarters_of_the_pixel_threshold(
        self, multiple: float, changes: bool
    ) -> None:
        heat = np.full((32, 48), multiple * PIXEL_THRESHOLD, np.float32)
        body = self.body(make_result(heat, regions=()))
        assert (body != self.IMAGE).any() == changes

    def test_outside_the_crop_nothing_changes(self) -> None:
        spec = PreprocessSpec(32, 48, 16, 24)
        heat = np.full((16, 24), 9 * PIXEL_THRESHOLD, np.float32)
        changed = (self.body(make_result(heat, regions=()), spec) != self.IMAGE).any(axis=2)
        assert changed[16:48, 24:72].mean() > 0.95
        changed[16:48, 24:72] = False
        assert not changed.any()

    def test_the_input_is_not_modified(self) -> None:
        before = self.IMAGE.copy()
        draw_overlay(self.IMAGE, make_result(np.full((32, 48), 9, np.float32)), SPEC)
        np.testing.assert_array_equal(self.IMAGE, before)

    def test_regions_are_framed_at_their_edges(self) -> None:
        body = self.body(make_result(regions=(Region(10, 20, 30, 15, 100, 3.0),)))
        changed = (body != self.IMAGE).any(axis=2)
        frame = np.zeros((64, 96), bool)
        frame[20:35, 10:40] = True
        frame[21:34, 11:39] = False
        np.testing.assert_array_equal(changed, frame)

    def test_the_verdict_has_its_colour(self) -> None:
        strips = [
            draw_overlay(self.IMAGE, make_result(anomalous=a, regions=()), SPEC)[:-64].astype(int)
            for a in (True, False)
        ]
        red_over_green = [int((strip[:, :, 2] - strip[:, :, 1]).sum()) for strip in strips]
        assert red_over_green[0] > 0 > red_over_green[1]

    @pytest.mark.parametrize("image_hw", [(1, 1), (3, 400), (400, 3)])
    def test_tiny_images(self, image_hw: tuple[int, int]) -> None:
        image = np.zeros((*image_hw, 3), np.uint8)
        result = make_result(np.full((32, 48), 9, np.float32), regions=(Region(0, 0, 1, 1, 1, 9.0),))
        assert draw_overlay(image, result, SPEC).shape[1] == image_hw[1]
