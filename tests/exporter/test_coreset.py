"""k-center greedy: the lazy selection is the plain one, row for row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pcexport import coreset
from pcexport.coreset import coreset_size, random_coreset, select_coreset, squared_to_nearest
from pcexport.store import RowFile, SelectedRows

TINY = {"_POOL_ROWS": 5, "_BLOCK_ROWS": 7, "_CENTRES_PER_PRODUCT": 2}


def plain_greedy(rows: np.ndarray, n: int, start: int) -> tuple[list[int], float]:
    """Algorithm 1 of Roth et al. 2022 by full scans in float64: ids, and the distance of the last pick."""
    points = rows.astype(np.float64)
    nearest = np.full(len(points), np.inf)
    taken = np.zeros(len(points), bool)
    chosen, last = [start], np.inf
    taken[start] = True
    for _ in range(n - 1):
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
        candidates = np.where(taken, -np.inf, nearest)  # argmax takes the lowest row number of a tie
        pick = int(candidates.argmax())
        last = float(np.sqrt(candidates[pick]))
        chosen.append(pick)
        taken[pick] = True
    return chosen, last


def true_radius(rows: np.ndarray, ids: np.ndarray) -> float:
    """Largest distance of a row to its nearest chosen one, by definition."""
    points = rows.astype(np.float64)
    return max(float(np.linalg.norm(points[ids] - point, axis=1).min()) for point in points)


def random_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def grid(side: int) -> np.ndarray:
    """All points of an integer grid, shuffled: distances tie everywhere and float32 holds them exactly."""
    points = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
    return np.random.default_rng(1).permutation(points).astype(np.float32)


def make_rows(kind: str) -> np.ndarray:
    rng = np.random.default_rng(2)
    if kind == "random":
        return random_rows(600, 8)
    if kind == "clusters":
        centres = rng.standard_normal((12, 6)) * 100
        points = centres[rng.integers(12, size=500)] + 8 * rng.standard_normal((500, 6))
        return np.rint(points).astype(np.float32)  # whole numbers: distances have no rounding error
    if kind == "grid":
        return grid(15)
    if kind == "duplicates":
        return np.repeat(np.rint(20 * random_rows(30, 4)), 8, axis=0)[rng.permutation(240)]
    return np.full((120, 3), 7, np.float32)  # all equal


KINDS = ("random", "clusters", "grid", "duplicates", "equal")


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch):
    """Sets module constants small enough that every path of the lazy selection is taken."""

    def set_all(**values: int) -> None:
        for name, value in values.items():
            monkeypatch.setattr(coreset, name, value)

    return set_all


@pytest.mark.parametrize("pool", [1, 3, 5, 17, 50, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_selection_equals_plain_greedy(kind: str, pool: int, constants) -> None:
    constants(**{**TINY, "_POOL_ROWS": pool})
    rows = make_rows(kind)
    got = select_coreset(rows, 60, seed=4)
    expected, last = plain_greedy(rows, 60, int(got.ids[0]))
    assert got.ids.tolist() == expected
    assert got.covering_radius == pytest.approx(last, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_selection_equals_plain_greedy_with_the_shipped_constants(kind: str) -> None:
    rows = make_rows(kind)
    got = select_coreset(rows, 100, seed=0)
    assert got.ids.tolist() == plain_greedy(rows, 100, int(got.ids[0]))[0]


def test_selection_equals_plain_greedy_with_more_rows_than_the_shipped_pool() -> None:
    rows = random_rows(2 * coreset._POOL_ROWS + 100, 6)
    got = select_coreset(rows, 120, seed=0)
    assert got.passes > 1
    assert got.ids.tolist() == plain_greedy(rows, 120, int(got.ids[0]))[0]


def test_every_pick_is_the_farthest_row_up_to_rounding_far_from_the_origin(constants) -> None:
    """Embeddings lie far from the origin, where float32 loses digits: only their spread may count."""
    constants(**{**TINY, "_POOL_ROWS": 50})
    rows = random_rows(400, 8) + np.float32(200)
    ids = select_coreset(rows, 50, seed=0).ids
    rounding = 1e-5 * float(np.square(rows - rows[ids[0]]).sum(axis=1).max())
    for n in range(1, 50):
        squared = np.square(rows[:, None] - rows[ids[:n]]).sum(axis=2).min(axis=1)
        assert squared[ids[n]] >= squared.max() - rounding


def test_a_pool_saves_passes(constants) -> None:
    rows = random_rows(2000, 4)
    constants(_POOL_ROWS=200)
    assert select_coreset(rows, 100, seed=0).passes < 50
    constants(_POOL_ROWS=1)
    assert select_coreset(rows, 100, seed=0).passes == 99


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=hnp.arrays(np.int8, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(-4, 4)),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
    pool=st.integers(1, 45),
    block=st.integers(1, 45),
    centres=st.integers(1, 5),
)
@example(rows=np.zeros((9, 1), np.int8), share=1.0, seed=0, pool=2, block=4, centres=1)
def test_selection_equals_plain_greedy_on_any_small_integers(
    rows: np.ndarray, share: float, seed: int, pool: int, block: int, centres: int, constants
) -> None:
    constants(_POOL_ROWS=pool, _BLOCK_ROWS=block, _CENTRES_PER_PRODUCT=centres)
    rows = rows.astype(np.float32)
    n = max(1, round(share * len(rows)))
    got = select_coreset(rows, n, seed=seed)
    expected, last = plain_greedy(rows, n, int(got.ids[0]))
    assert got.ids.tolist() == expected
    if n > 1:
        assert got.covering_radius == pytest.approx(last, rel=1e-6)


@pytest.fixture
def row_file(tmp_path: Path) -> Iterator[RowFile]:
    file = RowFile(tmp_path / "rows.f32", 6)
    yield file
    file.close()


@pytest.mark.parametrize("pool", [5, 4096])
def test_selection_is_the_same_from_a_file(row_file: RowFile, pool: int, constants) -> None:
    rows = make_rows("clusters")
    row_file.append(rows)
    constants(**{**TINY, "_POOL_ROWS": pool})
    np.testing.assert_array_equal(
        select_coreset(row_file, 50, seed=3).ids, select_coreset(rows, 50, seed=3).ids
    )


@pytest.mark.parametrize("pool", [5, 4096])
def test_selection_is_the_same_from_selected_rows(row_file: RowFile, pool: int, constants) -> None:
    rows = make_rows("clusters")
    row_file.append(rows)
    ids = np.flatnonzero(np.random.default_rng(0).random(len(rows)) < 0.6).astype(np.int64)
    constants(**{**TINY, "_POOL_ROWS": pool})
    got = select_coreset(SelectedRows(row_file, ids), 50, seed=3).ids
    np.testing.assert_array_equal(got, select_coreset(rows[ids], 50, seed=3).ids)


@pytest.mark.parametrize("pool", [3, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_unique_and_in_bounds_even_when_all_are_wanted(kind: str, pool: int, constants) -> None:
    constants(_POOL_ROWS=pool)
    rows = make_rows(kind)[:130]
    ids = select_coreset(rows, len(rows), seed=1).ids
    assert sorted(ids) == list(range(len(rows)))


def test_more_picks_than_different_rows_still_gives_unique_rows(constants) -> None:
    constants(_POOL_ROWS=3)
    rows = np.repeat(random_rows(10, 3), 5, axis=0)
    got = select_coreset(rows, 25, seed=0)
    assert len(set(got.ids.tolist())) == 25
    assert len(np.unique(rows[got.ids[:10]], axis=0)) == 10  # every different row before any repetition
    assert got.covering_radius == pytest.approx(0, abs=1e-3)


def test_one_row_is_the_start_row() -> None:
    rows = make_rows("random")
    assert select_coreset(rows, 1, seed=5).ids.tolist() == [select_coreset(rows, 9, seed=5).ids[0]]


def test_a_single_candidate_is_chosen() -> None:
    assert select_coreset(np.ones((1, 4), np.float32), 1, seed=0).ids.tolist() == [0]


def test_a_smaller_coreset_is_a_prefix_of_a_larger_one(constants) -> None:
    rows = make_rows("clusters")
    constants(**TINY)
    np.testing.assert_array_equal(
        select_coreset(rows, 10, seed=0).ids, select_coreset(rows, 20, seed=0).ids[:10]
    )


def test_the_seed_sets_the_start_row_reproducibly() -> None:
    rows = make_rows("random")
    starts = [int(select_coreset(rows, 2, seed=seed).ids[0]) for seed in range(20)]
    assert len(set(starts)) > 10
    assert starts == [int(select_coreset(rows, 2, seed=seed).ids[0]) for seed in range(20)]


@pytest.mark.parametrize("n", [2, 10, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_farther_than_the_covering_radius(kind: str, n: int) -> None:
    rows = make_rows(kind)
    got = select_coreset(rows, n, seed=0)
    assert got.covering_radius is not None
    assert true_radius(rows, got.ids) <= got.covering_radius * (1 + 1e-4) + 1e-3


def test_the_covering_radius_is_the_distance_of_the_last_pick() -> None:
    rows = make_rows("random")
    got = select_coreset(rows, 40, seed=0)
    last, others = rows[got.ids[-1]], rows[got.ids[:-1]]
    assert got.covering_radius == pytest.approx(np.linalg.norm(others - last, axis=1).min(), rel=1e-5)


def test_greedy_covers_much_better_than_a_random_choice() -> None:
    rows = make_rows("clusters")
    greedy = true_radius(rows, select_coreset(rows, 12, seed=0).ids)
    assert greedy < true_radius(rows, random_coreset(len(rows), 12, seed=0).ids) / 2


@pytest.mark.parametrize("n", [0, -1, 601])
def test_an_impossible_number_of_rows_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n must be 1\.\.600 .*got {n}"):
        select_coreset(make_rows("random"), n, seed=0)


def test_progress_rises_to_the_number_chosen(constants) -> None:
    constants(**TINY)
    seen: list[int] = []
    select_coreset(make_rows("random"), 30, seed=0, progress=seen.append)
    assert seen == sorted(seen) and seen[0] == 1 and seen[-1] == 30


@pytest.mark.parametrize("centres_at_once", [1, 3, 512])
def test_squared_distances_to_the_nearest_centre(centres_at_once: int, constants) -> None:
    constants(_CENTRES_PER_PRODUCT=centres_at_once)
    points, centres = random_rows(50, 5), random_rows(7, 5, seed=1)
    expected = np.square(points[:, None] - centres[None]).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(squared_to_nearest(points, centres), expected, rtol=1e-4, atol=1e-5)


def test_random_coreset_is_unique_ascending_seeded_and_has_no_radius() -> None:
    first = random_coreset(1000, 200, seed=0)
    assert first.ids.tolist() == sorted(set(first.ids.tolist())) and len(first.ids) == 200
    assert first.ids.min() >= 0 and first.ids.max() < 1000
    assert (first.covering_radius, first.passes, first.ids.dtype) == (None, 0, np.int64)
    np.testing.assert_array_equal(first.ids, random_coreset(1000, 200, seed=0).ids)
    assert not np.array_equal(first.ids, random_coreset(1000, 200, seed=1).ids)
    assert random_coreset(5, 5, seed=0).ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "candidates, ratio, size, expected",
    [
        (1000, 0.01, None, 10),
        (999, 0.01, None, 9),
        (10, 0.01, None, 1),
        (1, 1.0, None, 1),
        (1000, 1.0, None, 1000),
        (1000, 0.01, 50, 50),
        (1000, 0.5, 1, 1),
        (30, 0.5, 50, 30),
    ],
)
def test_coreset_size(candidates: int, ratio: float, size: int | None, expected: int) -> None:
    assert coreset_size(candidates, ratio=ratio, size=size) == expected
