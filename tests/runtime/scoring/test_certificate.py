"""The promise: whatever engine runs and whatever it misses, image score and mask are those of brute force.

Every engine, also a damaged and a lying one, against float64 on banks that try to break it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pcrun.scoring.certify import ExactVerifier, Verifier
from pcrun.scoring.heatmap import MapGeometry
from pcrun.scoring.scorer import ImageScores, PatchCoreScorer
from pcrun.search import quantised
from pcrun.search import verifier as verifier_module
from pcrun.search.exact import ExactSearch
from pcrun.search.graph import GraphSearch
from pcrun.search.hnsw import HnswSearch
from pcrun.search.quantised import QuantisedSearch
from pcrun.search.verifier import QuantisedVerifier
from tests.runtime.banks import (
    FLOAT32,
    Case,
    CountingVerifier,
    RandomSearch,
    cases,
    make_case,
    map_rounding,
    neighbour_lists,
    orthonormal,
)

hnswlib = pytest.importorskip("hnswlib", reason="hnswlib is not installed: one of the engines needs it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: most engines need it")


def hnsw(
    rows: np.ndarray,
    *,
    ef: int = 1,
    kept: slice = slice(None),
    labels: np.ndarray | None = None,
    dim: int = 0,
) -> HnswSearch:
    """A poor graph over some of the rows, with any valid labels."""
    basis = orthonormal(rows.shape[1], dim) if 0 < dim < rows.shape[1] else None
    seen = (rows if basis is None else rows @ basis)[kept]
    index = hnswlib.Index(space="l2", dim=seen.shape[1])
    index.init_index(max_elements=len(seen), M=2, ef_construction=4, random_seed=0)
    index.add_items(seen, np.arange(len(rows))[kept] if labels is None else labels, num_threads=1)
    return HnswSearch(index, rows, ef=ef, threads=1, basis=basis)


def shuffled(rows: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(rows))


def quantised_search(rows: np.ndarray, *, bits: int, threads: int = 1, dim: int = 0) -> QuantisedSearch:
    basis = orthonormal(rows.shape[1], dim) if 0 < dim < rows.shape[1] else None
    return QuantisedSearch(rows, threads=threads, basis=basis, bits=bits)


def quantised_verifier(rows: np.ndarray, *, bits: int, threads: int = 1, dim: int = 0) -> QuantisedVerifier:
    basis = orthonormal(rows.shape[1], dim) if 0 < dim < rows.shape[1] else None
    return QuantisedVerifier(rows, threads=threads, basis=basis, bits=bits)


ENGINES: dict[str, Callable[[np.ndarray], Any]] = {
    "quantised": lambda rows: quantised_search(rows, bits=8),
    "quantised, 7 bits, two threads": lambda rows: quantised_search(rows, bits=7, threads=2),
    "quantised, 2 dimensions": lambda rows: quantised_search(rows, bits=8, dim=2),
    "hnsw, ef 1": hnsw,
    "hnsw, wide": lambda rows: hnsw(rows, ef=50),
    "hnsw, half of the rows": lambda rows: hnsw(rows, kept=slice(0, (len(rows) + 1) // 2)),
    "hnsw, labels permuted": lambda rows: hnsw(rows, labels=shuffled(rows)),
    "hnsw, one label for all": lambda rows: hnsw(rows, kept=slice(0, 1), labels=np.zeros(1, int)),
    "hnsw, 2 dimensions": lambda rows: hnsw(rows, dim=2),
    "random": RandomSearch,
    "exact": lambda rows: ExactSearch(rows, threads=1),
    "exact_graph": lambda rows: GraphSearch(rows, provider="cpu", threads=1),
}
VERIFIERS: dict[str, Callable[[np.ndarray], Verifier]] = {
    "8 bits": lambda rows: quantised_verifier(rows, bits=8),
    "7 bits, two threads": lambda rows: quantised_verifier(rows, bits=7, threads=2),
    "8 bits, 2 dimensions": lambda rows: quantised_verifier(rows, bits=8, threads=2, dim=2),
    "7 bits, 5 dimensions": lambda rows: quantised_verifier(rows, bits=7, dim=5),
    "exact": lambda rows: ExactVerifier(ExactSearch(rows, threads=1)),
}

# Not square, no multiples of each other, and outputs smaller than the grid.
grids = st.tuples(st.integers(1, 9), st.integers(1, 5))
outputs = st.tuples(st.integers(1, 40), st.integers(1, 30))
geometries = st.builds(MapGeometry, grids, outputs, st.sampled_from([0.0, 0.7, 2.0]))


@dataclass(frozen=True)
class Image:
    """A case with the geometry of its map, and what brute force may say with all rounding there is.

    Attributes:
        low, high: (patches,) float32, no float32 arithmetic gives smaller or larger distances.
    """

    case: Case
    geometry: MapGeometry
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, case: Case, geometry: MapGeometry, *, products: bool) -> "Image":
        """`products`: whether float32 matrix products may have chosen the rows."""
        rounding = case.rounding(case.exact)
        low = np.maximum(case.exact - rounding, 0)
        high = case.exact + (case.product_rounding() if products else rounding)
        return cls(case, geometry, low.astype(np.float32), np.nextafter(high.astype(np.float32), np.inf))

    def threshold(self, place: float) -> float:
        """Below, at, within and above all values of the map."""
        heat = self.geometry.draw(self.case.exact.astype(np.float32))
        if place < 0:
            return float(heat.min()) / 2 - 1
        return 2 * float(heat.max()) + 1 if place > 1 else float(np.quantile(heat, place, method="nearest"))

    def check_image_score(self, score: float) -> None:
        assert self.low.max() <= score <= self.high.max()

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Maps below and above all that brute force may draw: larger scores lower no pixel."""
        slack = map_rounding(self.high)
        return self.geometry.draw(self.low) - slack, self.geometry.draw(self.high) + slack

    def check_map(self, heat: np.ndarray, threshold: float) -> None:
        least, most = self.bounds()
        mask = heat > threshold
        assert (mask | ~(least > threshold)).all() and (~mask | (most > threshold)).all()
        assert (heat >= least).all() and (heat[mask] <= most[mask]).all()


