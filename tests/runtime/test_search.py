"""Nearest-neighbour search against a loop in float64 that nobody can get wrong."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun import search
from pcrun.errors import BackendError
from pcrun.search import ExactSearch, HnswSearch, euclidean, hnswlib_problem, load_hnsw_index

needs_hnswlib = pytest.mark.skipif(hnswlib_problem() is not None, reason="hnswlib cannot be imported")


def normal(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def all_distances(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(queries, rows) float64, one query at a time."""
    exact = rows.astype(np.float64)
    return np.array([np.sqrt(((exact - query) ** 2).sum(axis=1)) for query in queries.astype(np.float64)])


def assert_nearest(queries: np.ndarray, rows: np.ndarray, rtol: float = 1e-5) -> None:
    distances, ids = ExactSearch(rows, threads=1).nearest(queries)
    assert distances.dtype == np.float32 and ids.dtype == np.int64
    assert distances.shape == ids.shape == (len(queries),)
    truth = all_distances(queries, rows)
    # The id may be any of several equally near rows, but the distance must be that row's and the smallest.
    np.testing.assert_allclose(distances, truth[np.arange(len(queries)), ids], rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(distances, truth.min(axis=1), rtol=rtol, atol=1e-6)


class TestExactSearch:
    @pytest.mark.parametrize("count, dim, patches", [(500, 16, 40), (37, 384, 7), (3, 1, 50), (64, 8, 1)])
    def test_equals_the_loop(self, count: int, dim: int, patches: int) -> None:
        assert_nearest(normal(patches, dim, seed=1), normal(count, dim))

    def test_one_row(self) -> None:
        assert_nearest(normal(5, 8), normal(1, 8, seed=1))

    @pytest.mark.parametrize("block", [1, 7, 50, 99, 100, 101])
    def test_the_nearest_row_may_lie_in_any_block(self, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
        monkeypatch.setattr(search, "_BLOCK_ROWS", block)
        rows = normal(100, 6)
        # One query beside every row, so that each block, the last and shortest too, holds somebody's nearest.
        queries = rows + np.float32(1e-3)
        np.testing.assert_array_equal(ExactSearch(rows, threads=1).nearest(queries)[1], np.arange(100))
        assert_nearest(queries, rows)

    def test_bank_larger_than_one_real_block(self) -> None:
        count = search._BLOCK_ROWS + 10
        rows = normal(count, 4)
        _, ids = ExactSearch(rows, threads=1).nearest(rows[-3:] + np.float32(1e-4))
        assert ids.tolist() == [count - 3, count - 2, count - 1]

    def test_duplicates(self) -> None:
        rows = np.repeat(normal(10, 4), 5, axis=0)
        assert_nearest(normal(30, 4, seed=2), rows)
        assert_nearest(rows, rows)

    def test_queries_equal_to_rows_have_distance_zero(self) -> None:
        rows = normal(300, 32) * np.float32(20)
        distances, ids = ExactSearch(rows, threads=1).nearest(rows)
        np.testing.assert_array_equal(ids, np.arange(300))
        np.testing.assert_array_equal(distances, np.zeros(300, np.float32))

    @pytest.mark.parametrize("offset", [1, 30, 300])
    def test_distances_stay_accurate_far_from_the_origin(self, offset: float) -> None:
        """||q||^2 - 2 q.r + ||r||^2 loses its digits here: 1e7 against 1e2 at offset 300."""
        rows = normal(400, 64) + np.float32(offset)
        queries = normal(60, 64, seed=3) + np.float32(offset)
        assert_nearest(queries, rows, rtol=1e-4)

    def test_even_a_wrong_choice_reports_that_rows_true_distance(self) -> None:
        # Closer together than float32 products can tell apart: which row wins is luck, its distance is not.
        rows = normal(400, 4) + np.float32(1e6)
        queries = normal(60, 4, seed=3) + np.float32(1e6)
        distances, ids = ExactSearch(rows, threads=1).nearest(queries)
        truth = all_distances(queries, rows)[np.arange(60), ids]
        np.testing.assert_allclose(distances, truth, rtol=1e-6)

    def test_threads_do_not_change_the_answer(self) -> None:
        rows, queries = normal(500, 16), normal(100, 16, seed=1)
        one, two = (ExactSearch(rows, threads=n).nearest(queries) for n in (1, 2))
        np.testing.assert_allclose(one[0], two[0], rtol=1e-6)

    @settings(max_examples=50, deadline=None)
    @given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 20), st.integers(0, 2**32 - 1))
    def test_any_shape(self, count: int, dim: int, patches: int, seed: int) -> None:
        # A coarse grid: many ties and many zero distances.
        rng = np.random.default_rng(seed)
        rows = rng.integers(-2, 3, (count, dim)).astype(np.float32)
        assert_nearest(rng.integers(-2, 3, (patches, dim)).astype(np.float32), rows)


