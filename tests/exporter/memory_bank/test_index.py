"""The HNSW index, what is measured of it, and the neighbour lists of Eq. 7."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pcexport.memory_bank import index as index_module
from pcexport.memory_bank.index import (
    build_index,
    choose_ef,
    measure_search,
    nearest_neighbours,
    save_index,
    search_basis,
)
from pcrun.bundle.manifest import SearchMeasurement
from pcrun.search.hnsw import HnswSearch


def random_rows(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def built(rows: np.ndarray, **changed: int):
    return build_index(rows, **{"m": 16, "ef_construction": 200, "seed": 0, **changed})


def search_in(index: object, rows: np.ndarray, threads: int = 1):
    return lambda ef: HnswSearch(index, rows, ef=ef, threads=threads)


def brute_force(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(queries, rows) Euclidean distances by definition, float64."""
    return np.linalg.norm(queries[:, None].astype(np.float64) - rows[None], axis=2)


def test_recall_at_1_against_brute_force_is_at_least_0_98_at_the_widest_candidate() -> None:
    rows, queries = random_rows(2000), random_rows(400, seed=1)
    distances, _ = search_in(built(rows), rows, 2)(index_module.EF_CANDIDATES[-1]).nearest(queries)
    true = brute_force(queries, rows).min(axis=1)
    assert np.mean(distances <= true * (1 + 1e-5)) >= 0.98
    assert (distances >= true * (1 - 1e-5)).all()  # HNSW errs on one side


def test_every_entry_finds_itself_with_its_own_row_number() -> None:
    rows = random_rows(300)
    distances, ids = search_in(built(rows), rows)(64).nearest(rows)
    np.testing.assert_array_equal(ids, np.arange(300))
    np.testing.assert_allclose(distances, 0, atol=1e-6)


