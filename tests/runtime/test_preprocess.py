"""The way from an image to the embedder's input, and back from the map to the image."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun.preprocess import (
    MAX_INPUT_SIDE_PX,
    PreprocessSpec,
    input_window,
    map_on_original,
    preprocess,
    resize_uint8,
)

SIDES = st.integers(1, 400)


def spec(resize_hw: tuple[int, int], crop_hw: tuple[int, int] | None = None, **kw: object) -> PreprocessSpec:
    return PreprocessSpec(*resize_hw, *(crop_hw or resize_hw), **kw)  # type: ignore[arg-type]


def gradient(height: int, width: int) -> np.ndarray:
    """Blue grows to the right, green downwards, red is constant."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0] = np.linspace(0, 255, width).round()
    image[:, :, 1] = np.linspace(0, 255, height).round()[:, None]
    image[:, :, 2] = 77
    return image


class TestPreprocess:
    def test_output_is_rgb_and_contiguous(self) -> None:
        image = np.full((32, 32, 3), (10, 20, 30), np.uint8)
        out = preprocess(image, spec((32, 32)))
        assert out[0, 0].tolist() == [30, 20, 10]
        assert out.dtype == np.uint8 and out.flags.c_contiguous

    def test_input_is_not_changed(self) -> None:
        image = gradient(40, 50)
        before = image.copy()
        preprocess(image, spec((40, 50), (32, 32)))
        np.testing.assert_array_equal(image, before)

    def test_crop_is_the_centre(self) -> None:
        image = gradient(40, 60)
        out = preprocess(image, spec((40, 60), (20, 30)))
        np.testing.assert_array_equal(out[:, :, ::-1], image[10:30, 15:45])

    def test_stretch_shows_the_whole_image(self) -> None:
        out = preprocess(gradient(200, 400), spec((64, 64)))
        assert out[:, 0, 2].max() < 5 and out[:, -1, 2].min() > 250
        assert out[0, :, 1].max() < 5 and out[-1, :, 1].min() > 250

    def test_keep_aspect_cuts_the_longer_side_alike_at_both_ends(self) -> None:
        out = preprocess(gradient(200, 400), spec((64, 64), keep_aspect=True))
        # The middle half of the width: a quarter of the gradient is gone on either side.
        assert abs(int(out[32, 0, 2]) - 64) < 4 and abs(int(out[32, -1, 2]) - 191) < 4
        assert out[0, :, 1].max() < 5 and out[-1, :, 1].min() > 250

    def test_keep_aspect_keeps_a_circle_round(self) -> None:
        image = np.zeros((300, 500, 3), np.uint8)
        cv2.circle(image, (250, 150), 60, (255, 255, 255), -1)
        rows, columns = np.nonzero(preprocess(image, spec((100, 100), keep_aspect=True))[:, :, 0] > 127)
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 1

    def test_image_of_the_right_size_passes_unchanged(self) -> None:
        image = gradient(64, 64)
        np.testing.assert_array_equal(preprocess(image, spec((64, 64)))[:, :, ::-1], image)

    @settings(max_examples=60, deadline=None)
    @given(
        SIDES, SIDES, st.integers(1, 64), st.integers(1, 64), st.booleans(), st.integers(0, 255), st.data()
    )
    def test_any_size_gives_the_input_shape_and_keeps_a_constant(
        self,
        height: int,
        width: int,
        resize_h: int,
        resize_w: int,
        keep: bool,
        value: int,
        data: st.DataObject,
    ) -> None:
        crop_h, crop_w = data.draw(st.integers(1, resize_h)), data.draw(st.integers(1, resize_w))
        chosen = spec((resize_h, resize_w), (crop_h, crop_w), keep_aspect=keep)
        out = preprocess(np.full((height, width, 3), value, np.uint8), chosen)
        assert out.shape == (crop_h, crop_w, 3)
        assert np.unique(out).tolist() == [value]


class TestResize:
    @pytest.mark.parametrize("shrinking", ["height", "width"])
    def test_stripes_average_out_when_only_one_axis_shrinks(self, shrinking: str) -> None:
        stripes = np.zeros((256, 20), np.uint8)
        # Period 4, matched to the factor 4: OpenCV's fallback samples a white row every time.
        stripes[0::4] = stripes[1::4] = 255
        image = stripes if shrinking == "height" else np.ascontiguousarray(stripes.T)
        out = resize_uint8(image, (64, 64))
        assert np.abs(out.astype(float) - 127.5).max() <= 1
        # Why resize_uint8 takes two steps: one INTER_AREA call aliases to pure white here.
        assert cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA).min() == 255

    @pytest.mark.parametrize("factor_y, factor_x", [(2, 2), (1, 4), (4, 1), (3, 5), (8, 2), (7, 7)])
    def test_integer_factors_give_the_exact_area_average(self, factor_y: int, factor_x: int) -> None:
        rng = np.random.default_rng(factor_y * 10 + factor_x)
        image = rng.integers(0, 256, (12 * factor_y, 9 * factor_x, 3), dtype=np.uint8)
        mean = image.reshape(12, factor_y, 9, factor_x, 3).mean(axis=(1, 3))
        assert np.abs(resize_uint8(image, (12, 9)) - mean).max() <= 0.5 + 1e-3

    def test_fractional_factor_weighs_partly_covered_pixels(self) -> None:
        image = np.array([[0, 0, 255, 255, 255]], np.uint8).repeat(3, axis=0)
        # Each output pixel covers 2.5 input pixels: 0, 0 and half of 255; then the other half and two of 255.
        np.testing.assert_array_equal(resize_uint8(image, (3, 2)), [[51, 255]] * 3)

    def test_growing_is_linear(self) -> None:
        out = resize_uint8(np.array([[0, 100]], np.uint8), (1, 4))
        np.testing.assert_array_equal(out, [[0, 25, 75, 100]])