class TestEuclidean:
    def test_pythagoras(self) -> None:
        a = np.array([[0, 0], [1, 1]], np.float32)
        b = np.array([[3, 4], [1, 1]], np.float32)
        np.testing.assert_array_equal(euclidean(a, b), np.array([5, 0], np.float32))


@needs_hnswlib
class TestHnswSearch:
    @staticmethod
    def index_over(rows: np.ndarray, m: int, ef_construction: int) -> object:
        import hnswlib

        index = hnswlib.Index(space="l2", dim=rows.shape[1])
        index.init_index(max_elements=len(rows), M=m, ef_construction=ef_construction, random_seed=0)
        index.add_items(rows, np.arange(len(rows)), num_threads=1)
        return index

    def test_a_poor_index_is_never_too_small_and_reports_true_distances(self) -> None:
        rows, queries = normal(2000, 24), normal(300, 24, seed=1)
        found, ids = HnswSearch(self.index_over(rows, 2, 4), ef=1, threads=1).nearest(queries)
        exact, _ = ExactSearch(rows, threads=1).nearest(queries)
        assert (found >= exact * (1 - 1e-6)).all()
        # Otherwise this test would say nothing.
        assert (found > exact * 1.01).any()
        np.testing.assert_allclose(found, euclidean(queries, rows[ids]), rtol=1e-5)

    def test_distances_are_roots_of_the_right_type(self) -> None:
        rows = np.array([[0, 0], [10, 0]], np.float32)
        found, ids = HnswSearch(self.index_over(rows, 2, 4), ef=2, threads=1).nearest(
            np.array([[0, 3], [10, 4]], np.float32)
        )
        np.testing.assert_array_equal(found, np.array([3, 4], np.float32))
        assert found.dtype == np.float32 and ids.dtype == np.int64 and ids.tolist() == [0, 1]

    def test_a_wide_search_in_a_good_index_is_exact(self) -> None:
        rows, queries = normal(500, 8), normal(100, 8, seed=1)
        found, _ = HnswSearch(self.index_over(rows, 16, 200), ef=500, threads=1).nearest(queries)
        np.testing.assert_allclose(found, ExactSearch(rows, threads=1).nearest(queries)[0], rtol=1e-5)

    def test_ef_below_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="ef must be at least 1, got 0"):
            HnswSearch(self.index_over(normal(5, 2), 2, 4), ef=0, threads=1)

    def test_loading_gives_back_the_saved_index(self, tmp_path: Path) -> None:
        rows = normal(200, 8)
        self.index_over(rows, 8, 100).save_index(str(tmp_path / "i.hnsw"))  # type: ignore[attr-defined]
        loaded = HnswSearch(load_hnsw_index(tmp_path / "i.hnsw", rows), ef=200, threads=1)
        np.testing.assert_array_equal(loaded.nearest(rows)[1], np.arange(200))

    def test_a_file_that_hnswlib_refuses_is_a_backend_error(self, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match=r"hnswlib refuses gone\.hnsw"):
            load_hnsw_index(tmp_path / "gone.hnsw", normal(5, 2))


def test_without_hnswlib_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(search, "hnswlib_problem", lambda: "hnswlib cannot be imported (no such module)")
    with pytest.raises(BackendError, match=r"pip install hnswlib.*or use exact search"):
        load_hnsw_index(tmp_path / "i.hnsw", normal(5, 2))
