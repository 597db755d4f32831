"""The HNSW index and the neighbour lists that go into a bundle."""

from collections.abc import Callable
from pathlib import Path

import hnswlib
import numpy as np

from pcexport.memory_bank.projection import principal_components
from pcexport.memory_bank.store import ArrayRows
from pcrun.bundle.manifest import SearchMeasurement
from pcrun.machine.threads import available_cores
from pcrun.search import SearchBasis
from pcrun.search.exact import ExactSearch
from pcrun.search.hnsw import HnswSearch
from pcrun.types import AnyArray, FloatArray, Int32Array

EF_CANDIDATES = (2, 4, 8, 16, 32, 64)
# The verdict is certified at any width: this is about the part of the map below the threshold, and about how
# many patches need verification.
MEAN_ERROR_WANTED = 0.02
# Shares of the variance that the dimensions of search and of verification keep: the fewest multiples of 32
# (docs/architecture.md).
_SEARCHED_VARIANCE = 0.8
_VERIFIED_VARIANCE = 0.92
_DIM_STEP = 32
_LARGEST_SEARCH_DIM = 256
_LARGEST_BASIS_DIM = 512
_BLOCK_ROWS = 1024


def build_index(
    rows: FloatArray,
    *,
    m: int,
    ef_construction: int,
    seed: int,
    progress: Callable[[int], None] = lambda inserted: None,
) -> hnswlib.Index:
    """Insert the memory bank into an HNSW graph.

    One thread, row after row: the order of insertion shapes the graph, and two equal builds must give equal
    bytes.

    Args:
        rows: (count, dim) float32.
        m, ef_construction, seed: see `IndexSpec`.
        progress: called with the number of rows inserted so far.
    """
    index = hnswlib.Index(space="l2", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), ef_construction=ef_construction, M=m, random_seed=seed)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        index.add_items(block, np.arange(start, start + len(block)), num_threads=1)
        progress(start + len(block))
    return index


def nearest_neighbours(rows: FloatArray, b: int) -> Int32Array:
    """Ids of the `b` nearest rows of each row, itself first: N_b of Eq. 7.

    Args:
        rows: (count, dim) float32.
        b: neighbours wanted; fewer when the bank is smaller.

    Returns:
        (count, min(b, count)) int32, by increasing distance.
    """
    b = min(b, len(rows))
    half_norms = np.einsum("ij,ij->i", rows, rows) * np.float32(0.5)
    result = np.empty((len(rows), b), np.int32)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        farness = half_norms - block @ rows.T
        own = np.arange(len(block))
        farness[own, start + own] = -np.inf  # itself first, also among duplicates
        nearest = np.argpartition(farness, b - 1, axis=1)[:, :b]
        order = np.argsort(np.take_along_axis(farness, nearest, axis=1), axis=1, kind="stable")
        result[start : start + len(block)] = np.take_along_axis(nearest, order, axis=1)
    return result


def search_basis(rows: FloatArray, dim: int | None) -> SearchBasis | None:
    """Directions of search and verification: the leading principal components of the memory bank.

    Args:
        rows: (count, dim) float32.
        dim: how many for search; 0 for a search in all dimensions, None for the fewest that keep most of the
            variance.

    Returns:
        The basis; None where nothing would be saved.
    """
    if dim == 0 or (dim is not None and dim >= rows.shape[1]):
        return None
    shares, components = principal_components(ArrayRows(rows))
    kept = np.cumsum(shares)
    if dim is None:
        dim = _fewest(kept, _SEARCHED_VARIANCE, _LARGEST_SEARCH_DIM)
        if dim == 0:
            return None
    columns = max(dim, _fewest(kept, _VERIFIED_VARIANCE, _LARGEST_BASIS_DIM))
    return SearchBasis(np.ascontiguousarray(components[:, :columns], np.float32), dim)


def _fewest(kept: AnyArray, share: float, largest: int) -> int:
    """The smallest multiple of 32 below all dimensions that keeps a share of the variance, else the largest.

    0 where there is no such multiple.
    """
    candidates = range(_DIM_STEP, min(largest, len(kept) - 1) + 1, _DIM_STEP)
    return next((dim for dim in candidates if kept[dim - 1] >= share), max(candidates, default=0))


def measure_search(
    search: Callable[[int], HnswSearch], rows: FloatArray, images: list[FloatArray], *, efs: tuple[int, ...]
) -> list[SearchMeasurement]:
    """Compare HNSW with exact search, unverified, on the patch embeddings of some images.

    Args:
        search: gives the search of a width.
        rows: the memory bank.
        images: one (patches, dim) float32 array per image.
        efs: search widths to measure.
    """
    exact = ExactSearch(rows, threads=available_cores())
    truths = [exact.nearest(image)[0] for image in images]
    return [_measure(search(ef), images, truths) for ef in efs]


def _measure(search: HnswSearch, images: list[FloatArray], truths: list[FloatArray]) -> SearchMeasurement:
    hits, errors, worst = [], [], 0.0
    for image, true_distances in zip(images, truths, strict=True):
        distances, _ = search.nearest(image)
        # Equal distances count as found: ties and duplicates have no single right id.
        hits.append(distances <= true_distances * (1 + 1e-5) + 1e-6)
        nonzero = true_distances > 0
        errors.append(distances[nonzero] / true_distances[nonzero] - 1)
        true_score = float(true_distances.max())
        if true_score > 0:
            worst = max(worst, float(distances.max()) / true_score - 1)
    all_errors = np.concatenate(errors)
    mean_error = float(all_errors.mean(dtype=np.float64)) if len(all_errors) else 0.0
    return SearchMeasurement(search.ef, float(np.mean(np.concatenate(hits))), worst, max(0.0, mean_error))


def choose_ef(measured: list[SearchMeasurement]) -> int:
    """The smallest measured `ef` with the wanted mean error, else the largest measured."""
    errors = {m.ef: m.mean_distance_error for m in measured}
    return next(
        (ef for ef, error in errors.items() if error is not None and error <= MEAN_ERROR_WANTED),
        measured[-1].ef,
    )


def save_index(index: hnswlib.Index, path: Path) -> None:
    """Write the index; its bytes depend on rows, parameters and hnswlib's version alone."""
    index.save_index(str(path))
