"""The scorer around a search: what each exactness promises, Eq. 7, one image and several."""

import math
from typing import Any

import numpy as np
import pytest

from pcrun.scoring.certify import ExactVerifier
from pcrun.scoring.heatmap import MapGeometry
from pcrun.scoring.scorer import DEFAULT_EXACTNESS, PatchCoreScorer, reweighted_score
from pcrun.search.exact import ExactSearch, euclidean
from tests.runtime.banks import CountingVerifier, RandomSearch, all_distances, neighbour_lists, normal

GEOMETRY = MapGeometry((5, 10), (40, 80), 2.0)
HIGH = 1e6
ROWS = normal(200, 8)
PATCHES = normal(50, 8, seed=1) * 2
TRUTH = all_distances(PATCHES, ROWS)


class LooseSearch:
    """An approximate search that finds the nearest row of most patches and another of some."""

    name, exact = "loose", False

    def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(all_distances(queries, ROWS), axis=1)
        ranks = np.where(np.random.default_rng(2).random(len(queries)) < 0.3, 40, 0)
        ids = order[np.arange(len(queries)), ranks]
        return euclidean(queries, ROWS[ids]), ids


def scorer(search: Any = None, **options: Any) -> PatchCoreScorer:
    exact = ExactSearch(ROWS, threads=1)
    if search is None:
        return PatchCoreScorer(ROWS, exact, GEOMETRY, **options)
    return PatchCoreScorer(ROWS, search, GEOMETRY, **{"verifier": ExactVerifier(exact), **options})


class TestExactness:
    def test_the_default_is_the_mask(self) -> None:
        assert DEFAULT_EXACTNESS == "mask" and scorer(LooseSearch()).exactness == "mask"

    def test_exact_search_needs_no_verification(self) -> None:
        scores = scorer().score(PATCHES, pixel_threshold=0.0)
        np.testing.assert_allclose(scores.patch_scores.ravel(), TRUTH.min(axis=1), rtol=1e-5)
        assert scores.patch_scores.shape == GEOMETRY.grid_hw
        assert scores.image_score == pytest.approx(TRUTH.min(axis=1).max(), rel=1e-5)
        assert scores.verified_patches == 50 and scores.verify_ms == 0
        np.testing.assert_array_equal(scores.anomaly_map, GEOMETRY.draw(scores.patch_scores.ravel()))

    def test_none_trusts_the_search(self) -> None:
        scores = scorer(LooseSearch(), exactness="none").score(PATCHES, pixel_threshold=0.0)
        np.testing.assert_array_equal(scores.patch_scores.ravel(), LooseSearch().nearest(PATCHES)[0])
        assert scores.image_score == scores.patch_scores.max() > TRUTH.min(axis=1).max() * 1.02
        assert scores.verified_patches == 0

    def test_image_certifies_the_image_score_alone(self) -> None:
        certified = scorer(LooseSearch(), exactness="image").score(PATCHES, pixel_threshold=0.0)
        assert certified.image_score == pytest.approx(TRUTH.min(axis=1).max(), rel=1e-6)
        assert 0 < certified.verified_patches < 50
        # The map still has the search's mistakes.
        assert (certified.patch_scores.ravel() > TRUTH.min(axis=1) * 1.1).any()

    def test_mask_certifies_what_is_above_the_pixel_threshold(self) -> None:
        full = GEOMETRY.draw(TRUTH.min(axis=1).astype(np.float32))
        for threshold in np.quantile(full, [0.5, 0.9, 0.99]).tolist():
            loose = scorer(LooseSearch()).score(PATCHES, pixel_threshold=threshold)
            mask = full > threshold
            np.testing.assert_array_equal(loose.anomaly_map > threshold, mask)
            np.testing.assert_allclose(loose.anomaly_map[mask], full[mask], rtol=1e-5)
            trusting = scorer(LooseSearch(), exactness="image").score(PATCHES, pixel_threshold=threshold)
            # Otherwise this test would say nothing.
            assert ((trusting.anomaly_map > threshold) != mask).any()
            assert loose.verified_patches > trusting.verified_patches

    def test_a_map_below_the_threshold_costs_no_more_than_the_image_score(self) -> None:
        image, mask = (
            scorer(LooseSearch(), exactness=level).score(PATCHES, pixel_threshold=HIGH)
            for level in ("image", "mask")
        )
        assert image.verified_patches == mask.verified_patches

    @pytest.mark.parametrize("exactness", ["image", "mask"])
    def test_every_verified_patch_is_counted_once(self, exactness: str) -> None:
        verifier = CountingVerifier(ExactVerifier(ExactSearch(ROWS, threads=1)))
        search = RandomSearch(ROWS)
        scores = scorer(search, exactness=exactness, verifier=verifier).score(PATCHES, pixel_threshold=0.0)
        assert verifier.asked == scores.verified_patches <= 50

    def test_of_an_exact_search_it_is_full_whatever_was_asked(self) -> None:
        for exactness in ("none", "image", "mask", "full"):
            verifier = CountingVerifier(ExactVerifier(ExactSearch(ROWS, threads=1)))
            made = scorer(exactness=exactness, verifier=verifier)
            assert made.exactness == "full"
            made.score(PATCHES, pixel_threshold=0.0)
            assert verifier.asked == 0

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"exactness": "full"}, "'full' needs an exact search"),
            ({"exactness": "image", "verifier": None}, "'image' needs a verifier or an exact search"),
            ({"exactness": "mask", "verifier": None}, "'mask' needs a verifier or an exact search"),
            ({"exactness": "most"}, r"exactness must be one of .*, got 'most'"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            scorer(LooseSearch(), **options)


class TestPeaks:
    @pytest.mark.parametrize("exactness", ["image", "mask"])
    def test_they_are_those_of_the_exact_map_whatever_the_threshold(self, exactness: str) -> None:
        image_score, map_max = scorer(LooseSearch(), exactness=exactness).peaks(PATCHES)
        assert image_score == pytest.approx(TRUTH.min(axis=1).max(), rel=1e-6)
        full = GEOMETRY.draw(TRUTH.min(axis=1).astype(np.float32))
        assert map_max == pytest.approx(float(full.max()), rel=1e-6)
        assert scorer().peaks(PATCHES) == pytest.approx((image_score, map_max), rel=1e-6)

    def test_without_a_certificate_there_are_none(self) -> None:
        with pytest.raises(ValueError, match=r"exactness 'none' .*cannot give exact peaks"):
            scorer(LooseSearch(), exactness="none").peaks(PATCHES)


class TestBatch:
    @pytest.mark.parametrize("exactness", ["none", "image", "mask"])
    def test_each_image_scores_as_it_does_alone(self, exactness: str) -> None:
        class Deterministic(LooseSearch):
            def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                parts = [super(Deterministic, self).nearest(q) for q in queries.reshape(-1, 50, 8)]
                return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))  # type: ignore[return-value]

        images = np.stack([normal(50, 8, seed) * 2 for seed in range(5)])
        threshold = float(np.quantile(GEOMETRY.draw(TRUTH.min(axis=1).astype(np.float32)), 0.9))
        made = scorer(Deterministic(), exactness=exactness)
        together = made.score_batch(images, pixel_threshold=threshold)
        for image, scores in zip(images, together, strict=True):
            alone = made.score(image, pixel_threshold=threshold)
            assert scores.image_score == alone.image_score
            np.testing.assert_array_equal(scores.anomaly_map, alone.anomaly_map)
            np.testing.assert_array_equal(scores.patch_scores, alone.patch_scores)
            assert scores.verified_patches == alone.verified_patches

    def test_a_result_does_not_keep_the_batch_in_memory(self) -> None:
        images = np.stack([normal(50, 8, seed) for seed in range(5)])
        for scores in scorer(LooseSearch()).score_batch(images, pixel_threshold=0.0):
            base = scores.patch_scores if scores.patch_scores.base is None else scores.patch_scores.base
            assert base.size == 50


