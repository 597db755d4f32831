"""The HNSW index and the neighbour lists that go into a bundle."""

from collections.abc import Callable
from pathlib import Path

import hnswlib
import numpy as np

from pcrun.manifest import SearchMeasurement
from pcrun.search import ExactSearch, HnswSearch
from pcrun.types import FloatArray, Int32Array, Int64Array

EF_CANDIDATES = (4, 8, 16, 32, 64, 128)
RECALL_WANTED = 0.98
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


def measure_search(
    index: hnswlib.Index, rows: FloatArray, images: list[FloatArray], *, efs: tuple[int, ...], threads: int
) -> list[SearchMeasurement]:
    """Compare HNSW with exact search, unverified, on the patch embeddings of some images.

    Args:
        index, rows: the index and the memory bank it holds.
        images: one (patches, dim) float32 array per image.
        efs: search widths to measure.
        threads: for both searches.
    """
    exact = ExactSearch(rows, threads=threads)
    truths = [exact.nearest(image) for image in images]
    return [_measure(HnswSearch(index, ef=ef, threads=threads), images, truths) for ef in efs]


def _measure(
    search: HnswSearch, images: list[FloatArray], truths: list[tuple[FloatArray, Int64Array]]
) -> SearchMeasurement:
    hits, patches, worst = 0, 0, 0.0
    for image, (true_distances, _) in zip(images, truths, strict=True):
        distances, _ = search.nearest(image)
        # Equal distances count as found: ties and duplicates have no single right id.
        hits += int((distances <= true_distances * (1 + 1e-5) + 1e-6).sum())
        patches += len(distances)
        true_score = float(true_distances.max())
        if true_score > 0:
            worst = max(worst, float(distances.max()) / true_score - 1)
    return SearchMeasurement(search.ef, hits / patches, worst)


def choose_ef(measured: list[SearchMeasurement]) -> int:
    """The smallest measured `ef` with the wanted recall, else the largest measured."""
    return next((m.ef for m in measured if m.recall_at_1 >= RECALL_WANTED), measured[-1].ef)


def save_index(index: hnswlib.Index, path: Path) -> None:
    """Write the index; its bytes depend on rows, parameters and hnswlib's version alone."""
    index.save_index(str(path))
