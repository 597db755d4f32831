"""Search in an HNSW graph: it may miss, but what it says is true."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcrun.errors import BackendError
from pcrun.search import hnsw
from pcrun.search.exact import ExactSearch, euclidean
from pcrun.search.hnsw import HnswSearch, load_hnsw_index
from tests.runtime.banks import all_distances, normal, orthonormal

hnswlib = pytest.importorskip("hnswlib", reason="hnswlib is not installed: there is no index to search")


def index_over(rows: np.ndarray, m: int = 8, ef_construction: int = 100) -> Any:
    index = hnswlib.Index(space="l2", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), M=m, ef_construction=ef_construction, random_seed=0)
    index.add_items(rows, np.arange(len(rows)), num_threads=1)
    return index


def test_a_poor_index_is_never_too_small_and_reports_true_distances() -> None:
    rows, queries = normal(2000, 24), normal(300, 24, seed=1)
    found, ids = HnswSearch(index_over(rows, 2, 4), rows, ef=1, threads=1).nearest(queries)
    exact = ExactSearch(rows, threads=1).nearest(queries)[0]
    assert (found >= exact * (1 - 1e-6)).all()
    # Otherwise this test would say nothing.
    assert (found > exact * 1.01).any()
    np.testing.assert_array_equal(found, euclidean(queries, rows[ids]))


def test_distances_are_roots_of_the_right_type() -> None:
    rows = np.array([[0, 0], [10, 0]], np.float32)
    search = HnswSearch(index_over(rows, 2, 4), rows, ef=2, threads=1)
    found, ids = search.nearest(np.array([[0, 3], [10, 4]], np.float32))
    np.testing.assert_array_equal(found, np.array([3, 4], np.float32))
    assert found.dtype == np.float32 and ids.dtype == np.int64 and ids.tolist() == [0, 1]


def test_a_wide_search_in_a_good_index_is_exact() -> None:
    rows, queries = normal(500, 8), normal(100, 8, seed=1)
    found, _ = HnswSearch(index_over(rows, 16, 200), rows, ef=500, threads=1).nearest(queries)
    np.testing.assert_allclose(found, all_distances(queries, rows).min(axis=1), rtol=1e-5)


def test_a_reduced_index_finds_near_rows_and_reports_full_distances() -> None:
    rows, queries = normal(800, 24), normal(200, 24, seed=1)
    basis = orthonormal(24, 16)
    search = HnswSearch(index_over(rows @ basis, 16, 200), rows, ef=800, threads=1, basis=basis)
    found, ids = search.nearest(queries)
    np.testing.assert_array_equal(found, euclidean(queries, rows[ids]))
    # It looks in 16 dimensions, so that is where its rows are the nearest ...
    reduced = all_distances(queries @ basis, rows @ basis)
    np.testing.assert_allclose(reduced[np.arange(200), ids], reduced.min(axis=1), rtol=1e-4)
    # ... and that is near, but not always nearest, in all 24.
    exact = all_distances(queries, rows).min(axis=1)
    assert (found >= exact * (1 - 1e-6)).all() and (found > exact * 1.01).any()
    assert found.mean() < 1.2 * exact.mean()


def test_threads_do_not_change_the_answer() -> None:
    rows, queries = normal(500, 8), normal(101, 8, seed=1)
    one, two = (HnswSearch(index_over(rows, 2, 4), rows, ef=1, threads=n).nearest(queries) for n in (1, 2))
    np.testing.assert_array_equal(one[1], two[1])


def test_ef_below_one_is_refused() -> None:
    rows = normal(5, 2)
    with pytest.raises(ValueError, match="ef must be at least 1, got 0"):
        HnswSearch(index_over(rows), rows, ef=0, threads=1)


def test_loading_gives_back_the_saved_index(tmp_path: Path) -> None:
    rows = normal(200, 8)
    index_over(rows).save_index(str(tmp_path / "i.hnsw"))
    index = load_hnsw_index(tmp_path / "i.hnsw", count=200, dim=8)
    np.testing.assert_array_equal(HnswSearch(index, rows, ef=200, threads=1).nearest(rows)[1], np.arange(200))


def test_a_file_that_hnswlib_refuses_is_a_backend_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"hnswlib refuses gone\.hnsw.*another --search"):
        load_hnsw_index(tmp_path / "gone.hnsw", count=5, dim=2)


def test_without_hnswlib_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hnsw, "hnswlib_problem", lambda: "hnswlib cannot be imported (no such module)")
    with pytest.raises(BackendError, match=r"pip install hnswlib.*or choose another --search"):
        load_hnsw_index(tmp_path / "i.hnsw", count=5, dim=2)


def test_a_refined_search_is_nearer_and_leaves_the_next_search_as_it_was() -> None:
    rows, queries = normal(5000, 32), normal(300, 32, seed=1)
    search = HnswSearch(index_over(rows), rows, ef=1, threads=2)
    before, _ = search.nearest(queries)
    refined, ids = search.refine(queries)
    np.testing.assert_array_equal(refined, euclidean(queries, rows[ids]))
    assert refined.mean() < before.mean() and (refined <= before).mean() > 0.95
    np.testing.assert_array_equal(search.nearest(queries)[0], before)
