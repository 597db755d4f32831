"""Memory banks that try to break a search, the distances nobody can get wrong, and searches that miss."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from pcrun.bundle.manifest import LARGEST_COMPONENT
from pcrun.scoring.certify import Verifier
from pcrun.search.exact import euclidean

FLOAT32 = float(np.finfo(np.float32).eps)
SMALLEST_SQUARE = float(np.finfo(np.float32).smallest_subnormal)


def normal(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """(count, dim) float32, standard normal."""
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def all_distances(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(queries, rows) float64, one query at a time."""
    exact = rows.astype(np.float64)
    return np.array([np.sqrt(((exact - query) ** 2).sum(axis=1)) for query in queries.astype(np.float64)])


def map_rounding(patch_scores: np.ndarray) -> float:
    """How far a pixel of a map of these scores may be off: interpolation rounds at the size of its inputs."""
    return 4 * FLOAT32 * float(patch_scores.max())


@dataclass(frozen=True)
class Case:
    """A memory bank and the patches of an image.

    Attributes:
        rows: (count, dim) float32.
        queries: (patches, dim) float32.
        truth: (patches, count) float64, all distances.
    """

    rows: np.ndarray
    queries: np.ndarray
    truth: np.ndarray

    @property
    def exact(self) -> np.ndarray:
        """(patches,) float64, to the nearest row."""
        return self.truth.min(axis=1)

    def rounding(self, distances: np.ndarray) -> np.ndarray:
        """How far a distance taken in float32 from a difference may be off."""
        dim = self.rows.shape[1]
        relative = (8 + dim / 8) * FLOAT32
        return relative * distances + np.sqrt(dim * SMALLEST_SQUARE)

    def product_rounding(self) -> np.ndarray:
        """How far the distance to the row that a float32 product calls nearest may exceed the nearest.

        The product's error is a share of the lengths, not of the distance: d^2 <= exact^2 + this.
        """
        longest = np.linalg.norm(self.rows.astype(np.float64), axis=1).max()
        lengths = np.linalg.norm(self.queries.astype(np.float64), axis=1) + longest
        excess = 16 * FLOAT32 * np.square(lengths) + 16 * self.rows.shape[1] * SMALLEST_SQUARE
        return np.sqrt(np.square(self.exact) + excess) - self.exact + self.rounding(self.exact)


def _integers(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return rng.integers(-2, 3, (count, dim)).astype(float)


def _constant(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return np.full((count, dim), rng.normal())


def _far_from_zero(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return rng.normal(size=(count, dim)) + rng.choice([30, 300])


def _outlier(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    # One component sets the grid of 8 bits; everything else falls into a few of its steps.
    rows = rng.normal(size=(count, dim))
    rows[rng.integers(count), rng.integers(dim)] = rng.choice([-1, 1]) * 10.0 ** rng.integers(2, 6)
    return rows


def _duplicates(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return rng.normal(size=(count, dim))[rng.integers(0, max(1, count // 4), count)]


def _nearly_equal(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return 1 + rng.normal(size=(count, dim)) * 10.0 ** rng.integers(-6, -1)


def _corners(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    # On the grid and as long as rows can be in it: no rounding error of theirs widens the certificate.
    corner = 127.0 * rng.choice([-1, 1], dim)
    rows = corner + rng.integers(-1, 2, (count, dim)) * (rng.random((count, dim)) < 2 / dim)
    return np.concatenate([rows[: -(count // 2) or None], -rows[: count // 2]])


_ROWS = {
    "normal": lambda rng, count, dim: rng.normal(size=(count, dim)),
    "integers": _integers,
    "constant": _constant,
    "far from zero": _far_from_zero,
    "outlier": _outlier,
    "duplicates": _duplicates,
    "nearly equal": _nearly_equal,
    "corners": _corners,
}


def _queries(rng: np.random.Generator, kind: str, rows: np.ndarray, patches: int) -> np.ndarray:
    beside = rows[rng.integers(0, len(rows), patches)]
    noise = rng.normal(size=beside.shape)
    if kind == "rows":
        return beside
    if kind == "beside rows":
        return beside + noise * 10.0 ** rng.integers(-6, 1)
    if kind == "between rows":
        # As near to one row as to another.
        return (beside + rows[rng.integers(0, len(rows), patches)]) / 2
    if kind == "all equal":
        return np.repeat(beside[:1] + noise[:1], patches, axis=0)
    # Far outside the grid that the rows span.
    return noise * 10.0 ** rng.integers(0, 5) * (np.abs(rows).max() or 1)


def make_case(
    rows_kind: str, queries_kind: str, shape: tuple[int, int, int], seed: int, scale: float = 1.0
) -> Case:
    """A case of (rows, length, patches) in `shape`, no component larger than a bundle may hold."""
    count, dim, patches = shape
    rng = np.random.default_rng(seed)
    rows = _ROWS[rows_kind](rng, count, dim)
    queries = _queries(rng, queries_kind, rows, patches)
    scale = min(scale, LARGEST_COMPONENT / max(np.abs(rows).max(), np.abs(queries).max(), 1))
    rows, queries = ((array * scale).astype(np.float32) for array in (rows, queries))
    return Case(rows, queries, all_distances(queries, rows))


def cases(
    *,
    patches: st.SearchStrategy[int],
    counts: st.SearchStrategy[int] | None = None,
    scales: st.SearchStrategy[float] | None = None,
) -> st.SearchStrategy[Case]:
    """Banks of one row up to some hundred, of one dimension up to some hundred, near and far queries."""
    some_counts = st.one_of(st.integers(1, 5), st.integers(6, 300))
    shapes = st.tuples(
        some_counts if counts is None else counts,
        st.sampled_from([1, 2, 3, 8, 17, 64, 200]),
        patches,
    )
    kinds = st.sampled_from(["rows", "beside rows", "between rows", "all equal", "far"])
    some_scales = st.one_of(st.just(1.0), st.sampled_from([1e-23, 1e-20, 1e-12, 1e-3, 1e3, 1e15]))
    return st.builds(
        make_case,
        st.sampled_from(sorted(_ROWS)),
        kinds,
        shapes,
        st.integers(0, 2**32 - 1),
        some_scales if scales is None else scales,
    )


class RandomSearch:
    """Names any row: the distance is true, and that is all."""

    name, exact = "random", False

    def __init__(self, rows: np.ndarray, *, seed: int = 0) -> None:
        self._rows = rows
        self._rng = np.random.default_rng(seed)

    def nearest(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = self._rng.integers(0, len(self._rows), len(queries))
        return euclidean(queries, self._rows[ids]), ids


class CountingVerifier:
    """Counts what is asked of another verifier."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self.asked = 0

    def nearest(
        self, queries: np.ndarray, distances: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        self.asked += len(queries)
        return self._verifier.nearest(queries, distances, ids)


def orthonormal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """(rows, columns) float32 with orthonormal columns, in any direction."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, columns)))[0].astype(np.float32)


def neighbour_lists(rows: np.ndarray, b: int) -> np.ndarray:
    """Ids of the nearest rows of each row, itself first: (count, at most b) int32, as in a bundle."""
    distances = all_distances(rows, rows)
    np.fill_diagonal(distances, -1)
    return np.argsort(distances, axis=1, kind="stable")[:, :b].astype(np.int32)
