"""Brute force, in numpy and as an ONNX graph, against a loop in float64 that nobody can get wrong."""

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun.bundle.onnx_file import check_onnx
from pcrun.errors import BackendError
from pcrun.search import exact, graph, onnx_write
from pcrun.search.exact import ExactSearch, euclidean, nearer_of
from pcrun.search.graph import GraphSearch, exact_search_model
from tests.runtime.banks import Case, all_distances, cases, normal

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graph")

Opener = Callable[[np.ndarray], Any]
OPENERS: dict[str, Opener] = {
    "exact": lambda rows: ExactSearch(rows, threads=1),
    "exact_graph": lambda rows: GraphSearch(rows, provider="cpu", threads=1),
}
MODULES = {"exact": exact, "exact_graph": graph}


@pytest.fixture(params=sorted(OPENERS))
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_nearest(engine: str, queries: np.ndarray, rows: np.ndarray) -> None:
    check(engine, Case(rows, queries, all_distances(queries, rows)))


def check(engine: str, case: Case) -> None:
    distances, ids = OPENERS[engine](case.rows).nearest(case.queries)
    assert distances.dtype == np.float32 and ids.dtype == np.int64
    assert distances.shape == ids.shape == (len(case.queries),)
    named = case.truth[np.arange(len(ids)), ids]
    assert (np.abs(distances - named) <= case.rounding(named)).all()
    assert (named - case.exact <= case.product_rounding()).all()


@pytest.mark.parametrize("count, dim, patches", [(500, 16, 40), (37, 384, 7), (3, 1, 50), (64, 8, 1)])
def test_equals_the_loop(engine: str, count: int, dim: int, patches: int) -> None:
    assert_nearest(engine, normal(patches, dim, seed=1), normal(count, dim))


def test_one_row(engine: str) -> None:
    assert_nearest(engine, normal(5, 8), normal(1, 8, seed=1))


@pytest.mark.parametrize("block", [1, 7, 50, 99, 100, 101])
def test_the_nearest_row_may_lie_in_any_block(engine: str, block: int) -> None:
    rows = normal(100, 6)
    # One query beside every row, so that each block, the last and shortest too, holds somebody's nearest.
    queries = rows + np.float32(1e-3)
    with mock.patch.object(MODULES[engine], "_BLOCK_ROWS", block):
        np.testing.assert_array_equal(OPENERS[engine](rows).nearest(queries)[1], np.arange(100))
        assert_nearest(engine, queries, rows)


def test_bank_larger_than_one_real_block(engine: str) -> None:
    count = MODULES[engine]._BLOCK_ROWS + 10
    rows = normal(count, 4)
    _, ids = OPENERS[engine](rows).nearest(rows[-3:] + np.float32(1e-4))
    assert ids.tolist() == [count - 3, count - 2, count - 1]


def test_duplicates(engine: str) -> None:
    rows = np.repeat(normal(10, 4), 5, axis=0)
    assert_nearest(engine, normal(30, 4, seed=2), rows)
    assert_nearest(engine, rows, rows)


def test_queries_equal_to_rows_have_distance_zero(engine: str) -> None:
    rows = normal(300, 32) * np.float32(20)
    distances, ids = OPENERS[engine](rows).nearest(rows)
    np.testing.assert_array_equal(ids, np.arange(300))
    np.testing.assert_array_equal(distances, np.zeros(300, np.float32))


@pytest.mark.parametrize("offset", [1, 30, 300])
def test_distances_stay_accurate_far_from_the_origin(engine: str, offset: float) -> None:
    """||q||^2 - 2 q.r + ||r||^2 loses its digits here: 1e7 against 1e2 at offset 300."""
    rows = normal(400, 64) + np.float32(offset)
    queries = normal(60, 64, seed=3) + np.float32(offset)
    distances, _ = OPENERS[engine](rows).nearest(queries)
    np.testing.assert_allclose(distances, all_distances(queries, rows).min(axis=1), rtol=1e-4)


def test_even_a_wrong_choice_reports_that_rows_true_distance(engine: str) -> None:
    # Closer together than float32 products can tell apart: which row wins is luck, its distance is not.
    rows = normal(400, 4) + np.float32(1e6)
    queries = normal(60, 4, seed=3) + np.float32(1e6)
    distances, ids = OPENERS[engine](rows).nearest(queries)
    truth = all_distances(queries, rows)[np.arange(60), ids]
    np.testing.assert_allclose(distances, truth, rtol=1e-6)