def test_two_builds_of_an_index_are_equal_bytes(tmp_path: Path) -> None:
    rows = random_rows(500)
    for name in ("a", "b"):
        save_index(built(rows), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Not seed 1: hnswlib's generator (minstd_rand0) takes a seed of 0 for 1.
@pytest.mark.parametrize("changed", [{"seed": 2}, {"m": 8}, {"ef_construction": 20}])
def test_each_parameter_of_the_index_reaches_hnswlib(tmp_path: Path, changed: dict[str, int]) -> None:
    rows = random_rows(500)
    save_index(built(rows), tmp_path / "a")
    save_index(built(rows, **changed), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def check_neighbours(rows: np.ndarray, b: int) -> None:
    got = nearest_neighbours(rows, b)
    distances = brute_force(rows, rows)
    assert got.shape == (len(rows), min(b, len(rows))) and got.dtype == np.int32
    for row, neighbours in enumerate(got):
        assert neighbours[0] == row
        assert len(set(neighbours.tolist())) == len(neighbours)
        # Ties may come in any order, so distances are compared and not ids.
        nearest = np.sort(distances[row])[: len(neighbours)]
        np.testing.assert_allclose(distances[row, neighbours], nearest, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("b", [1, 2, 9])
def test_neighbours_equal_brute_force_itself_first(b: int) -> None:
    check_neighbours(random_rows(200), b)


def test_neighbours_in_blocks_equal_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_BLOCK_ROWS", 7)
    check_neighbours(random_rows(60), 5)


def test_an_entry_is_its_own_first_neighbour_among_duplicates() -> None:
    check_neighbours(np.repeat(random_rows(10), 6, axis=0), 9)
    check_neighbours(np.zeros((20, 4), np.float32), 9)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_bank_smaller_than_b_gives_all_its_entries(count: int) -> None:
    check_neighbours(random_rows(count), 9)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(-5, 5)),
    st.integers(1, 12),
)
def test_neighbours_of_any_small_integers(rows: np.ndarray, b: int) -> None:
    check_neighbours(rows.astype(np.float32), b)


def test_measured_numbers_equal_a_naive_recomputation() -> None:
    # A poor graph on purpose, so that there is something to measure.
    rows, images = random_rows(1500), [random_rows(40, seed=seed) for seed in (1, 2, 3)]
    index = built(rows, m=2, ef_construction=8)
    measured = measure_search(search_in(index, rows, 2), rows, images, efs=(1, 4, 64))
    assert [m.ef for m in measured] == [1, 4, 64]
    for m in measured:
        index.set_ef(m.ef)
        hits, errors, worst = [], [], 0.0
        for image in images:
            true = brute_force(image, rows).min(axis=1)
            found = np.sqrt(index.knn_query(image, k=1)[1][:, 0])
            hits += list(found <= true * (1 + 1e-5) + 1e-6)
            errors += list(found / true - 1)
            worst = max(worst, found.max() / true.max() - 1)
        assert m.recall_at_1 == np.mean(hits)
        assert m.worst_image_score_error == pytest.approx(worst, abs=1e-5)
        assert m.mean_distance_error == pytest.approx(np.mean(errors), abs=1e-5)
    assert measured[0].recall_at_1 < measured[1].recall_at_1 < measured[2].recall_at_1 < 1
    assert measured[0].worst_image_score_error > 0.01


def test_an_image_that_is_in_the_bank_has_full_recall_and_no_error() -> None:
    rows = random_rows(100)
    (measured,) = measure_search(search_in(built(rows), rows), rows, [rows[:20]], efs=(64,))
    assert measured == SearchMeasurement(64, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "errors, ef", [((0.5, 0.02, 0.0), 8), ((0.01, 0.5, 0.0), 4), ((0.9, 0.2, 0.0201), 16)]
)
def test_the_smallest_ef_with_the_wanted_mean_error_is_chosen(errors: tuple[float, ...], ef: int) -> None:
    measured = [SearchMeasurement(e, 0.5, 0.0, error) for e, error in zip((4, 8, 16), errors, strict=True)]
    assert choose_ef(measured) == ef


def spread_over(variances: list[float], count: int = 4000) -> np.ndarray:
    """Rows with these variances along rotated directions."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((len(variances), len(variances))))
    return (rng.standard_normal((count, len(variances))) * np.sqrt(variances) @ rotation).astype(np.float32)


def test_search_dimensions_are_the_fewest_that_keep_most_of_the_variance() -> None:
    few = search_basis(spread_over([1.0] * 30 + [1e-4] * 70), None)
    assert few.search_dim == 32 and few.columns.shape == (100, 32)
    # 0.8 of 78 equal ones are 63, 0.92 are 72.
    more = search_basis(spread_over([1.0] * 78 + [1e-4] * 22), None)
    assert more.search_dim == 64 and more.columns.shape == (100, 96)


def test_verification_has_the_directions_of_search_and_more() -> None:
    rows = spread_over([1.0] * 78 + [1e-4] * 22)
    basis = search_basis(rows, 5)
    assert basis.search.shape == (100, 5) and basis.columns.shape == (100, 96)
    np.testing.assert_array_equal(basis.columns[:, :5], basis.search)
    # A wish for more dimensions of search than verification needs goes for both.
    assert search_basis(rows, 99).columns.shape == (100, 99)


def test_search_directions_are_orthonormal_and_keep_the_near_near() -> None:
    rows = spread_over([1.0] * 16 + [1e-3] * 84, 500)
    basis = search_basis(rows, 16).search
    np.testing.assert_allclose(basis.T @ basis, np.eye(16), atol=1e-5)
    queries = rows[:50] + np.float32(0.01)
    search = HnswSearch(built(rows @ basis), rows, ef=64, threads=1, basis=basis)
    distances, ids = search.nearest(queries)
    np.testing.assert_array_equal(ids, np.arange(50))
    # Distances are those of the full rows, not of the reduced ones.
    np.testing.assert_allclose(distances, np.full(50, 0.1), rtol=1e-3)


@pytest.mark.parametrize("dim", [0, 100, 2000])
def test_a_search_in_all_dimensions_needs_no_basis(dim: int) -> None:
    assert search_basis(random_rows(50, 100), dim) is None


@pytest.mark.parametrize("rows", [random_rows(50, 8), random_rows(1, 100), np.ones((20, 100), np.float32)])
def test_small_and_constant_banks_have_a_basis_or_none(rows: np.ndarray) -> None:
    basis = search_basis(rows, None)
    if rows.shape[1] <= 32:
        assert basis is None
    else:
        columns = basis.columns
        assert columns.shape[0] == 100 and np.isfinite(columns).all()
        np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=1e-5)
