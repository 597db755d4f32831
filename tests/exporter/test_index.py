"""The HNSW index, what is measured of it, and the neighbour lists of Eq. 7."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pcexport import index as index_module
from pcexport.index import build_index, choose_ef, measure_search, nearest_neighbours, save_index
from pcrun.manifest import SearchMeasurement
from pcrun.search import HnswSearch


def random_rows(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def built(rows: np.ndarray, **changed: int):
    return build_index(rows, **{"m": 16, "ef_construction": 200, "seed": 0, **changed})


def brute_force(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(queries, rows) Euclidean distances by definition, float64."""
    return np.linalg.norm(queries[:, None].astype(np.float64) - rows[None], axis=2)


def test_recall_at_1_against_brute_force_is_at_least_0_98_at_the_widest_candidate() -> None:
    rows, queries = random_rows(2000), random_rows(400, seed=1)
    distances, _ = HnswSearch(built(rows), ef=index_module.EF_CANDIDATES[-1], threads=2).nearest(queries)
    true = brute_force(queries, rows).min(axis=1)
    assert np.mean(distances <= true * (1 + 1e-5)) >= 0.98
    assert (distances >= true * (1 - 1e-5)).all()  # HNSW errs on one side


def test_every_entry_finds_itself_with_its_own_row_number() -> None:
    rows = random_rows(300)
    distances, ids = HnswSearch(built(rows), ef=64, threads=1).nearest(rows)
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
    measured = measure_search(index, rows, images, efs=(1, 4, 64), threads=2)
    assert [m.ef for m in measured] == [1, 4, 64]
    for m in measured:
        index.set_ef(m.ef)
        hits, worst = [], 0.0
        for image in images:
            true = brute_force(image, rows).min(axis=1)
            found = np.sqrt(index.knn_query(image, k=1)[1][:, 0])
            hits += list(found <= true * (1 + 1e-5) + 1e-6)
            worst = max(worst, found.max() / true.max() - 1)
        assert m.recall_at_1 == np.mean(hits)
        assert m.worst_image_score_error == pytest.approx(worst, abs=1e-5)
    assert measured[0].recall_at_1 < measured[1].recall_at_1 < measured[2].recall_at_1 < 1
    assert measured[0].worst_image_score_error > 0.01


def test_an_image_that_is_in_the_bank_has_full_recall_and_no_error() -> None:
    rows = random_rows(100)
    (measured,) = measure_search(built(rows), rows, [rows[:20]], efs=(64,), threads=1)
    assert measured == SearchMeasurement(64, 1.0, 0.0)


@pytest.mark.parametrize(
    "recalls, ef", [((0.5, 0.98, 1.0), 8), ((0.99, 0.5, 1.0), 4), ((0.1, 0.2, 0.9799), 16)]
)
def test_the_smallest_ef_with_the_wanted_recall_is_chosen(recalls: tuple[float, ...], ef: int) -> None:
    measured = [SearchMeasurement(e, recall, 0.0) for e, recall in zip((4, 8, 16), recalls, strict=True)]
    assert choose_ef(measured) == ef