def test_threads_do_not_change_the_answer() -> None:
    rows, queries = normal(500, 16), normal(100, 16, seed=1)
    numpy_one, numpy_two = (ExactSearch(rows, threads=n).nearest(queries)[0] for n in (1, 2))
    np.testing.assert_allclose(numpy_one, numpy_two, rtol=1e-6)
    graph_one, graph_two = (GraphSearch(rows, provider="cpu", threads=n).nearest(queries)[0] for n in (1, 2))
    np.testing.assert_allclose(graph_one, graph_two, rtol=1e-6)
    np.testing.assert_allclose(graph_one, numpy_one, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(cases(patches=st.integers(1, 20)), st.sampled_from([1, 7, 64, 5000]))
def test_any_bank(case: Case, block: int) -> None:
    for engine, module in MODULES.items():
        # The graph of 300 blocks is slow to open.
        rows_per_block = block if engine == "exact" else max(block, len(case.rows) // 8, 1)
        with mock.patch.object(module, "_BLOCK_ROWS", rows_per_block):
            check(engine, case)


class TestModel:
    def test_it_is_a_sound_file_of_one_domain_without_outside_data(self) -> None:
        onnx = pytest.importorskip("onnx", reason="onnx is not installed: its checker is the judge")
        with mock.patch.object(graph, "_BLOCK_ROWS", 30):
            data = exact_search_model(normal(100, 6))
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
        facts = check_onnx(data, name="search.onnx")
        assert [(t.name, t.elem_type, t.dims) for t in facts.inputs] == [
            ("queries", "float32", ("patches", 6))
        ]
        assert [(t.name, t.elem_type, t.dims) for t in facts.outputs] == [
            ("distances", "float32", ("patches",)),
            ("ids", "int64", ("patches",)),
        ]
        assert {domain for domain, _ in facts.op_types} == {""}

    def test_the_bank_is_in_it_once(self) -> None:
        rows = normal(4000, 16)
        with mock.patch.object(graph, "_BLOCK_ROWS", 1000):
            assert len(exact_search_model(rows)) < 1.2 * rows.nbytes

    def test_a_bank_beyond_one_file_is_an_error_that_says_what_to_do(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_write, "MAX_MODEL_BYTES", 100)
        with pytest.raises(BackendError, match=r"too large for one ONNX graph.*another --search"):
            GraphSearch(normal(10, 4), provider="cpu", threads=1)


class TestEuclidean:
    def test_pythagoras(self) -> None:
        a = np.array([[0, 0], [1, 1]], np.float32)
        b = np.array([[3, 4], [1, 1]], np.float32)
        np.testing.assert_array_equal(euclidean(a, b), np.array([5, 0], np.float32))

    def test_a_distance_does_not_depend_on_what_else_is_asked(self) -> None:
        """Else equal pairs could differ between engines, and ties with the largest one be lost."""
        for dim in (1, 2, 3, 7, 8, 33, 384):
            a, b = normal(50, dim), normal(50, dim, seed=1)
            together = euclidean(a, b)
            for start, stop in ((0, 1), (49, 50), (3, 20), (1, 49)):
                np.testing.assert_array_equal(euclidean(a[start:stop], b[start:stop]), together[start:stop])


def test_the_nearer_of_two_keeps_the_known_entry_in_a_tie() -> None:
    known = np.array([1, 2, 3], np.float32), np.array([10, 11, 12])
    found = np.array([2, 2, 1], np.float32), np.array([20, 21, 22])
    distances, ids = nearer_of(known, found)
    assert distances.tolist() == [1, 2, 1] and ids.tolist() == [10, 11, 22]


def test_no_thread_of_blas_is_left_spinning() -> None:
    """They would take a core all the time at the rate of a camera."""
    rows = np.random.default_rng(0).standard_normal((20_000, 384)).astype(np.float32)
    search = ExactSearch(rows, threads=2)
    time.sleep(0.5)  # those that other products have woken
    spent = 0.0
    for _ in range(5):
        search.nearest(rows[:8])
        before = time.process_time()
        time.sleep(0.1)
        spent += time.process_time() - before
    assert spent < 0.15
