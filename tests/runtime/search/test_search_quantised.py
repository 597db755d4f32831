"""Search among 8-bit rows: whole numbers that are exact, and distances that are true."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun.errors import BackendError
from pcrun.search import eight_bit, quantised
from pcrun.search import verifier as verifier_module
from pcrun.search.eight_bit import (
    MAX_DIM,
    Products,
    QuantisedRows,
    open_products,
    quantised_problem,
    query_bits,
)
from pcrun.search.exact import euclidean
from pcrun.search.quantised import QuantisedSearch
from pcrun.search.verifier import QuantisedVerifier
from pcrun.search.views import Centred
from tests.runtime.banks import Case, all_distances, cases, normal, orthonormal

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it multiplies 8-bit numbers")


def all_dimensions(rows: np.ndarray, bits: int, *, block_rows: int = 8192) -> QuantisedRows:
    return QuantisedRows(rows, Centred(rows.mean(axis=0)), query_bits=bits, block_rows=block_rows)


def products(rows: QuantisedRows, queries: np.ndarray) -> np.ndarray:
    """(queries, rows) of the products as onnxruntime gives them."""
    sessions = open_products(rows)
    worker = Products(sessions, rows, rows.query_buffer(len(queries)), blocks=range(len(sessions)))
    rows.encode(queries, worker.queries)
    return np.concatenate([sums.copy() for _, sums in worker], axis=1)


def products_by_hand(rows: np.ndarray, queries: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Products of both sides' whole numbers less half the rows' squared lengths, in units of both steps.

    Returns:
        (queries, rows) int64, and whether a query's numbers had to be cut at the grid's end.
    """
    centre = rows.mean(axis=0)
    seen, centred = queries - centre, rows - centre
    longest = np.linalg.norm(centred.astype(np.float64), axis=1).max()
    row_step = max(float(np.abs(centred).max()) / 127, longest / 4064) or 1.0
    half = 2 ** (bits - 1)
    query_step = row_step * 127 / (half - 1)
    row_numbers = np.rint(centred / row_step).astype(np.int64)
    query_numbers = np.rint(seen * np.float32(1 / query_step))
    cut = (np.abs(query_numbers) > half).any(axis=1)
    query_numbers = np.clip(query_numbers, -half, half - 1).astype(np.int64)
    halves = np.square(row_numbers).sum(axis=1) * row_step / (2 * query_step)
    return query_numbers @ row_numbers.T - np.rint(halves).astype(np.int64), cut


class TestProducts:
    @settings(max_examples=60, deadline=None)
    @given(
        cases(patches=st.integers(1, 20), scales=st.sampled_from([1e-12, 1.0, 1e15])),
        st.sampled_from([7, 8]),
        st.sampled_from([10, 8192]),
    )
    def test_they_are_the_whole_numbers_that_the_proof_speaks_of(
        self, case: Case, bits: int, block: int
    ) -> None:
        rows = all_dimensions(case.rows, bits, block_rows=block)
        got = products(rows, case.queries) + np.int64(rows.shift)
        expected, _ = products_by_hand(case.rows, case.queries, bits)
        # Halves of whole numbers may be rounded either way.
        assert np.abs(got - expected).max() <= 1

    @pytest.mark.parametrize("bits", [7, 8])
    @pytest.mark.parametrize("dim", [100, 1500, MAX_DIM])
    def test_the_largest_numbers_overflow_nothing(self, bits: int, dim: int) -> None:
        corner = np.random.default_rng(0).choice([-1, 1], dim)
        rows = np.stack([corner, -corner, np.ones(dim), -np.ones(dim), np.zeros(dim)]).astype(np.float32)
        got = products(all_dimensions(rows, bits), rows * 2)
        assert (got[:4].argmax(axis=1) == np.arange(4)).all()
        expected, cut = products_by_hand(rows, rows * 2, bits)
        shift = all_dimensions(rows, bits).shift
        assert np.abs(got + np.int64(shift) - expected).max() <= 1
        assert cut.any() or dim > 1016  # longer rows have a coarser grid, with room for twice their numbers

    def test_rows_far_shorter_than_the_longest_keep_their_order(self) -> None:
        # Their offsets need several digits of 8 bits.
        rows = normal(300, 64)
        rows[0] *= 40
        quantised_rows = all_dimensions(rows, 8)
        assert quantised_rows._digits > 1
        got = products(quantised_rows, rows[1:50])
        expected, _ = products_by_hand(rows, rows[1:50], 8)
        np.testing.assert_array_equal(got.argmax(axis=1), expected.argmax(axis=1))

    def test_a_constant_bank_divides_nothing(self) -> None:
        rows = np.full((20, 4), 3.25, np.float32)
        got = products(all_dimensions(rows, 8), rows[:2])
        assert (got == got[0, 0]).all()


class TestQueryBits:
    def test_it_is_a_number_of_bits_that_this_processor_multiplies_exactly(self) -> None:
        assert query_bits() in (7, 8)

    @pytest.mark.parametrize("largest, bits", [(255 * 127 * 64, 8), (2**15 * 32 - 1, 7)])
    def test_seven_where_pairs_are_added_in_16_bits(
        self, monkeypatch: pytest.MonkeyPatch, largest: int, bits: int
    ) -> None:
        class Session:
            def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
                return [np.full((16, 16), largest, np.int32)]

        monkeypatch.setattr(eight_bit, "_open_product", lambda matrix: Session())
        assert query_bits() == bits

    def test_seven_bits_cannot_saturate_any_pair(self) -> None:
        rows = all_dimensions(normal(50, 16), 7)
        buffer = rows.query_buffer(30)
        rows.encode(normal(30, 16, seed=1) * 100, buffer)
        assert buffer.max() <= 127
        assert 2 * int(buffer.max()) * 127 < 2**15