@st.composite
def images(draw: st.DrawFn, **options: Any) -> tuple[Case, MapGeometry]:
    geometry = draw(geometries)
    patches = geometry.grid_hw[0] * geometry.grid_hw[1]
    return draw(cases(patches=st.just(patches), **options)), geometry


def score(
    drawn: tuple[Case, MapGeometry],
    engine: str,
    verifier: str,
    exactness: str,
    threshold: float,
    neighbours: np.ndarray | None = None,
) -> tuple[ImageScores, tuple[float, float]]:
    """Scores and peaks by one engine; what it verified is what it counted."""
    case, geometry = drawn
    counting = CountingVerifier(VERIFIERS[verifier](case.rows))
    search = ENGINES[engine](case.rows)
    scorer = PatchCoreScorer(
        case.rows, search, geometry, exactness=exactness, verifier=counting, neighbours=neighbours
    )
    scores = scorer.score(case.queries, pixel_threshold=threshold)
    assert scores.verified_patches == (len(case.queries) if search.exact else counting.asked)
    assert scores.verified_patches <= len(case.queries)
    return scores, scorer.peaks(case.queries)


def products_decide(engine: str, verifier: str) -> bool:
    return "exact" in (engine.partition("_")[0], verifier)


engines, verifiers = st.sampled_from(sorted(ENGINES)), st.sampled_from(sorted(VERIFIERS))
places = st.sampled_from([-1.0, 0.0, 0.5, 0.9, 1.0, 2.0])
blocks = st.sampled_from([20, 8192])


@settings(max_examples=250, deadline=None)
@given(images(), engines, verifiers, places, blocks, st.booleans())
def test_image_score_and_mask_are_those_of_brute_force(
    drawn: tuple[Case, MapGeometry], engine: str, verifier: str, place: float, block: int, fall_back: bool
) -> None:
    image = Image.of(*drawn, products=products_decide(engine, verifier) or fall_back)
    threshold = image.threshold(place)
    share = verifier_module._MAX_CANDIDATE_SHARE if fall_back else 1e9
    with (
        mock.patch.object(quantised, "_BLOCK_ROWS", block),
        mock.patch.multiple(verifier_module, _BLOCK_ROWS=block, _SHARE_ROWS=7, _MAX_CANDIDATE_SHARE=share),
    ):
        scores, (peak_score, peak_map) = score(drawn, engine, verifier, "mask", threshold)
    image.check_image_score(scores.image_score)
    image.check_map(scores.anomaly_map, threshold)
    assert scores.anomaly_map.dtype == np.float32
    # What thresholds are chosen from is exact, whatever the threshold is.
    image.check_image_score(peak_score)
    least, most = image.bounds()
    assert least.max() <= peak_map <= most.max()


@settings(max_examples=60, deadline=None)
@given(images(), engines, verifiers)
def test_at_image_the_image_score_alone_is_certified(
    drawn: tuple[Case, MapGeometry], engine: str, verifier: str
) -> None:
    image = Image.of(*drawn, products=True)
    scores, _ = score(drawn, engine, verifier, "image", 0.0)
    image.check_image_score(scores.image_score)
    assert (scores.patch_scores.ravel() >= image.low).all()
    assert (scores.anomaly_map >= image.bounds()[0]).all()


def reweighted_scores(case: Case, neighbours: np.ndarray) -> list[float]:
    """Eq. 7 in float64, for every patch and entry that are the right ones to rounding: ties have several."""
    slack = case.product_rounding()
    largest = case.exact.max()
    values = []
    for patch in np.flatnonzero(case.exact + slack >= largest - slack[case.exact.argmax()]):
        for entry in np.flatnonzero(case.truth[patch] <= case.exact[patch] + slack[patch]):
            to_support = case.truth[patch][neighbours[entry]]
            shares = np.exp(to_support - to_support.max())
            values.append((1 - shares[0] / shares.sum()) * case.truth[patch, entry])
    return values


