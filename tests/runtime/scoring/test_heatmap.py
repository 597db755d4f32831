"""Anomaly maps against plain formulas, and from pixels back to patches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pcrun.scoring.heatmap import MapGeometry, anomaly_map, components
from tests.runtime.banks import map_rounding


def bilinear(values: np.ndarray, output_hw: tuple[int, int]) -> np.ndarray:
    """Upsampling with pixel centres at (i + 0.5) and the border repeated, in float64."""
    result = values.astype(np.float64)
    for axis, size in enumerate(output_hw):
        count = result.shape[axis]
        place = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, count - 1)
        share = (place - low).reshape((-1, 1) if axis == 0 else (1, -1))
        result = result.take(low, axis) * (1 - share) + result.take(high, axis) * share
    return result


class TestAnomalyMap:
    @pytest.mark.parametrize("sigma", [0.5, 1.0, 2.6, 4.0, 8.0])
    @pytest.mark.parametrize(
        "grid_hw, output_hw", [((28, 28), (224, 224)), ((5, 9), (40, 96)), ((1, 1), (16, 20))]
    )
    def test_equals_scipy(self, grid_hw: tuple[int, int], output_hw: tuple[int, int], sigma: float) -> None:
        patch_scores = np.random.default_rng(0).uniform(0, 10, grid_hw).astype(np.float32)
        expected = ndimage.gaussian_filter(
            bilinear(patch_scores, output_hw), sigma, truncate=4, mode="reflect"
        )
        got = anomaly_map(patch_scores, output_hw, sigma)
        assert got.dtype == np.float32 and got.shape == output_hw
        assert np.abs(got - expected).max() < 1e-4

    def test_smoothing_wider_than_the_map(self) -> None:
        patch_scores = np.random.default_rng(1).uniform(0, 10, (3, 3)).astype(np.float32)
        expected = ndimage.gaussian_filter(bilinear(patch_scores, (12, 12)), 10, truncate=4, mode="reflect")
        assert np.abs(anomaly_map(patch_scores, (12, 12), 10) - expected).max() < 1e-4

    def test_sigma_zero_is_the_upsampling_alone(self) -> None:
        patch_scores = np.random.default_rng(0).uniform(0, 10, (7, 5)).astype(np.float32)
        assert np.abs(anomaly_map(patch_scores, (70, 45), 0) - bilinear(patch_scores, (70, 45))).max() < 1e-5

    def test_grid_as_large_as_the_map_is_unchanged_without_smoothing(self) -> None:
        patch_scores = np.random.default_rng(0).uniform(0, 10, (8, 9)).astype(np.float32)
        np.testing.assert_array_equal(anomaly_map(patch_scores, (8, 9), 0), patch_scores)

    def test_constant_stays_constant(self) -> None:
        got = anomaly_map(np.full((6, 4), 3.25, np.float32), (48, 64), 4.0)
        np.testing.assert_allclose(got, 3.25, rtol=1e-6)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 7))
# Also smaller than the grid, and no multiple of it.
outputs = st.tuples(st.integers(1, 40), st.integers(1, 50))
sigmas = st.sampled_from([0.0, 0.4, 1.0, 2.0, 6.0])
geometries = st.builds(MapGeometry, sizes, outputs, sigmas)


def influence(geometry: MapGeometry) -> np.ndarray:
    """(patches, height, width) bool: pixels that change when a patch does, seen by changing it."""
    patches = geometry.grid_hw[0] * geometry.grid_hw[1]
    one_hot = np.eye(patches, dtype=np.float32)
    return np.stack([geometry.draw(scores) > 0 for scores in one_hot])


@st.composite
def pixel_sets(draw: st.DrawFn) -> tuple[MapGeometry, np.ndarray]:
    geometry = draw(geometries)
    height, width = geometry.output_hw
    pixels = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 3))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        pixels[y : y + draw(st.integers(1, 4)), x : x + draw(st.integers(1, 4))] = True
    return geometry, pixels


class TestMapGeometry:
    def test_draw_is_the_anomaly_map_of_the_grid(self) -> None:
        scores = np.random.default_rng(0).uniform(0, 10, 6).astype(np.float32)
        got = MapGeometry((2, 3), (20, 27), 1.5).draw(scores)
        np.testing.assert_array_equal(got, anomaly_map(scores.reshape(2, 3), (20, 27), 1.5))

    @settings(max_examples=150, deadline=None)
    @given(pixel_sets())
    def test_no_patch_that_shapes_the_pixels_is_missed(self, drawn: tuple[MapGeometry, np.ndarray]) -> None:
        geometry, pixels = drawn
        named = geometry.patches_reaching(pixels)
        assert named.shape == (geometry.grid_hw[0] * geometry.grid_hw[1],) and named.dtype == np.bool_
        shapes = (influence(geometry) & pixels).any(axis=(1, 2))
        assert (named | ~shapes).all()

    @settings(max_examples=150, deadline=None)
    @given(pixel_sets())
    def test_hardly_any_other_patch_is_named(self, drawn: tuple[MapGeometry, np.ndarray]) -> None:
        geometry, pixels = drawn
        named = geometry.patches_reaching(pixels)
        reach = influence(geometry)
        # Some pixels of margin; where the map is smaller than the grid, patches fall between its pixels.
        around = ndimage.binary_dilation(pixels, np.ones((7, 7)))
        near = (reach & around).any(axis=(1, 2))
        assert (near | ~reach.any(axis=(1, 2)) | ~named).all()

    def test_no_pixel_no_patch(self) -> None:
        geometry = MapGeometry((5, 4), (40, 32), 4.0)
        assert not geometry.patches_reaching(np.zeros((40, 32), bool)).any()

    def test_all_pixels_all_patches(self) -> None:
        geometry = MapGeometry((9, 5), (31, 17), 1.0)
        assert geometry.patches_reaching(np.ones((31, 17), bool)).all()

    def test_one_pixel_names_few_patches_of_a_real_geometry(self) -> None:
        geometry = MapGeometry((28, 28), (224, 224), 4.0)
        pixels = np.zeros((224, 224), bool)
        pixels[100, 60] = True
        # A Gaussian of 4 pixels reaches 16 to each side, two patches; a patch one more.
        assert 36 <= geometry.patches_reaching(pixels).sum() <= 49

    @settings(max_examples=60, deadline=None)
    @given(geometries, st.integers(0, 2**32 - 1))
    def test_larger_scores_lower_no_pixel(self, geometry: MapGeometry, seed: int) -> None:
        """The certificate of the mask stands on it; interpolation may round a unit of the last digit down."""
        rng = np.random.default_rng(seed)
        patches = geometry.grid_hw[0] * geometry.grid_hw[1]
        low = rng.uniform(0, 10, patches).astype(np.float32)
        high = np.where(rng.random(patches) < 0.5, np.nextafter(low, np.float32(11)), low * np.float32(1.5))
        assert (geometry.draw(high) >= geometry.draw(low) - map_rounding(high)).all()


class TestComponents:
    def test_boxes_areas_and_order(self) -> None:
        values = np.zeros((20, 30), np.float32)
        values[2:5, 3:10] = 1.0
        values[10:12, 20:21] = 5.0
        values[15, 4] = 3.0
        found = components(values, values > 0)
        boxes = [(c.x, c.y, c.width, c.height, c.area_px, c.max_score) for c in found]
        assert boxes == [(20, 10, 1, 2, 2, 5.0), (4, 15, 1, 1, 1, 3.0), (3, 2, 7, 3, 21, 1.0)]

    def test_diagonal_neighbours_are_one_component(self) -> None:
        mask = np.eye(5, dtype=bool)
        (found,) = components(mask.astype(np.float32), mask)
        assert (found.width, found.height, found.area_px) == (5, 5, 5)

    def test_maximum_is_of_the_part_not_of_its_box(self) -> None:
        # An L around a hotter single pixel that it does not touch.
        values = np.zeros((7, 7), np.float32)
        values[0, :] = values[:, 0] = 1.0
        values[4, 4] = 9.0
        found = components(values, values > 0)
        assert [(c.max_score, c.area_px) for c in found] == [(9.0, 1), (1.0, 13)]

    def test_equal_maxima_are_ordered_from_the_top_left(self) -> None:
        values = np.zeros((9, 9), np.float32)
        values[6, 1] = values[1, 6] = values[1, 2] = 2.0
        assert [(c.y, c.x) for c in components(values, values > 0)] == [(1, 2), (1, 6), (6, 1)]

    def test_empty_mask(self) -> None:
        assert components(np.ones((4, 4), np.float32), np.zeros((4, 4), bool)) == []

    def test_full_mask(self) -> None:
        (found,) = components(np.ones((4, 6), np.float32), np.ones((4, 6), bool))
        assert (found.x, found.y, found.width, found.height, found.area_px) == (0, 0, 6, 4, 24)