class TestBackToTheOriginal:
    @pytest.mark.parametrize("original_hw", [(240, 320), (320, 240), (97, 433), (50, 50)])
    @pytest.mark.parametrize(
        "chosen",
        [
            spec((64, 64)),
            spec((64, 96)),
            spec((80, 80), (64, 64)),
            spec((64, 64), keep_aspect=True),
            spec((80, 80), (64, 48), keep_aspect=True),
        ],
        ids=["stretch", "stretch wide", "stretch crop", "aspect", "aspect crop"],
    )
    def test_a_spot_returns_to_its_place(self, original_hw: tuple[int, int], chosen: PreprocessSpec) -> None:
        window = input_window(original_hw, chosen)
        pixel_h, pixel_w = window.height / chosen.crop_height_px, window.width / chosen.crop_width_px
        for share_y, share_x in [(0.2, 0.3), (0.5, 0.5), (0.8, 0.1), (0.1, 0.9)]:
            y, x = window.y + share_y * window.height, window.x + share_x * window.width
            image = np.zeros((*original_hw, 3), np.float32)
            rows, columns = np.mgrid[0 : original_hw[0], 0 : original_hw[1]] + 0.5
            spot = ((rows - y) / (3 * pixel_h)) ** 2 + ((columns - x) / (3 * pixel_w)) ** 2
            image[:] = 255 * np.exp(-spot)[:, :, None]
            seen = preprocess(np.rint(image).astype(np.uint8), chosen)[:, :, 0].astype(np.float32)
            full = np.nan_to_num(map_on_original(seen, original_hw, chosen)).astype(np.float64)
            # The centre of what is bright, so that half a pixel of shift shows.
            weight = np.where(full > 100, full - 100, 0)
            found = (weight * rows).sum() / weight.sum(), (weight * columns).sum() / weight.sum()
            assert abs(found[0] - y) <= max(0.25 * pixel_h, 0.6)
            assert abs(found[1] - x) <= max(0.25 * pixel_w, 0.6)

    def test_outside_the_crop_is_nan_and_inside_is_not(self) -> None:
        chosen = spec((100, 100), (60, 80))
        full = map_on_original(np.ones((60, 80), np.float32), (200, 300), chosen)
        expected = np.full((200, 300), np.nan, np.float32)
        expected[40:160, 30:270] = 1
        np.testing.assert_array_equal(full, expected)

    def test_whole_image_has_no_nan(self) -> None:
        full = map_on_original(np.ones((64, 64), np.float32), (201, 333), spec((64, 64)))
        np.testing.assert_array_equal(full, np.ones((201, 333), np.float32))

    def test_window_of_a_stretched_image_is_the_whole(self) -> None:
        window = input_window((200, 300), spec((64, 64)))
        assert (window.x, window.y, window.width, window.height) == (0, 0, 300, 200)

    @settings(max_examples=100, deadline=None)
    @given(SIDES, SIDES, st.integers(8, 64), st.integers(1, 64), st.booleans())
    def test_map_of_any_size_fits(self, height: int, width: int, resize: int, crop: int, keep: bool) -> None:
        crop = min(crop, resize)
        chosen = spec((resize, resize), (crop, crop), keep_aspect=keep)
        full = map_on_original(np.ones((crop, crop), np.float32), (height, width), chosen)
        assert full.shape == (height, width)
        assert (full == 1).any()
        window = input_window((height, width), chosen)
        assert window.x >= 0 and window.y >= 0
        assert window.x + window.width <= width + 1e-9 and window.y + window.height <= height + 1e-9


class TestSpec:
    @pytest.mark.parametrize(
        "change, message",
        [
            ({"resize_height_px": 0}, "resize_height_px"),
            ({"resize_width_px": MAX_INPUT_SIDE_PX + 1}, "resize_width_px"),
            ({"crop_height_px": -1}, "crop_height_px"),
            ({"crop_width_px": 0}, "crop_width_px"),
            ({"crop_height_px": 65}, "must fit"),
            ({"crop_width_px": 65}, "must fit"),
            ({"white_level_16bit": 0}, "white_level_16bit"),
            ({"white_level_16bit": 65536}, "white_level_16bit"),
        ],
    )
    def test_impossible_sizes_are_refused_by_name(self, change: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(spec((64, 64)), **change)

    def test_input_size_is_the_crop(self) -> None:
        assert spec((64, 96), (32, 48)).input_hw == (32, 48)