class TestSearch:
    @settings(max_examples=60, deadline=None)
    @given(
        cases(patches=st.integers(1, 120)),
        st.sampled_from([7, 8]),
        st.sampled_from([1, 2]),
        st.sampled_from([20, 8192]),
        st.integers(0, 12),
    )
    def test_any_bank_gives_a_row_and_its_true_distance(
        self, case: Case, bits: int, threads: int, block: int, basis_dim: int
    ) -> None:
        dim = case.rows.shape[1]
        basis = orthonormal(dim, basis_dim) if 0 < basis_dim < dim else None
        with mock.patch.object(quantised, "_BLOCK_ROWS", block):
            search = QuantisedSearch(case.rows, threads=threads, basis=basis, bits=bits)
            distances, ids = search.nearest(case.queries)
        assert distances.dtype == np.float32 and ids.dtype == np.int64
        assert ids.min() >= 0 and ids.max() < len(case.rows)
        np.testing.assert_array_equal(distances, euclidean(case.queries, case.rows[ids]))
        assert (distances >= case.exact - case.rounding(case.exact)).all()

    @pytest.mark.parametrize("bits, share", [(8, 0.93), (7, 0.9)])
    def test_it_mostly_finds_the_nearest(self, bits: int, share: float) -> None:
        rows, queries = normal(3000, 64), normal(400, 64, seed=1)
        _, ids = QuantisedSearch(rows, threads=1, bits=bits).nearest(queries)
        assert (ids == all_distances(queries, rows).argmin(axis=1)).mean() > share

    def test_with_a_basis_it_knows_the_full_length_of_the_rows(self) -> None:
        # Two rows that look alike in the basis: one lies off it.
        basis = np.eye(8, 4, dtype=np.float32)
        rows = normal(200, 8)
        rows[:, 4:] = 0
        far = rows.copy()
        far[:, 7] = 3 * np.tile([1, -1], 100)
        bank = np.concatenate([far, rows])
        _, ids = QuantisedSearch(bank, threads=1, basis=basis).nearest(rows)
        assert (ids >= 200).all()

    def test_blocks_and_threads_do_not_change_the_answer(self) -> None:
        rows, queries = normal(1000, 12), normal(211, 12, seed=1)
        expected = QuantisedSearch(rows, threads=1).nearest(queries)
        for block, threads in ((8192, 2), (300, 1), (77, 3), (1, 1)):
            with mock.patch.object(quantised, "_BLOCK_ROWS", block):
                search = QuantisedSearch(rows[:60] if block == 1 else rows, threads=threads)
            wanted = QuantisedSearch(rows[:60], threads=1).nearest(queries) if block == 1 else expected
            for got, want in zip(search.nearest(queries), wanted, strict=True):
                np.testing.assert_array_equal(got, want)

    def test_a_patch_alone_has_the_answer_it_has_among_others(self) -> None:
        rows, queries = normal(500, 24), normal(150, 24, seed=1)
        for basis in (None, orthonormal(24, 10)):
            search = QuantisedSearch(rows, threads=2, basis=basis)
            distances, ids = search.nearest(queries)
            for number in (0, 1, 97, 98, 149):
                alone = search.nearest(queries[number : number + 1])
                assert (alone[0][0], alone[1][0]) == (distances[number], ids[number])

    def test_equally_near_rows_give_the_first(self) -> None:
        rows = np.concatenate([normal(50, 8)] * 3)
        with mock.patch.object(quantised, "_BLOCK_ROWS", 60):
            _, ids = QuantisedSearch(rows, threads=1).nearest(rows[100:])
        np.testing.assert_array_equal(ids, np.arange(50))


def ask_at_once(call: Any, items: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(call, items))


class TestSeveralThreadsOfTheCaller:
    """A detector may serve several cameras: each call must see its own products."""

    rows = normal(20_000, 32)
    images = tuple(normal(8, 32, seed) for seed in range(1, 40))

    def test_search(self) -> None:
        search = QuantisedSearch(self.rows, threads=2)
        expected = [search.nearest(image)[1] for image in self.images]
        got = ask_at_once(lambda image: search.nearest(image)[1], list(self.images))
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))

    def test_verifier(self) -> None:
        verifier = QuantisedVerifier(self.rows, threads=1)
        # Near entries, so that products decide and not plain exact search, but half of them not the nearest.
        search = QuantisedSearch(self.rows[::2], threads=1)
        known = []
        for image in self.images:
            distances, ids = search.nearest(image)
            known.append((image, distances, ids * 2))
        with mock.patch.object(
            verifier_module, "nearer_of", side_effect=AssertionError("not meant to fall back")
        ):
            expected = [verifier.nearest(*item)[0] for item in known]
            got = ask_at_once(lambda item: verifier.nearest(*item)[0], known)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


class TestProblem:
    def test_none_here(self) -> None:
        assert quantised_problem(normal(3, 4)) is None

    def test_rows_too_long_for_32_bit_sums(self) -> None:
        assert quantised_problem(np.zeros((1, MAX_DIM), np.float32)) is None
        problem = quantised_problem(np.zeros((1, MAX_DIM + 1), np.float32))
        assert problem is not None and f"{MAX_DIM + 1} dimensions are too long" in problem

    def test_without_onnxruntime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise BackendError("onnxruntime cannot be imported")

        monkeypatch.setattr(eight_bit, "import_onnxruntime", refuse)
        assert quantised_problem(normal(3, 4)) == "onnxruntime cannot be imported"
