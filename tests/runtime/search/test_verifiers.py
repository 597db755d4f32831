"""Verification gives the nearest row, whatever entry was known before; what it excludes is not nearer."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun.scoring.certify import ExactVerifier
from pcrun.search import verifier as module
from pcrun.search.exact import ExactSearch, euclidean
from pcrun.search.verifier import QuantisedVerifier
from tests.runtime.banks import Case, all_distances, cases, make_case, normal, orthonormal

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it multiplies 8-bit numbers")

# The certificate itself is on trial: no falling back to plain exact search.
never_fall_back = mock.patch.object(module, "_MAX_CANDIDATE_SHARE", 1e9)


def basis_for(case: Case, dim: int) -> np.ndarray | None:
    """Directions that have nothing to do with the rows: 0, or more than there are, for all dimensions."""
    length = case.rows.shape[1]
    return orthonormal(length, dim, seed=dim) if 0 < dim < length else None


def known_entries(case: Case, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and ids of an entry per patch: the nearest but `rank`, or any for a negative rank."""
    if rank < 0:
        ids = np.random.default_rng(seed).integers(0, len(case.rows), len(case.queries))
    else:
        ids = np.argsort(case.truth, axis=1, kind="stable")[:, min(rank, len(case.rows) - 1)]
    return euclidean(case.queries, case.rows[ids]), ids


def check_exact(case: Case, distances: np.ndarray, ids: np.ndarray) -> None:
    np.testing.assert_array_equal(distances, euclidean(case.queries, case.rows[ids]))
    assert (np.abs(distances - case.exact) <= case.rounding(case.exact)).all()


@settings(max_examples=200, deadline=None)
@given(
    cases(patches=st.one_of(st.integers(1, 10), st.integers(11, 150))),
    st.sampled_from([7, 8]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([20, 8192]),
    st.integers(-1, 3),
    st.sampled_from([0, 1, 2, 7, 40]),
)
def test_any_bank_is_verified_exactly(
    case: Case, bits: int, threads: int, block: int, rank: int, basis_dim: int
) -> None:
    known = known_entries(case, rank, bits)
    before = [array.copy() for array in known]
    with mock.patch.multiple(module, _BLOCK_ROWS=block, _SHARE_ROWS=10), never_fall_back:
        verifier = QuantisedVerifier(case.rows, threads=threads, basis=basis_for(case, basis_dim), bits=bits)
        distances, ids = verifier.nearest(case.queries, *known)
    assert distances.dtype == np.float32 and ids.dtype == np.int64
    check_exact(case, distances, ids)
    # What was known is the caller's.
    assert all(np.array_equal(a, b) for a, b in zip(known, before, strict=True))


@settings(max_examples=150, deadline=None)
@given(
    cases(patches=st.integers(1, 64)),
    st.sampled_from([7, 8]),
    st.sampled_from([20, 8192]),
    st.integers(-1, 3),
    st.sampled_from([0, 1, 2, 7, 40]),
)
def test_no_excluded_row_is_nearer_than_the_known_entry(
    case: Case, bits: int, block: int, rank: int, basis_dim: int
) -> None:
    """The inequality of the proof, for every pair of a patch and a row."""
    with mock.patch.object(module, "_BLOCK_ROWS", block):
        verifier = QuantisedVerifier(case.rows, threads=1, basis=basis_for(case, basis_dim), bits=bits)
    (worker,) = verifier._workers[64]
    bounds = verifier._encode(case.queries, worker.queries)
    distances, _ = known_entries(case, rank, bits)
    lowest = bounds.lowest(distances)
    sums = np.concatenate([part[: len(case.queries)].copy() for _, part in worker._products], axis=1)
    excluded = sums < lowest[:, None]
    assert (case.truth[excluded] >= np.broadcast_to(distances[:, None], excluded.shape)[excluded]).all()


def test_a_basis_that_is_not_quite_orthonormal_excludes_no_more() -> None:
    # Longer columns make everything look farther apart: the exclusion must know.
    case = make_case("normal", "beside rows", (400, 24, 60), seed=2)
    for factor in (0.5, 1.0001, 1.3):
        basis = orthonormal(24, 8) * np.float32(factor)
        with never_fall_back:
            verifier = QuantisedVerifier(case.rows, threads=1, basis=basis)
            check_exact(case, *verifier.nearest(case.queries, *known_entries(case, 1, 0)))


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("basis_dim", [0, 200])
@pytest.mark.parametrize("rows_kind", ["normal", "corners", "outlier", "far from zero"])
def test_long_embeddings(rows_kind: str, basis_dim: int, bits: int) -> None:
    case = make_case(rows_kind, "beside rows", (200, 1536, 40), seed=1)
    with never_fall_back:
        verifier = QuantisedVerifier(case.rows, threads=1, basis=basis_for(case, basis_dim), bits=bits)
        check_exact(case, *verifier.nearest(case.queries, *known_entries(case, 1, 0)))


def test_most_rows_are_excluded_or_it_would_be_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = normal(5000, 64), normal(64, 64, seed=1)
    ids = np.argsort(all_distances(queries, rows), axis=1)[:, 1]
    measured = []
    monkeypatch.setattr(module, "euclidean", lambda a, b: (measured.append(len(a)), euclidean(a, b))[1])
    QuantisedVerifier(rows, threads=1, bits=8).nearest(queries, euclidean(queries, rows[ids]), ids)
    assert 64 <= sum(measured) < 64 * 5000 / 50


@pytest.mark.parametrize("queries_kind", ["far", "beside rows"])
def test_too_many_candidates_are_left_to_exact_search(
    monkeypatch: pytest.MonkeyPatch, queries_kind: str
) -> None:
    # All rows equally far but for a little: 8 bits cannot tell them apart.
    case = make_case("nearly equal", queries_kind, (500, 16, 20), seed=0)
    asked = []

    class Spy(ExactSearch):
        def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            asked.append(len(queries))
            return super().nearest(queries)

    monkeypatch.setattr(module, "ExactSearch", Spy)
    verifier = QuantisedVerifier(case.rows, threads=1)
    known = known_entries(case, -1, 0)
    if queries_kind == "far":
        distances, ids = verifier.nearest(case.queries, *known)
        assert asked == [20]
        assert (distances <= case.exact + case.product_rounding()).all()
        np.testing.assert_array_equal(distances, euclidean(case.queries, case.rows[ids]))
    else:
        check_exact(case, *verifier.nearest(case.queries, *known_entries(case, 0, 0)))


def test_candidates_beyond_one_portion_are_all_measured() -> None:
    case = make_case("nearly equal", "beside rows", (300, 8, 60), seed=4)
    for pairs in (1, 7, 100):
        with mock.patch.object(module, "_PAIRS_AT_ONCE", pairs), never_fall_back:
            verifier = QuantisedVerifier(case.rows, threads=1)
            check_exact(case, *verifier.nearest(case.queries, *known_entries(case, -1, 0)))


@settings(max_examples=60, deadline=None)
@given(cases(patches=st.integers(1, 30)), st.integers(-1, 1))
def test_plain_exact_search_never_loses_a_nearer_entry(case: Case, rank: int) -> None:
    known = known_entries(case, rank, 0)
    distances, ids = ExactVerifier(ExactSearch(case.rows, threads=1)).nearest(case.queries, *known)
    np.testing.assert_array_equal(distances, euclidean(case.queries, case.rows[ids]))
    assert (distances <= known[0]).all()
    assert (distances <= case.exact + case.product_rounding()).all()