class TestReweighted:
    neighbours = neighbour_lists(ROWS, 4)

    def test_it_uses_the_certified_patch_and_entry(self) -> None:
        expected = scorer(neighbours=self.neighbours).score(PATCHES, pixel_threshold=HIGH)
        worst = int(TRUTH.min(axis=1).argmax())
        nearest = int(TRUTH[worst].argmin())
        by_hand = reweighted_score(PATCHES[worst], TRUTH[worst, nearest], ROWS[self.neighbours[nearest]])
        assert expected.image_score == pytest.approx(by_hand, rel=1e-5)
        for exactness in ("image", "mask"):
            loose = scorer(LooseSearch(), neighbours=self.neighbours, exactness=exactness)
            got = loose.score(PATCHES, pixel_threshold=HIGH)
            assert got.image_score == pytest.approx(by_hand, rel=1e-5)
            assert loose.peaks(PATCHES)[0] == got.image_score
        trusting = scorer(LooseSearch(), neighbours=self.neighbours, exactness="none")
        assert trusting.score(PATCHES, pixel_threshold=HIGH).image_score != pytest.approx(by_hand, rel=1e-3)

    def test_a_patch_that_only_seems_to_tie_with_the_largest_is_not_taken(self) -> None:
        rows = np.array([[0], [1], [10], [20], [21], [100]], np.float32)
        # The first seems to be 5 from row 10 and is 4 from row 1; then one that is 5 from row 10, and seven
        # that are nearer. All of these seem farther, so they are verified first.
        patches = np.array([[5], [15], *[[20]] * 7], np.float32)
        said = np.array([2, 5, *[5] * 7])

        class Search:
            name, exact = "said", False

            def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                return euclidean(queries, rows[said]), said.copy()

        neighbours = neighbour_lists(rows, 2)
        geometry = MapGeometry((3, 3), (9, 9), 0.0)
        exact = ExactSearch(rows, threads=1)
        certified, full = (
            PatchCoreScorer(rows, search, geometry, verifier=ExactVerifier(exact), neighbours=neighbours)
            for search in (Search(), exact)
        )
        expected = full.score(patches, pixel_threshold=HIGH).image_score
        assert certified.score(patches, pixel_threshold=HIGH).image_score == pytest.approx(expected)
        assert certified.peaks(patches)[0] == pytest.approx(expected)

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
