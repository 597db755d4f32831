"""The memory bank of a bundle: coreset, index, neighbour lists."""

from dataclasses import dataclass
from pathlib import Path

import hnswlib
import numpy as np

from pcexport.bundle_writer import write_npy
from pcexport.config import BuildConfig, parse_search_dim
from pcexport.memory_bank.coreset import Coreset, Progress, coreset_size, random_coreset, select_coreset
from pcexport.memory_bank.embed import EmbeddedImages
from pcexport.memory_bank.index import (
    EF_CANDIDATES,
    build_index,
    choose_ef,
    measure_search,
    nearest_neighbours,
    save_index,
    search_basis,
)
from pcexport.progress import Step
from pcrun.bundle.manifest import (
    INDEX_NAME,
    MEMORY_BANK_NAME,
    NEIGHBOURS_NAME,
    SEARCH_BASIS_NAME,
    CoresetSpec,
    IndexSpec,
    MemoryBankSpec,
    SearchSpec,
)
from pcrun.search import SearchBasis
from pcrun.search.hnsw import HnswSearch
from pcrun.types import FloatArray, Int32Array, Int64Array

_MEASURED_IMAGES = 24


@dataclass(frozen=True)
class MemoryBank:
    """Chosen rows, in the order chosen, and how they were chosen.

    Attributes:
        rows: (count, dim) float32.
        spec: how they were chosen.
        ids: (count,) int64, their places among the rows of all images.
    """

    rows: FloatArray
    spec: MemoryBankSpec
    ids: Int64Array


def bank_size(embedded: EmbeddedImages, images: Int64Array, config: BuildConfig) -> int:
    """Number of entries of a memory bank made from the patches of some images."""
    candidates = len(images) * embedded.patches
    return coreset_size(candidates, ratio=config.coreset_ratio, size=config.coreset_size)


def choose_memory_bank(
    embedded: EmbeddedImages,
    images: Int64Array,
    config: BuildConfig,
    progress: Progress = lambda chosen: None,
) -> MemoryBank:
    """Select the coreset among the patches of some images and fetch its unprojected rows."""
    candidates = embedded.candidates(images)
    n = bank_size(embedded, images, config)
    if config.coreset == "random":
        coreset = random_coreset(len(candidates), n, seed=config.seed)
    else:
        coreset = select_coreset(candidates, n, seed=config.seed, threads=config.threads, progress=progress)
    ids = embedded.rows_of(images)[coreset.ids]
    rows = embedded.full.gather(ids)
    return MemoryBank(rows, _bank_spec(rows, coreset, len(candidates), embedded.projected.dim, config), ids)


def _bank_spec(
    rows: FloatArray, coreset: Coreset, candidates: int, dim: int, config: BuildConfig
) -> MemoryBankSpec:
    index = None
    if config.index == "hnsw":
        index = IndexSpec(config.hnsw_m, config.hnsw_ef_construction, config.seed)
    chosen = CoresetSpec(config.coreset, candidates, dim, config.seed, coreset.covering_radius)
    return MemoryBankSpec(count=len(rows), dim=rows.shape[1], coreset=chosen, index=index)


@dataclass(frozen=True)
class BankIndex:
    """How neighbours are looked for in a bank.

    Attributes:
        basis: directions of search and verification; None for all dimensions.
        graph: HNSW over the rows times the basis; None for a bundle without index.
    """

    basis: SearchBasis | None
    graph: hnswlib.Index | None


def write_memory_bank(bank: MemoryBank, config: BuildConfig, folder: Path, step: Step) -> BankIndex:
    """Write the rows, the index with its basis and, for the reweighted score, the neighbour lists."""
    write_npy(folder / MEMORY_BANK_NAME, bank.rows)
    if config.image_score == "reweighted":
        write_npy(folder / NEIGHBOURS_NAME, neighbour_lists(bank.rows, config))
    basis = search_basis(bank.rows, parse_search_dim(config.search_dim))
    if basis is not None:
        write_npy(folder / SEARCH_BASIS_NAME, basis.columns)
    if bank.spec.index is None:
        return BankIndex(basis, None)
    graph = build_index(
        bank.rows if basis is None else bank.rows @ basis.search,
        m=config.hnsw_m,
        ef_construction=config.hnsw_ef_construction,
        seed=config.seed,
        progress=step.advance_to,
    )
    save_index(graph, folder / INDEX_NAME)
    return BankIndex(basis, graph)


def neighbour_lists(rows: FloatArray, config: BuildConfig) -> Int32Array:
    """N_b of every row for Eq. 7."""
    return nearest_neighbours(rows, config.neighbours)


def measure_bank_search(
    index: BankIndex,
    bank: MemoryBank,
    embedded: EmbeddedImages,
    images: Int64Array,
    config: BuildConfig,
    threads: int,
) -> SearchSpec:
    """Choose `ef` by measurement on some normal images.

    Those that are not in the bank, where there are any.
    """
    basis = index.basis
    dim, basis_dim = (basis.search_dim, basis.columns.shape[1]) if basis else (None, None)
    if index.graph is None:
        return SearchSpec(config.ef or EF_CANDIDATES[-1], (), images=0, dim=dim, basis_dim=basis_dim)
    sample = images[np.linspace(0, len(images) - 1, min(_MEASURED_IMAGES, len(images))).astype(np.int64)]
    efs = tuple(sorted({*EF_CANDIDATES, *([config.ef] if config.ef else [])}))
    arrays = [embedded.image(int(i)) for i in sample]

    def search(ef: int) -> HnswSearch:
        return HnswSearch(
            index.graph, bank.rows, ef=ef, threads=threads, basis=basis.search if basis else None
        )

    measured = measure_search(search, bank.rows, arrays, efs=efs)
    ef = config.ef or choose_ef(measured)
    return SearchSpec(ef, tuple(measured), images=len(arrays), dim=dim, basis_dim=basis_dim)