@settings(max_examples=120, deadline=None)
@given(
    images(
        counts=st.one_of(st.integers(1, 3), st.integers(4, 60)),
        scales=st.sampled_from([1e-3, 1.0, 10.0]),
    ),
    engines,
    verifiers,
    st.sampled_from(["image", "mask"]),
    st.integers(1, 9),
)
def test_reweighted_image_scores_are_those_of_brute_force(
    drawn: tuple[Case, MapGeometry], engine: str, verifier: str, exactness: str, b: int
) -> None:
    case = drawn[0]
    neighbours = neighbour_lists(case.rows, b)  # fewer than b where the bank is smaller
    scores, (peak_score, _) = score(drawn, engine, verifier, exactness, 0.0, neighbours)
    # A distance that is off by some share moves its weight by so much times the distance.
    largest = float(case.truth.max())
    slack = case.product_rounding().max() * (1 + largest) + 64 * FLOAT32 * largest * (1 + largest)
    admissible = reweighted_scores(case, neighbours)
    assert min(abs(scores.image_score - value) for value in admissible) <= slack
    assert min(abs(peak_score - value) for value in admissible) <= slack


HARD = {
    "one row": ("normal", "far", (1, 8, 45)),
    "all patches equal": ("normal", "all equal", (100, 8, 45)),
    "queries equal to rows": ("normal", "rows", (200, 8, 45)),
    "ties": ("integers", "between rows", (200, 3, 45)),
    "duplicates": ("duplicates", "rows", (200, 8, 45)),
    "a constant bank": ("constant", "far", (50, 8, 45)),
    "one dimension": ("normal", "beside rows", (200, 1, 45)),
    "an outlier": ("outlier", "beside rows", (300, 64, 45)),
    "far outside the grid": ("normal", "far", (300, 64, 45)),
    "far from the origin": ("far from zero", "beside rows", (300, 64, 45)),
    "long embeddings": ("normal", "beside rows", (300, 1100, 45)),
}


@pytest.mark.parametrize("engine", sorted(ENGINES))
@pytest.mark.parametrize("name", sorted(HARD))
def test_hard_cases(name: str, engine: str) -> None:
    rows_kind, queries_kind, shape = HARD[name]
    drawn = make_case(rows_kind, queries_kind, shape, seed=7), MapGeometry((9, 5), (31, 22), 1.5)
    image = Image.of(*drawn, products=True)
    threshold = image.threshold(0.8)
    scores, _ = score(drawn, engine, "8 bits", "mask", threshold)
    image.check_image_score(scores.image_score)
    image.check_map(scores.anomaly_map, threshold)


@pytest.mark.parametrize("engine", sorted(set(ENGINES) - {"exact", "exact_graph", "hnsw, wide"}))
def test_without_the_certificate_the_verdict_would_be_another(engine: str) -> None:
    """Else the tests above would say nothing about this engine."""
    drawn = make_case("normal", "beside rows", (300, 17, 45), seed=3), MapGeometry((9, 5), (31, 22), 1.5)
    image = Image.of(*drawn, products=False)
    wrong = 0
    for seed in range(20):
        drawn = make_case("normal", "beside rows", (300, 17, 45), seed=seed), drawn[1]
        image = Image.of(*drawn, products=False)
        search = ENGINES[engine](drawn[0].rows)
        trusting = PatchCoreScorer(drawn[0].rows, search, drawn[1], exactness="none")
        trusted = trusting.score(drawn[0].queries, pixel_threshold=image.threshold(0.9))
        wrong += (trusted.patch_scores.ravel() > image.high).any()
    assert wrong > 0


@settings(max_examples=60, deadline=None)
@given(images(), st.sampled_from([0.5, 0.9]))
@example((make_case("normal", "beside rows", (300, 17, 45), 3), MapGeometry((9, 5), (31, 22), 1.5)), 0.9)
def test_all_engines_agree(drawn: tuple[Case, MapGeometry], place: float) -> None:
    image = Image.of(*drawn, products=False)
    threshold = image.threshold(place)
    least, most = image.bounds()
    sure = (least > threshold) | (most <= threshold)
    with mock.patch.object(verifier_module, "_MAX_CANDIDATE_SHARE", 1e9):
        results = [
            score(drawn, engine, "8 bits", "mask", threshold)[0]
            for engine in sorted(set(ENGINES) - {"exact", "exact_graph"})
        ]
    for other in results[1:]:
        assert abs(other.image_score - results[0].image_score) <= image.high.max() - image.low.max()
        different = (other.anomaly_map > threshold) != (results[0].anomaly_map > threshold)
        assert not (different & sure).any()
