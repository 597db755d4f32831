"""Projection for the coreset's selection: what each method keeps of the distances."""

from __future__ import annotations

import numpy as np
import pytest

from pcexport.memory_bank import projection
from pcexport.memory_bank.projection import fit_projection
from pcexport.memory_bank.store import ArrayRows


def correlated(count: int = 600, dim: int = 48) -> np.ndarray:
    """Rows whose variance falls geometrically over rotated directions, around a mean far from zero."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    scales = 0.8 ** np.arange(dim)
    return (rng.standard_normal((count, dim)) * scales @ rotation + 30).astype(np.float32)


def distance_errors(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Relative error of the distances between consecutive rows."""
    true = np.linalg.norm(np.diff(rows, axis=0), axis=1)
    return np.abs(np.linalg.norm(np.diff(rows @ matrix, axis=0), axis=1) / true - 1)


def fit(method: str, rows: np.ndarray, dim: int, seed: int = 0) -> np.ndarray:
    matrix = fit_projection(method, ArrayRows(rows), dim, seed=seed)
    assert matrix is not None and matrix.shape == (rows.shape[1], dim) and matrix.dtype == np.float32
    return matrix


def test_pca_keeps_distances_of_correlated_rows_better_than_random() -> None:
    rows = correlated()
    pca = distance_errors(rows, fit("pca", rows, 12)).mean()
    random = distance_errors(rows, fit("random", rows, 12)).mean()
    assert pca < random / 5


def test_pca_columns_are_orthonormal() -> None:
    matrix = fit("pca", correlated(), 12)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(12), atol=1e-5)


def test_pca_spans_the_leading_right_singular_vectors() -> None:
    rows = correlated()
    matrix = fit("pca", rows, 5)
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    leading = np.linalg.svd(centred, full_matrices=False)[2][:5].T
    np.testing.assert_allclose(np.abs(leading.T @ matrix), np.eye(5), atol=1e-3)


def test_pca_of_more_rows_than_it_reads_still_finds_the_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = correlated(4000)
    full = fit("pca", rows, 4)
    monkeypatch.setattr(projection, "_PCA_ROWS", 1000)
    monkeypatch.setattr(projection, "_PCA_READ_ROWS", 100)
    sampled = fit("pca", rows, 4)
    # Cosines of the angles between the two subspaces.
    assert np.linalg.svd(full.T @ sampled)[1].min() > 0.97


def test_random_projection_keeps_squared_distances_on_average() -> None:
    rows = np.random.default_rng(1).standard_normal((200, 256)).astype(np.float32)
    true = np.square(np.diff(rows, axis=0)).sum(axis=1)
    kept = np.square(np.diff(rows @ fit("random", rows, 128), axis=0)).sum(axis=1)
    assert np.mean(kept / true) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("method, target", [("none", 4), ("pca", 48), ("random", 48), ("pca", 49)])
def test_nothing_is_projected_when_it_would_not_shrink(method: str, target: int) -> None:
    assert fit_projection(method, ArrayRows(correlated()), target, seed=0) is None


@pytest.mark.parametrize("method", ["pca", "random"])
def test_equal_rows_and_seed_give_an_equal_matrix(method: str) -> None:
    rows = correlated()
    np.testing.assert_array_equal(fit(method, rows, 7), fit(method, rows.copy(), 7))


def test_the_seed_changes_the_random_matrix_alone() -> None:
    rows = correlated()
    assert not np.array_equal(fit("random", rows, 7, seed=0), fit("random", rows, 7, seed=1))
    np.testing.assert_array_equal(fit("pca", rows, 7, seed=0), fit("pca", rows, 7, seed=1))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pca_of_fewer_rows_than_dimensions_is_finite_and_orthonormal(count: int) -> None:
    matrix = fit("pca", correlated(count), 12)
    assert np.isfinite(matrix).all()
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(12), atol=1e-5)
