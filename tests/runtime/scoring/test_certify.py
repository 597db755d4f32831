"""The certificate on distances that are given: what must be exact is, and little else was looked at."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun.scoring import certify
from pcrun.scoring.certify import ExactVerifier, PatchDistances, certify_mask, certify_maximum, certify_peak
from pcrun.scoring.heatmap import MapGeometry
from pcrun.search.exact import ExactSearch, euclidean
from tests.runtime.banks import CountingVerifier, RandomSearch, map_rounding, normal

FIRST, NEXT = certify._FIRST_STEP, certify._NEXT_STEPS


class Oracle:
    """A verifier whose answers are given: patch i is the embedding [i]."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth.astype(np.float32)
        self.asked: list[int] = []

    def nearest(
        self, queries: np.ndarray, distances: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        patches = queries[:, 0].astype(int)
        self.asked += patches.tolist()
        return self.truth[patches], patches + 1000


def found(approximate: np.ndarray, *, exact: bool = False) -> PatchDistances:
    embeddings = np.arange(len(approximate), dtype=np.float32)[:, None]
    ids = np.full(len(approximate), -1, np.int64)
    return PatchDistances.found(embeddings, approximate.astype(np.float32), ids, exact=exact)


def maximum(
    truth: np.ndarray, approximate: np.ndarray, *, ties: bool = False
) -> tuple[PatchDistances, Oracle]:
    oracle, patches = Oracle(truth), found(approximate)
    certify_maximum(patches, oracle, ties=ties)
    return patches, oracle


def check_books(patches: PatchDistances, oracle: Oracle, approximate: np.ndarray) -> None:
    """Nothing is asked twice; what was asked is exact now and says so, the rest is untouched."""
    assert len(oracle.asked) == len(set(oracle.asked))
    was_asked = np.isin(np.arange(len(approximate)), oracle.asked)
    np.testing.assert_array_equal(patches.verified, was_asked)
    np.testing.assert_array_equal(patches.distances, np.where(was_asked, oracle.truth, approximate))
    np.testing.assert_array_equal(patches.ids, np.where(was_asked, np.arange(len(was_asked)) + 1000, -1))
    assert (patches.verify_ms > 0) == bool(oracle.asked)


# Few distinct values, so that ties and all-equal cases come up often.
values = st.integers(0, 6).map(float) | st.floats(0, 1e6, width=32)
overestimates = st.lists(st.tuples(values, st.just(0.0) | values), min_size=1, max_size=150)


class TestMaximum:
    @settings(max_examples=300, deadline=None)
    @given(overestimates, st.booleans())
    def test_any_overestimates_give_the_exact_maximum(
        self, drawn: list[tuple[float, float]], ties: bool
    ) -> None:
        truth = np.array([exact for exact, _ in drawn], np.float32)
        approximate = truth + np.array([excess for _, excess in drawn], np.float32)
        patches, oracle = maximum(truth, approximate, ties=ties)
        assert patches.distances.max() == truth.max()
        # The largest entry is a confirmed one, or ties with one.
        assert truth[oracle.asked].max() == truth.max()
        check_books(patches, oracle, approximate)
        if ties:
            # Also the patch that Eq. 7 looks at is the one that brute force gives.
            assert patches.distances.argmax() == truth.argmax()
            assert patches.verified[patches.distances == truth.max()].all()
        # No method can skip a patch whose approximate distance exceeds the true maximum.
        assert len(oracle.asked) <= (approximate >= truth.max()).sum() + NEXT - 1

    def test_exact_input_costs_one_step(self) -> None:
        truth = np.random.default_rng(0).uniform(1, 9, 784)
        assert len(maximum(truth, truth)[1].asked) == FIRST

    def test_all_equal_costs_one_step_unless_ties_count(self) -> None:
        assert len(maximum(np.full(100, 3.0), np.full(100, 3.0))[1].asked) == FIRST
        assert len(maximum(np.full(100, 3.0), np.full(100, 3.0), ties=True)[1].asked) == 100

    def test_a_hidden_maximum_is_found_behind_many_overestimates(self) -> None:
        truth, approximate = np.full(100, 1.0), np.linspace(10, 9, 100)
        truth[99], approximate[99] = 8.9, 9.0
        patches, oracle = maximum(truth, approximate)
        assert patches.distances.max() == np.float32(8.9) and len(oracle.asked) == 100

    def test_fewer_patches_than_a_step(self) -> None:
        patches, oracle = maximum(np.array([1.0, 2.0]), np.array([5.0, 2.0]))
        assert patches.distances.tolist() == [1, 2] and sorted(oracle.asked) == [0, 1]

    def test_what_is_verified_is_not_asked_again(self) -> None:
        truth = np.random.default_rng(1).uniform(1, 9, 60)
        patches, oracle = maximum(truth, truth + 1)
        before = len(oracle.asked)
        certify_maximum(patches, oracle)
        assert len(oracle.asked) == before

    def test_an_exact_search_leaves_nothing_to_do(self) -> None:
        oracle = Oracle(np.arange(5))
        certify_maximum(found(np.arange(5), exact=True), oracle, ties=True)
        assert oracle.asked == []


sizes = st.tuples(st.integers(1, 9), st.integers(1, 5))
outputs = st.tuples(st.integers(1, 40), st.integers(1, 30))
geometries = st.builds(MapGeometry, sizes, outputs, st.sampled_from([0.0, 0.7, 2.0]))


@st.composite
def maps(draw: st.DrawFn) -> tuple[MapGeometry, np.ndarray, np.ndarray]:
    """A geometry, true patch scores and overestimates of some of them."""
    geometry = draw(geometries)
    patches = geometry.grid_hw[0] * geometry.grid_hw[1]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ties = draw(st.booleans())
    truth = rng.integers(0, 4, patches) if ties else rng.uniform(0, 5, patches)
    excess = rng.exponential(draw(st.sampled_from([0.01, 1.0])), patches)
    excess[rng.random(patches) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    return geometry, truth.astype(np.float32), (truth + excess).astype(np.float32)


def threshold_for(full: np.ndarray, place: float) -> float:
    """Below, at, inside and above the values of a map."""
    if place < 0:
        return float(full.min()) - 1
    return float(full.max()) + 1 if place > 1 else float(np.quantile(full, place, method="nearest"))


class TestMask:
    @settings(max_examples=250, deadline=None)
    @given(maps(), st.sampled_from([-1.0, 0.0, 0.3, 0.7, 0.95, 1.0, 2.0]))
    def test_the_map_is_exact_on_the_mask_and_below_the_threshold_elsewhere(
        self, drawn: tuple[MapGeometry, np.ndarray, np.ndarray], place: float
    ) -> None:
        geometry, truth, approximate = drawn
        full = geometry.draw(truth)
        threshold = threshold_for(full, place)
        patches, oracle = found(approximate), Oracle(truth)
        heat = certify_mask(patches, oracle, geometry, threshold)

        assert heat.dtype == np.float32 and heat.shape == geometry.output_hw
        # Where all weights are of verified patches, the map is drawn from the same numbers.
        mask = heat > threshold
        np.testing.assert_array_equal(heat[mask], full[mask])
        # Elsewhere overestimates were not above the threshold, and lower scores are not either.
        assert (full[~mask] <= threshold + map_rounding(approximate)).all()
        check_books(patches, oracle, approximate)
        np.testing.assert_array_equal(heat, geometry.draw(patches.distances))

    def test_nothing_is_asked_where_nothing_is_above(self) -> None:
        geometry, truth = MapGeometry((4, 4), (32, 32), 2.0), np.full(16, 1.0)
        oracle = Oracle(truth)
        certify_mask(found(truth + 1), oracle, geometry, 2.5)
        assert oracle.asked == []

    def test_only_patches_near_the_pixels_above_are_asked(self) -> None:
        geometry, truth = MapGeometry((28, 28), (224, 224), 4.0), np.full(784, 1.0)
        approximate = truth + 0.5
        approximate[28 * 10 + 15] = 60.0
        oracle = Oracle(truth)
        certify_mask(found(approximate), oracle, geometry, 2.0)
        rows, columns = np.divmod(oracle.asked, 28)
        assert 1 <= len(oracle.asked) <= 81
        assert abs(rows - 10).max() <= 4 and abs(columns - 15).max() <= 4

    def test_patches_that_are_verified_are_not_asked_again(self) -> None:
        geometry, truth = MapGeometry((4, 4), (32, 32), 2.0), np.arange(16.0)
        patches, oracle = found(truth + 1), Oracle(truth)
        certify_maximum(patches, oracle)
        certify_mask(patches, oracle, geometry, 0.0)
        assert sorted(oracle.asked) == list(range(16))


class TestPeak:
    @settings(max_examples=200, deadline=None)
    @given(maps())
    def test_the_largest_value_of_the_exact_map(
        self, drawn: tuple[MapGeometry, np.ndarray, np.ndarray]
    ) -> None:
        geometry, truth, approximate = drawn
        patches, oracle = found(approximate), Oracle(truth)
        peak = float(geometry.draw(truth).max())
        assert abs(certify_peak(patches, oracle, geometry) - peak) <= map_rounding(approximate)
        check_books(patches, oracle, approximate)

    def test_few_patches_are_asked_for_one_clear_peak(self) -> None:
        geometry, truth = MapGeometry((28, 28), (224, 224), 4.0), np.full(784, 1.0)
        truth[200] = 40
        oracle = Oracle(truth)
        certify_peak(found(truth * 1.1), oracle, geometry)
        assert len(oracle.asked) <= 60


@pytest.mark.parametrize("exact", [True, False])
def test_found_knows_what_is_exact(exact: bool) -> None:
    patches: Any = found(np.arange(3.0), exact=exact)
    assert patches.verified.tolist() == [exact] * 3 and patches.verify_ms == 0


class TestRefinement:
    """A more careful search of the largest distances saves verifying them."""

    rows = normal(2000, 16)
    queries = normal(400, 16, seed=1)

    def distances(self) -> PatchDistances:
        """Each patch is taken to be as far as a row that has nothing to do with it."""
        ids = np.random.default_rng(0).integers(0, 2000, 400)
        return PatchDistances.found(self.queries, euclidean(self.queries, self.rows[ids]), ids, exact=False)

    def certified(self, refine: Any) -> tuple[float, int]:
        counting = CountingVerifier(ExactVerifier(ExactSearch(self.rows, threads=1)))
        patches = self.distances()
        certify_maximum(patches, counting, refine=refine)
        return float(patches.distances.max()), counting.asked

    def test_fewer_patches_are_verified_for_the_same_maximum(self) -> None:
        exact = ExactSearch(self.rows, threads=1)
        plain, asked_plain = self.certified(None)
        refined, asked_refined = self.certified(exact.nearest)
        assert plain == refined == exact.nearest(self.queries)[0].max()
        assert asked_refined <= 8 < asked_plain

    def test_what_a_search_gives_that_is_farther_is_not_taken(self) -> None:
        def worse(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.full(len(queries), 1e6, np.float32), np.zeros(len(queries), np.int64)

        assert self.certified(worse)[0] == self.certified(None)[0]

    def test_each_patch_is_refined_at_most_once(self) -> None:
        refined: list[bytes] = []

        def careful(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            refined.extend(query.tobytes() for query in queries)
            return RandomSearch(self.rows, seed=len(refined)).nearest(queries)

        self.certified(careful)
        assert len(refined) == len(set(refined))
