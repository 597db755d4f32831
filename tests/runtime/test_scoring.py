"""Scores, the certificate of the image score, the anomaly map and its regions against plain formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pcrun import scoring
from pcrun.scoring import PatchCoreScorer, anomaly_map, certify_maximum, components, reweighted_score
from pcrun.search import ExactSearch

BLOCK = scoring._VERIFY_BLOCK


def normal(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


class Oracle:
    """An "exact search" whose answers are given: patch i is the embedding [i]."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth.astype(np.float32)
        self.asked: list[int] = []

    def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        patches = queries[:, 0].astype(int)
        self.asked += patches.tolist()
        return self.truth[patches], patches + 1000

    def certify(self, approximate: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        distances = approximate.astype(np.float32)
        ids = np.full(len(distances), -1, np.int64)
        embeddings = np.arange(len(distances), dtype=np.float32)[:, None]
        return distances, ids, certify_maximum(embeddings, distances, ids, self)  # type: ignore[arg-type]


class LooseSearch:
    """An approximate search that overestimates by given factors."""

    name, exact = "loose", False

    def __init__(self, rows: np.ndarray, factors: np.ndarray) -> None:
        self._search, self._rows, self._factors = ExactSearch(rows, threads=1), rows, factors

    def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances, _ = self._search.nearest(queries)
        return distances * self._factors.astype(np.float32), np.zeros(len(queries), np.int64)


class TestCertifyMaximum:
    # Few distinct values, so that ties and all-equal cases come up often.
    values = st.integers(0, 6).map(float) | st.floats(0, 1e6, width=32)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.tuples(values, st.just(0.0) | values), min_size=1, max_size=60))
    def test_any_overestimates_give_the_exact_maximum(self, cases: list[tuple[float, float]]) -> None:
        truth = np.array([exact for exact, _ in cases], np.float32)
        approximate = truth + np.array([excess for _, excess in cases], np.float32)
        oracle = Oracle(truth)
        distances, ids, verified = oracle.certify(approximate)

        assert distances.max() == truth.max()
        # The largest entry is a confirmed one, or ties with one.
        assert truth[oracle.asked].max() == truth.max()
        # Nothing is asked twice; what was asked is exact now, the rest untouched.
        assert len(oracle.asked) == len(set(oracle.asked)) == verified
        was_asked = np.isin(np.arange(len(truth)), oracle.asked)
        np.testing.assert_array_equal(distances, np.where(was_asked, truth, approximate))
        np.testing.assert_array_equal(ids, np.where(was_asked, np.arange(len(truth)) + 1000, -1))
        # No method can skip a patch whose approximate distance exceeds the true maximum.
        assert verified <= (approximate >= truth.max()).sum() + BLOCK - 1

    def test_exact_input_costs_one_block(self) -> None:
        truth = np.random.default_rng(0).uniform(1, 9, 784)
        assert Oracle(truth).certify(truth)[2] == BLOCK

    def test_all_equal_costs_one_block(self) -> None:
        assert Oracle(np.full(100, 3.0)).certify(np.full(100, 3.0))[2] == BLOCK

    def test_a_hidden_maximum_is_found_behind_many_overestimates(self) -> None:
        truth = np.full(100, 1.0)
        approximate = np.linspace(10, 9, 100)
        truth[99], approximate[99] = 8.9, 9.0
        distances, _, verified = Oracle(truth).certify(approximate)
        assert distances.max() == np.float32(8.9) and verified == 100

    def test_fewer_patches_than_a_block(self) -> None:
        distances, _, verified = Oracle(np.array([1.0, 2.0])).certify(np.array([5.0, 2.0]))
        assert distances.tolist() == [1, 2] and verified == 2


