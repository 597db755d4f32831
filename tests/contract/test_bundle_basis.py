"""Bundles whose index looks in fewer dimensions: the directions are checked, and the index against them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import INDEX_NAME, SEARCH_BASIS_NAME
from pcrun.detector import AnomalyDetector
from tests.conftest import BundleMaker
from tests.contract.damage import (
    NO_DEADLINE,
    OTHER_DIM,
    OTHER_SEED,
    Refusal,
    edit_manifest,
    flipped,
    forge,
    load_or_message,
    saved,
)

pytest.importorskip("hnswlib", reason="hnswlib is not installed: the tiny bundle is made with it")
pytest.importorskip("onnx", reason="onnx is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import make_index, npy_bytes, smooth_image, with_defect

Change = Callable[[np.ndarray], np.ndarray]
SAYS = "the manifest says float32 [8, 3]"


def basis_of(bundle: Path) -> np.ndarray:
    return np.load(bundle / SEARCH_BASIS_NAME)


def write_index(bundle: Path, rows: np.ndarray, tmp_path: Path) -> None:
    """An index over these rows, in the place of the bundle's."""
    make_index(np.ascontiguousarray(rows, np.float32)).save_index(str(tmp_path / "i"))
    forge(bundle, INDEX_NAME, (tmp_path / "i").read_bytes())


def test_it_is_what_the_index_is_over(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    assert loaded.search_basis is not None
    basis = loaded.search_basis.columns
    assert basis.shape == (8, 3) and basis.dtype == np.float32
    assert not basis.flags.writeable
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-6)
    assert loaded.manifest.search.dim == 3


def test_verification_may_have_more_directions_than_search(made_bundle: BundleMaker) -> None:
    path = made_bundle(search_dim=2, basis_dim=5)
    loaded = Bundle.load(path)
    assert loaded.search_basis is not None
    assert loaded.search_basis.search.shape == (8, 2) and loaded.search_basis.columns.shape == (8, 5)
    for seed in range(4):
        image = with_defect(smooth_image(np.random.default_rng(seed)))
        truth = AnomalyDetector.load(loaded, provider="cpu", threads=1, exactness="full")(image)
        for search in ("quantised", "hnsw"):
            scored = AnomalyDetector.load(loaded, provider="cpu", threads=1, search=search)(image)
            assert scored.image_score == pytest.approx(truth.image_score, rel=1e-6)
            assert truth.mask.any() and np.array_equal(scored.mask, truth.mask)


def with_value(value: float) -> Change:
    def change(basis: np.ndarray) -> np.ndarray:
        basis = basis.copy()
        basis[5, 1] = value
        return basis

    return change


def turned(basis: np.ndarray) -> np.ndarray:
    """Other directions in the same subspace: distances are the same, coordinates are not."""
    return np.ascontiguousarray(basis @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32))


BASIS_CHANGES: dict[str, tuple[Change, str]] = {
    "NaN": (with_value(math.nan), "orthonormal"),
    "infinity": (with_value(math.inf), "orthonormal"),
    "overflow": (with_value(1e30), "orthonormal"),
    "not normal": (lambda basis: basis * np.float32(1.01), "orthonormal"),
    "all zero": (np.zeros_like, "orthonormal"),
    "not orthogonal": (lambda basis: np.ascontiguousarray(basis[:, [0, 1, 1]]), "orthonormal"),
    "hardly orthogonal": (lambda basis: basis + np.float32(1e-3), "orthonormal"),
    "transposed": (lambda basis: np.ascontiguousarray(basis.T), f"float32 [3, 8], {SAYS}"),
    "fortran order": (np.asfortranarray, f"holds float32 [8, 3] in Fortran order, {SAYS}"),
    "float64": (lambda basis: basis.astype(np.float64), f"holds float64 [8, 3], {SAYS}"),
    "fewer": (lambda basis: basis[:, :2], f"holds float32 [8, 2], {SAYS}"),
    "shorter": (lambda basis: basis[:7], f"holds float32 [7, 3], {SAYS}"),
    "flat": (np.ravel, f"holds float32 [24], {SAYS}"),
}


@pytest.mark.parametrize("change", BASIS_CHANGES)
def test_a_forged_basis_is_refused(bundle: Path, refusal: Refusal, change: str) -> None:
    damage, words = BASIS_CHANGES[change]
    data = damage(basis_of(bundle))
    forge(bundle, SEARCH_BASIS_NAME, saved(data))
    message = refusal(bundle)
    assert message.startswith(SEARCH_BASIS_NAME) and words in message


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"no array at all" * 10])
def test_a_basis_that_is_no_array_is_refused(bundle: Path, refusal: Refusal, damage: bytes) -> None:
    forge(bundle, SEARCH_BASIS_NAME, damage)
    assert refusal(bundle).startswith(SEARCH_BASIS_NAME)


