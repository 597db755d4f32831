"""k-center greedy: the lazy selection is the plain one, row for row."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_info

from pcexport.memory_bank import coreset, distances
from pcexport.memory_bank.coreset import coreset_memory_bytes, coreset_size, random_coreset, select_coreset
from pcexport.memory_bank.distances import NUMPY_PRODUCTS, Centres, Products, best_products, torch_products
from pcexport.memory_bank.store import ArrayRows, RowFile, SelectedRows

Shrink = Callable[..., None]


def blocks_of(points: int, centres: int) -> Products:
    return Products(NUMPY_PRODUCTS.closest, points, centres)


TINY_BLOCKS = blocks_of(7, 2)


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
def shrink(monkeypatch: pytest.MonkeyPatch) -> Shrink:
    """Sets sizes so small that every path of the lazy selection is taken."""

    def set_all(*, pool: int, exact_rows: int = 3, tile: int = 2, pairs: int = 3) -> None:
        monkeypatch.setattr(coreset, "_POOL_ROWS", pool)
        monkeypatch.setattr(coreset, "_EXACT_ROWS", exact_rows)
        monkeypatch.setattr(distances, "_TILE_CENTRES", tile)
        monkeypatch.setattr(distances, "_TILE_PAIRS", pairs)

    return set_all


@pytest.mark.parametrize("pool", [1, 3, 5, 17, 50, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_selection_equals_plain_greedy(kind: str, pool: int, shrink: Shrink) -> None:
    shrink(pool=pool)
    rows = make_rows(kind)
    got = select_coreset(rows, 60, seed=4, products=TINY_BLOCKS)
    expected, last = plain_greedy(rows, 60, int(got.ids[0]))
    assert got.ids.tolist() == expected
    assert got.covering_radius == pytest.approx(last, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_selection_equals_plain_greedy_with_the_shipped_constants(kind: str) -> None:
    rows = make_rows(kind)
    got = select_coreset(rows, 100, seed=0)
    assert got.ids.tolist() == plain_greedy(rows, 100, int(got.ids[0]))[0]


def test_selection_equals_plain_greedy_with_more_rows_than_the_shipped_pool() -> None:
    rows = random_rows(8 * coreset._POOL_ROWS + 100, 6)
    got = select_coreset(rows, 200, seed=0)
    assert got.passes > 1
    assert got.ids.tolist() == plain_greedy(rows, 200, int(got.ids[0]))[0]


@pytest.mark.parametrize("far", [200, 1e4])
def test_selection_equals_plain_greedy_far_from_the_origin(far: float, shrink: Shrink) -> None:
    """Embeddings lie far from the origin, where float32 loses digits: only their spread may count."""
    shrink(pool=50)
    rows = random_rows(400, 8) + np.float32(far)
    ids = select_coreset(rows, 50, seed=0).ids
    assert ids.tolist() == plain_greedy(rows, 50, int(ids[0]))[0]


@pytest.mark.parametrize("far", [10, 1e3, 1e5])
def test_selection_equals_plain_greedy_where_products_cannot_tell_rows_apart(
    far: float, shrink: Shrink
) -> None:
    """Two groups so far apart that within each, distances are below the rounding of products."""
    shrink(pool=20)
    rows = random_rows(300, 4)
    rows[::2, 0] += np.float32(far)
    rows[7] *= np.float32(far)
    ids = select_coreset(rows, 80, seed=0, products=TINY_BLOCKS).ids
    assert ids.tolist() == plain_greedy(rows, 80, int(ids[0]))[0]


@pytest.mark.parametrize("pool", [4, 4096])
def test_rows_that_are_all_equally_far_apart_are_taken_by_number(pool: int, shrink: Shrink) -> None:
    shrink(pool=pool)
    ids = select_coreset(np.eye(40, dtype=np.float32), 30, seed=0, products=TINY_BLOCKS).ids
    start = int(ids[0])
    assert ids.tolist() == [start, *(row for row in range(40) if row != start)][:30]


def test_a_pool_saves_passes_and_distances(shrink: Shrink) -> None:
    rows = random_rows(4000, 4)
    products = blocks_of(64, 8)
    shrink(pool=200, exact_rows=64, tile=64, pairs=64)
    got = select_coreset(rows, 200, seed=0, products=products)
    assert got.passes < 50
    assert got.distances < 0.6 * len(rows) * 199
    assert got.rows_updated < len(rows) * got.passes
    shrink(pool=1)
    assert select_coreset(rows, 20, seed=0, products=products).passes == 19


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=hnp.arrays(np.int8, st.tuples(st.integers(1, 40), st.integers(1, 3)), elements=st.integers(-4, 4)),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
    pool=st.integers(1, 45),
    block=st.integers(1, 45),
    centres=st.integers(1, 5),
    threads=st.integers(1, 3),
)
@example(rows=np.zeros((9, 1), np.int8), share=1.0, seed=0, pool=2, block=4, centres=1, threads=1)
def test_selection_equals_plain_greedy_on_any_small_integers(
    rows: np.ndarray,
    share: float,
    seed: int,
    pool: int,
    block: int,
    centres: int,
    threads: int,
    shrink: Shrink,
) -> None:
    shrink(pool=pool, exact_rows=block, tile=centres)
    rows = rows.astype(np.float32)
    n = max(1, round(share * len(rows)))
    got = select_coreset(rows, n, seed=seed, threads=threads, products=blocks_of(block, centres))
    expected, last = plain_greedy(rows, n, int(got.ids[0]))
    assert got.ids.tolist() == expected
    if n > 1:
        assert got.covering_radius == pytest.approx(last, rel=1e-12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 120),
    dim=st.integers(1, 40),
    repeated=st.integers(1, 4),
    scale=st.sampled_from([1e-25, 1e-6, 1.0, 1e6]),
    offset=st.sampled_from([0.0, 1.0, 300.0]),
    pool=st.integers(1, 130),
)
def test_selection_equals_plain_greedy_on_any_real_rows(
    seed: int, count: int, dim: int, repeated: int, scale: float, offset: float, pool: int, shrink: Shrink
) -> None:
    shrink(pool=pool)
    different = (random_rows(-(-count // repeated), dim, seed) + np.float32(offset)) * np.float32(scale)
    rows = np.random.default_rng(seed).permutation(np.repeat(different, repeated, axis=0)[:count])
    n = 1 + seed % len(rows)
    got = select_coreset(rows, n, seed=seed, products=TINY_BLOCKS)
    assert got.ids.tolist() == plain_greedy(rows, n, int(got.ids[0]))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_rounding_within_the_proven_bound_changes_the_selection(kind: str, shrink: Shrink) -> None:
    rng = np.random.default_rng(0)

    def closest(centres: np.ndarray, points: np.ndarray) -> np.ndarray:
        exact = centres.astype(np.float64) @ points.T.astype(np.float64)
        norms = [np.linalg.norm(part[:, :-1], axis=1) for part in (centres, points)]
        error = (points.shape[1] - 1) * 2.0**-24 * np.outer(*norms)
        return (exact + rng.choice([-1, 1], exact.shape) * error).max(axis=0).astype(np.float32)

    shrink(pool=9)
    rows = make_rows(kind)
    got = select_coreset(rows, 60, seed=1, products=Products(closest, 50, 3)).ids
    np.testing.assert_array_equal(got, select_coreset(rows, 60, seed=1).ids)


@pytest.mark.parametrize("kind", KINDS)
def test_selection_by_torch_is_the_same(kind: str, shrink: Shrink) -> None:
    shrink(pool=50)
    rows = make_rows(kind)
    by_torch = select_coreset(rows, 60, seed=2, products=torch_products("cpu"))
    np.testing.assert_array_equal(by_torch.ids, select_coreset(rows, 60, seed=2).ids)


@pytest.mark.gpu
def test_selection_on_a_gpu_is_the_same() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows = random_rows(20_000, 64)
    on_gpu = select_coreset(rows, 300, seed=0, products=torch_products("cuda"))
    on_cpu = select_coreset(rows, 300, seed=0, products=NUMPY_PRODUCTS)
    np.testing.assert_array_equal(on_gpu.ids, on_cpu.ids)


@pytest.mark.parametrize(
    "cuda, precision, gpu", [(True, "highest", True), (True, "high", False), (False, "highest", False)]
)
def test_the_gpu_is_used_where_torch_has_one_in_full_precision(
    cuda: bool, precision: str, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: cuda), get_float32_matmul_precision=lambda: precision
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert (best_products() is not NUMPY_PRODUCTS) == gpu


def test_choosing_does_not_load_torch() -> None:
    code = (
        "import sys, numpy; from pcexport.memory_bank.coreset import select_coreset; "
        "select_coreset(numpy.eye(9, dtype='float32'), 4, seed=0); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_the_selection_and_leave_blas_as_it_was(threads: int, shrink: Shrink) -> None:
    shrink(pool=50)
    rows = random_rows(3000, 16)
    before = threadpool_info()
    got = select_coreset(rows, 100, seed=0, threads=threads, products=blocks_of(100, 9))
    assert threadpool_info() == before
    assert got.ids.tolist() == plain_greedy(rows, 100, int(got.ids[0]))[0]


def test_bounds_hold_whatever_products_round() -> None:
    rows = random_rows(500, 96) * np.float32(30) + np.float32(5)
    centres = Centres(ArrayRows(rows), 20)
    centres.append(np.arange(20, dtype=np.int64))
    ids = np.arange(20, 500, dtype=np.int64)
    points = centres.points(ids)
    closeness = NUMPY_PRODUCTS.closest(centres.values(0, 20), points.values)
    wide = rows.astype(np.float64)
    true = np.square(wide[ids][:, None] - wide[:20]).sum(axis=2).min(axis=1)
    bounds = points.upper_bounds(closeness)
    assert (bounds >= true).all() and (bounds <= true * (1 + 1e-3)).all()
    assert (points.surely_within(np.float32(1.001) * bounds) <= closeness).all()
    assert (points.possibly_within(true.astype(np.float32)) <= closeness).all()
    np.testing.assert_allclose(centres.exact_nearest(ids, bounds), true, rtol=1e-14)


@pytest.fixture
def row_file(tmp_path: Path) -> Iterator[RowFile]:
    file = RowFile(tmp_path / "rows.f32", 6)
    yield file
    file.close()


@pytest.mark.parametrize("held_bytes", [0, 2**20])
@pytest.mark.parametrize("pool", [5, 4096])
def test_selection_is_the_same_from_a_file(
    row_file: RowFile, pool: int, held_bytes: int, shrink: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows("clusters")
    row_file.append(rows)
    monkeypatch.setattr(coreset, "_HELD_BYTES", held_bytes)
    shrink(pool=pool)
    got = select_coreset(row_file, 50, seed=3, products=TINY_BLOCKS).ids
    np.testing.assert_array_equal(got, select_coreset(rows, 50, seed=3).ids)


@pytest.mark.parametrize("held_bytes", [0, 2**20])
@pytest.mark.parametrize("pool", [5, 4096])
def test_selection_is_the_same_from_selected_rows(
    row_file: RowFile, pool: int, held_bytes: int, shrink: Shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows("clusters")
    row_file.append(rows)
    ids = np.flatnonzero(np.random.default_rng(0).random(len(rows)) < 0.6).astype(np.int64)
    monkeypatch.setattr(coreset, "_HELD_BYTES", held_bytes)
    shrink(pool=pool)
    got = select_coreset(SelectedRows(row_file, ids), 50, seed=3, products=TINY_BLOCKS).ids
    np.testing.assert_array_equal(got, select_coreset(rows[ids], 50, seed=3).ids)


@pytest.mark.parametrize("held_bytes", [0, 2**30])
def test_memory_stays_below_what_is_announced(
    tmp_path: Path, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(40_000, 32)
    file = RowFile(tmp_path / "rows.f32", 32)
    file.append(rows)
    monkeypatch.setattr(coreset, "_HELD_BYTES", held_bytes)
    tracemalloc.start()
    select_coreset(file, 300, seed=0, threads=2, products=NUMPY_PRODUCTS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    file.close()
    assert peak < coreset_memory_bytes(40_000, 32, 300, threads=2)


@pytest.mark.parametrize("pool", [3, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_unique_and_in_bounds_even_when_all_are_wanted(kind: str, pool: int, shrink: Shrink) -> None:
    shrink(pool=pool)
    rows = make_rows(kind)[:130]
    ids = select_coreset(rows, len(rows), seed=1).ids
    assert sorted(ids) == list(range(len(rows)))


def test_more_picks_than_different_rows_still_gives_unique_rows(shrink: Shrink) -> None:
    shrink(pool=3)
    rows = np.repeat(random_rows(10, 3), 5, axis=0)
    got = select_coreset(rows, 25, seed=0)
    assert len(set(got.ids.tolist())) == 25
    assert len(np.unique(rows[got.ids[:10]], axis=0)) == 10  # every different row before any repetition
    assert got.covering_radius == 0


def test_one_row_is_the_start_row() -> None:
    rows = make_rows("random")
    assert select_coreset(rows, 1, seed=5).ids.tolist() == [select_coreset(rows, 9, seed=5).ids[0]]


def test_a_single_candidate_is_chosen() -> None:
    assert select_coreset(np.ones((1, 4), np.float32), 1, seed=0).ids.tolist() == [0]


def test_a_smaller_coreset_is_a_prefix_of_a_larger_one(shrink: Shrink) -> None:
    rows = make_rows("clusters")
    shrink(pool=5)
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
    assert true_radius(rows, got.ids) <= got.covering_radius * (1 + 1e-12)


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


def test_progress_rises_to_the_number_chosen(shrink: Shrink) -> None:
    shrink(pool=5)
    seen: list[int] = []
    select_coreset(make_rows("random"), 30, seed=0, progress=seen.append)
    assert seen == sorted(seen) and seen[0] == 1 and seen[-1] == 30


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