class TestPatchCoreScorer:
    rows = normal(200, 8)
    patches = normal(50, 8, seed=1) * 2
    factors = np.random.default_rng(2).uniform(1, 3, 50)

    def truth(self) -> np.ndarray:
        return np.array(
            [np.linalg.norm(self.rows.astype(np.float64) - p, axis=1).min() for p in self.patches]
        )

    def test_exact_search_needs_no_verification(self) -> None:
        scores = PatchCoreScorer(self.rows, ExactSearch(self.rows, threads=1)).score(self.patches)
        np.testing.assert_allclose(scores.patch_scores, self.truth(), rtol=1e-5)
        assert scores.image_score == pytest.approx(self.truth().max(), rel=1e-5)
        assert scores.verified_patches == 50

    def test_exactness_none_trusts_the_search(self) -> None:
        loose = LooseSearch(self.rows, self.factors)
        scores = PatchCoreScorer(self.rows, loose, exactness="none").score(self.patches)
        assert scores.image_score == pytest.approx((self.truth() * self.factors).max(), rel=1e-5)
        assert scores.verified_patches == 0

    def test_exactness_image_certifies_the_image_score(self) -> None:
        loose = LooseSearch(self.rows, self.factors)
        scores = PatchCoreScorer(self.rows, loose, exactness="image").score(self.patches)
        assert scores.image_score == pytest.approx(self.truth().max(), rel=1e-6)
        assert 0 < scores.verified_patches <= 50
        assert scores.search_ms > 0 and scores.verify_ms > 0

    def test_reweighting_uses_the_certified_patch_and_entry(self) -> None:
        distances = np.linalg.norm(self.rows[:, None] - self.rows[None], axis=2)
        neighbours = np.argsort(distances, axis=1)[:, :4].astype(np.int32)
        exact = PatchCoreScorer(self.rows, ExactSearch(self.rows, threads=1), neighbours=neighbours)
        loose = PatchCoreScorer(self.rows, LooseSearch(self.rows, self.factors), neighbours=neighbours)
        expected, got = exact.score(self.patches), loose.score(self.patches)
        assert got.image_score == pytest.approx(expected.image_score, rel=1e-6)
        worst = int(self.truth().argmax())
        nearest = np.linalg.norm(self.rows - self.patches[worst], axis=1).argmin()
        by_hand = reweighted_score(self.patches[worst], self.truth()[worst], self.rows[neighbours[nearest]])
        assert got.image_score == pytest.approx(by_hand, rel=1e-5)

    def test_effective_exactness_of_an_exact_search_is_full(self) -> None:
        assert (
            PatchCoreScorer(self.rows, ExactSearch(self.rows, threads=1), exactness="none").exactness
            == "full"
        )

    def test_full_is_refused_for_an_approximate_search(self) -> None:
        with pytest.raises(ValueError, match="'full' needs an exact search"):
            PatchCoreScorer(self.rows, LooseSearch(self.rows, self.factors), exactness="full")

    def test_unknown_exactness(self) -> None:
        with pytest.raises(ValueError, match=r"exactness must be one of .*, got 'most'"):
            PatchCoreScorer(self.rows, ExactSearch(self.rows, threads=1), exactness="most")


class TestReweightedScore:
    @staticmethod
    def equation_7(patch: np.ndarray, distance: float, support: np.ndarray) -> float:
        to_support = [math.dist(patch.tolist(), row.tolist()) for row in support]
        return (1 - math.exp(distance) / sum(math.exp(d) for d in to_support)) * distance

    @pytest.mark.parametrize("b", [1, 2, 3, 9])
    @pytest.mark.parametrize("seed", range(5))
    def test_equals_the_formula(self, b: int, seed: int) -> None:
        support = normal(b, 16, seed)
        patch = normal(1, 16, seed + 100)[0]
        distance = min(math.dist(patch.tolist(), row.tolist()) for row in support)
        assert reweighted_score(patch, distance, support) == pytest.approx(
            self.equation_7(patch, distance, support), rel=1e-5, abs=1e-5
        )

    def test_large_distances_do_not_overflow(self) -> None:
        support = np.array([[0.0, 0], [1, 0], [0, 2]], np.float32)
        patch = np.array([-5000.0, 0], np.float32)
        # exp(5000) is far outside float64; the differences 0, 1 and 0.0004 are what counts.
        to_support = [5000.0, 5001.0, math.hypot(5000, 2)]
        weight = 1 - 1 / sum(math.exp(d - 5000) for d in to_support)
        got = reweighted_score(patch, 5000.0, support)
        assert got == pytest.approx(weight * 5000, rel=1e-4)

    def test_support_far_behind_the_nearest_entry_leaves_the_distance(self) -> None:
        support = np.array([[0.0], [-2000]], np.float32)
        assert reweighted_score(np.array([3.0], np.float32), 3.0, support) == pytest.approx(3.0)

    def test_one_entry_of_support_scores_zero(self) -> None:
        score = reweighted_score(np.array([3.0], np.float32), 3.0, np.zeros((1, 1), np.float32))
        assert score == pytest.approx(0.0, abs=1e-5) and score >= 0

    def test_distance_zero_scores_zero(self) -> None:
        assert reweighted_score(np.zeros(2, np.float32), 0.0, np.zeros((3, 2), np.float32)) == 0


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