@pytest.mark.parametrize("change", ["turned", "other seed"])
def test_the_basis_of_another_index_is_refused(
    bundle: Path, made_bundle: BundleMaker, refusal: Refusal, change: str
) -> None:
    other = turned(basis_of(bundle)) if change == "turned" else basis_of(made_bundle(**OTHER_SEED))
    forge(bundle, SEARCH_BASIS_NAME, npy_bytes(other))
    message = refusal(bundle)
    assert message.startswith(INDEX_NAME) and "another vector than the memory bank" in message


def test_the_basis_of_longer_rows_is_refused(
    bundle: Path, made_bundle: BundleMaker, refusal: Refusal
) -> None:
    forge(bundle, SEARCH_BASIS_NAME, (made_bundle(**OTHER_DIM) / SEARCH_BASIS_NAME).read_bytes())
    assert f"holds float32 [12, 3], {SAYS}" in refusal(bundle)


def test_an_index_over_the_full_rows_is_refused(bundle: Path, refusal: Refusal, tmp_path: Path) -> None:
    write_index(bundle, Bundle.load(bundle).memory_bank, tmp_path)
    assert "holds 200 vectors of 8 dimensions, the memory bank 200 of 3" in refusal(bundle)


@pytest.mark.parametrize("row", [0, 57, 199])
def test_one_vector_that_differs_is_refused(bundle: Path, refusal: Refusal, tmp_path: Path, row: int) -> None:
    loaded = Bundle.load(bundle)
    reduced = loaded.memory_bank @ loaded.search_basis.search
    reduced[row, 2] += 0.01 * np.abs(loaded.memory_bank).max()
    write_index(bundle, reduced, tmp_path)
    assert f"another vector than the memory bank under label {row}" in refusal(bundle)


def test_nan_in_the_index_is_refused(bundle: Path, refusal: Refusal, tmp_path: Path) -> None:
    loaded = Bundle.load(bundle)
    reduced = loaded.memory_bank @ loaded.search_basis.search
    reduced[3, 0] = math.nan
    write_index(bundle, reduced, tmp_path)
    assert "another vector than the memory bank under label 3" in refusal(bundle)


def test_another_rounding_of_the_same_product_is_accepted(bundle: Path, tmp_path: Path) -> None:
    loaded = Bundle.load(bundle)
    assert loaded.search_basis is not None
    reduced = loaded.memory_bank.astype(np.float64) @ loaded.search_basis.search.astype(np.float64)
    write_index(bundle, np.nextafter(reduced.astype(np.float32), np.float32(np.inf)), tmp_path)
    assert Bundle.load(bundle).digest != loaded.digest


def test_a_basis_that_is_not_asked_for_is_no_part_of_the_search(bundle: Path, tmp_path: Path) -> None:
    """As with any other file that the manifest lists: its hash counts, its content does not."""
    rows = Bundle.load(bundle).memory_bank
    edit_manifest(bundle, lambda manifest: manifest["search"].pop("dim"))
    write_index(bundle, rows, tmp_path)
    assert Bundle.load(bundle).search_basis is None


@settings(NO_DEADLINE, max_examples=40)
@given(data=st.data())
def test_a_forged_flip_is_refused_or_changes_no_image_score(bundle: Path, data: st.DataObject) -> None:
    image = with_defect(smooth_image(np.random.default_rng(5)))
    truth = AnomalyDetector.load(bundle, provider="cpu", threads=1, exactness="full")(image)
    name = data.draw(st.sampled_from([SEARCH_BASIS_NAME, INDEX_NAME]))
    original = (bundle / name).read_bytes()
    position = data.draw(st.integers(0, min(400, len(original) - 1)) | st.integers(0, len(original) - 1))
    forge(bundle, name, flipped(original, position, data.draw(st.integers(0, 7))))
    loaded = load_or_message(bundle)
    if isinstance(loaded, Bundle):
        for options in ({"search": "quantised"}, {"ef": 1}):
            scored = AnomalyDetector.load(loaded, provider="cpu", threads=1, **options)(image)
            assert scored.image_score == pytest.approx(truth.image_score, rel=1e-6)
            assert np.array_equal(scored.mask, truth.mask)
    forge(bundle, name, original)
