"""From a bundle and the settings of a run to a scorer: opens the search engine and the verifier."""

from pcrun.backends.session import search_provider
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.files import private_file
from pcrun.bundle.manifest import INDEX_NAME, Manifest
from pcrun.errors import BackendError, BundleError
from pcrun.scoring.certify import ExactVerifier, Verifier
from pcrun.scoring.heatmap import MapGeometry
from pcrun.scoring.scorer import PatchCoreScorer
from pcrun.search import PatchSearch, SearchBasis
from pcrun.search.eight_bit import quantised_problem
from pcrun.search.exact import ExactSearch
from pcrun.search.graph import GraphSearch
from pcrun.search.hnsw import HnswSearch, load_hnsw_index
from pcrun.search.quantised import QuantisedSearch
from pcrun.search.verifier import QuantisedVerifier
from pcrun.tuning.profile import RunSettings
from pcrun.types import FloatArray, Int32Array


def open_scorer(bundle: Bundle, settings: RunSettings, *, exactness: str) -> PatchCoreScorer:
    """The scorer of a bundle with the engine that the settings name.

    Raises:
        BackendError: the engine cannot be used on this machine.
        BundleError: the bundle has not what the engine needs.
        ValueError: the engine does not fit the exactness.
    """
    search = _open_search(bundle, settings)
    verifier = None if search.exact or exactness == "none" else _open_verifier(bundle, settings)
    return PatchCoreScorer(
        bundle.memory_bank,
        search,
        map_geometry(bundle.manifest),
        exactness=exactness,
        verifier=verifier,
        neighbours=bundle.neighbours,
    )


def open_bank_scorer(
    rows: FloatArray,
    geometry: MapGeometry,
    *,
    threads: int,
    basis: SearchBasis | None,
    neighbours: Int32Array | None,
) -> PatchCoreScorer:
    """A scorer for a memory bank that is in no bundle, by the fastest certified means without an index.

    Args:
        rows: (count, dim) float32.
        geometry: of the anomaly map.
        threads: of search and verification.
        basis: of any bank, or None: only speed depends on it.
        neighbours: (count, b) int32 for Eq. 7, or None.
    """
    if quantised_problem(rows):
        exact = ExactSearch(rows, threads=threads)
        return PatchCoreScorer(rows, exact, geometry, exactness="full", neighbours=neighbours)
    return PatchCoreScorer(
        rows,
        QuantisedSearch(rows, threads=threads, basis=basis.search if basis else None),
        geometry,
        verifier=QuantisedVerifier(rows, threads=threads, basis=basis.columns if basis else None),
        neighbours=neighbours,
    )


def map_geometry(manifest: Manifest) -> MapGeometry:
    """Sizes of a bundle's grid and map."""
    grid_hw = (manifest.embedding.grid_height, manifest.embedding.grid_width)
    return MapGeometry(grid_hw, manifest.preprocess.input_hw, manifest.scoring.map_sigma_px)


def _open_search(bundle: Bundle, settings: RunSettings) -> PatchSearch:
    rows, threads = bundle.memory_bank, settings.search_threads
    if settings.search == "exact":
        return ExactSearch(rows, threads=threads)
    if settings.search == "exact_graph":
        return GraphSearch(rows, provider=search_provider(settings.provider), threads=threads)
    if settings.search == "hnsw":
        return _open_hnsw(bundle, settings)
    problem = quantised_problem(rows)
    if problem:
        raise BackendError(f"Quantised search cannot be used: {problem}. Choose another --search.")
    basis = bundle.search_basis.search if bundle.search_basis else None
    return QuantisedSearch(rows, threads=threads, basis=basis)


def _open_hnsw(bundle: Bundle, settings: RunSettings) -> HnswSearch:
    if bundle.manifest.memory_bank.index is None:
        raise BundleError(
            f"{bundle.path} holds no HNSW index. Expected one for `--search hnsw`; choose another, or build "
            "with `--index hnsw`."
        )
    basis = bundle.search_basis.search if bundle.search_basis else None
    count, dim = bundle.memory_bank.shape if basis is None else (len(bundle.memory_bank), basis.shape[1])
    # hnswlib loads by path: it gets a copy of the verified bytes, which nobody can change in between.
    with private_file(bundle.read(INDEX_NAME)) as path:
        index = load_hnsw_index(path, count=count, dim=dim)
    ef = settings.ef or bundle.manifest.search.ef
    return HnswSearch(index, bundle.memory_bank, ef=ef, threads=settings.search_threads, basis=basis)


def _open_verifier(bundle: Bundle, settings: RunSettings) -> Verifier:
    if quantised_problem(bundle.memory_bank):
        # One thread: woken BLAS threads would disturb the embedder at the next frame.
        return ExactVerifier(ExactSearch(bundle.memory_bank, threads=1))
    basis = bundle.search_basis.columns if bundle.search_basis else None
    return QuantisedVerifier(bundle.memory_bank, threads=settings.search_threads, basis=basis)
