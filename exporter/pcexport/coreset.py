"""Choosing the memory bank: k-center greedy, exact, without scanning every patch for every pick.

Plain greedy (Sener and Savarese 2018; Roth et al. 2022, algorithm 1) picks, n times, the patch farthest from
all chosen ones, and scans all patches after each pick. Running distances only ever fall, which gives two
exact savings:

* Lazy picks. Keep the patches with the largest running distances (the pool). As long as the pool's largest
  current distance beats every (stale, hence too large) value outside, the global maximum is inside: pick
  there. Then bring all patches up to date with all new centres in one blocked matrix product.
* Pruning. A new centre c lies at least r (its distance when picked) from every earlier centre. A patch x at
  distance d(x) <= r/2 from its centre a has |x - c| >= |a - c| - |x - a| >= r - d(x) >= d(x): c cannot
  improve it. Such patches are skipped.

Ties are broken by the lowest row number, as argmax does in plain greedy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pcexport.store import ArrayRows, Rows, ShiftedRows
from pcrun.types import FloatArray, Int64Array

# 4096^2 float32 products of the pool are 64 MiB; larger pools need fewer passes but a quadratic product each.
_POOL_ROWS = 4096
_BLOCK_ROWS = 2048
_CENTRES_PER_PRODUCT = 512
# Rounding margin of the pruning test, far above float32 rounding of squared distances.
_PRUNE_MARGIN = 1e-3

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Coreset:
    """Chosen rows.

    Attributes:
        ids: (n,) int64 row numbers, in the order chosen (any prefix is the smaller coreset); ascending for
            `random`.
        covering_radius: no row is farther than this from its nearest chosen one, in the distances that were
            given; None for `random`.
        passes: how often all rows were read.
    """

    ids: Int64Array
    covering_radius: float | None
    passes: int


def coreset_size(candidates: int, *, ratio: float, size: int | None) -> int:
    """Number of rows to choose.

    That is `size`, or `ratio` of the candidates (at least 1), never more than there are.
    """
    wanted = size if size is not None else max(1, int(candidates * ratio))
    return min(wanted, candidates)


def random_coreset(candidates: int, n: int, *, seed: int) -> Coreset:
    """A uniformly random choice, for comparison."""
    ids = np.random.default_rng(seed).choice(candidates, size=n, replace=False)
    return Coreset(np.sort(ids).astype(np.int64), None, 0)


def select_coreset(
    embeddings: Rows | FloatArray, n: int, *, seed: int, progress: Progress = lambda chosen: None
) -> Coreset:
    """k-center greedy: choose `n` rows so that the farthest row is as near as greedy choice makes it.

    Args:
        embeddings: (candidates, dim) float32, projected or not.
        n: rows to choose, 1..candidates.
        seed: of the start row, which belongs to the coreset.
        progress: called with the number of rows chosen so far.

    Returns:
        The same rows in the same order as plain greedy, ties to the lowest row number.
    """
    rows = ArrayRows(embeddings) if isinstance(embeddings, np.ndarray) else embeddings
    if not 1 <= n <= len(rows):
        raise ValueError(f"n must be 1..{len(rows)} (the number of rows), got {n}")
    start = int(np.random.default_rng(seed).integers(len(rows)))
    return _LazyGreedy(rows, start).run(n, progress)


class _LazyGreedy:
    """State of one selection.

    `nearest` holds each row's (possibly stale) squared distance to the chosen rows.
    """

    def __init__(self, rows: Rows, start: int) -> None:
        # Distances do not change when the start row becomes the origin, and float32 keeps its digits:
        # embeddings lie far from 0, close together. Whole numbers stay whole, so ties stay ties.
        self._rows = ShiftedRows(rows, rows.gather(np.array([start], np.int64))[0])
        self._start = start
        self._nearest = np.full(len(rows), np.inf, np.float32)
        self._chosen: list[int] = []
        self._passes = 0
        self._last_pick = np.inf

    def run(self, n: int, progress: Progress) -> Coreset:
        new = [self._start]
        while True:
            self._chosen += new
            progress(len(self._chosen))
            if len(self._chosen) >= n:
                break
            self._update(new)
            new = self._pick_in_pool(n - len(self._chosen))
        radius = float(np.sqrt(self._last_pick)) if n > 1 else None
        return Coreset(np.array(self._chosen, np.int64), radius, self._passes)

    def _update(self, new: list[int]) -> None:
        """Lower `nearest` of all rows to their distance to the newly chosen ones."""
        self._passes += 1
        self._nearest[new] = -np.inf  # chosen rows are never picked again, also when they are duplicates
        centres = self._rows.gather(np.array(new, np.int64))
        limit = self._last_pick / 4 * (1 - _PRUNE_MARGIN) if np.isfinite(self._last_pick) else -np.inf
        for start in range(0, len(self._rows), _BLOCK_ROWS):
            nearest = self._nearest[start : start + _BLOCK_ROWS]
            active = np.flatnonzero(nearest > limit)
            if len(active) == 0:
                continue
            block = self._rows.block(start, start + _BLOCK_ROWS)
            points = block if len(active) == len(block) else block[active]
            nearest[active] = np.minimum(nearest[active], squared_to_nearest(points, centres))

    def _pick_in_pool(self, wanted: int) -> list[int]:
        """Greedy picks that are certain to be the global maxima; at least one."""
        pool, outside_value, outside_row = self._pool()
        points = self._rows.gather(pool)
        products = points @ points.T
        half_norms = _half_norms(points)
        nearest = self._nearest[pool]
        picked: list[int] = []
        while len(picked) < wanted:
            top = int(nearest.argmax())
            value = nearest[top]
            beaten = value < outside_value or (value == outside_value and pool[top] > outside_row)
            if value == -np.inf or beaten:
                break
            picked.append(int(pool[top]))
            self._last_pick = min(self._last_pick, max(float(value), 0.0))
            np.minimum(nearest, _squared(products[top] - half_norms[top], half_norms), out=nearest)
            nearest[[top]] = -np.inf
            # Rows chosen before keep -inf: minimum never raises a value.
        return picked

    def _pool(self) -> tuple[Int64Array, float, int]:
        """The pool, and what is left outside of it.

        Returns:
            Rows with the largest running distances (ascending row numbers), and the best value and row left
            outside.
        """
        count = len(self._rows)
        if count <= _POOL_ROWS:
            return np.arange(count, dtype=np.int64), -np.inf, count
        cut = np.partition(self._nearest, count - _POOL_ROWS)[count - _POOL_ROWS]
        above = np.flatnonzero(self._nearest > cut)
        ties = np.flatnonzero(self._nearest == cut)
        # Of the rows that tie at the cut, the lowest numbers enter the pool:
        # those plain greedy would take first.
        taken = ties[: _POOL_ROWS - len(above)]
        if len(ties) > len(taken):
            outside_value, outside_row = float(cut), int(ties[len(taken)])
        else:
            outside_value, outside_row = self._largest_below(cut)
        return np.sort(np.concatenate([above, taken])).astype(np.int64), outside_value, outside_row

    def _largest_below(self, cut: float) -> tuple[float, int]:
        """The largest running distance below `cut`, and the lowest row that has it."""
        below = np.where(self._nearest < cut, self._nearest, -np.inf)
        row = int(below.argmax())
        return float(below[row]), row


def squared_to_nearest(points: FloatArray, centres: FloatArray) -> FloatArray:
    """Squared Euclidean distance of each point to its nearest centre.

    Args:
        points: (n, dim) float32.
        centres: (k, dim) float32.

    Returns:
        (n,) float32.
    """
    half_norms = _half_norms(centres)
    closest = np.full(len(points), -np.inf, np.float32)
    for start in range(0, len(centres), _CENTRES_PER_PRODUCT):
        part = slice(start, start + _CENTRES_PER_PRODUCT)
        products = points @ centres[part].T
        products -= half_norms[part]
        np.maximum(closest, products.max(axis=1), out=closest)
    return _squared(closest, _half_norms(points))


def _half_norms(points: FloatArray) -> FloatArray:
    return np.einsum("ij,ij->i", points, points) * np.float32(0.5)


def _squared(closeness: FloatArray, half_norms: FloatArray) -> FloatArray:
    """||x - c||^2 from (x.c - ||c||^2 / 2) and ||x||^2 / 2, clipped at 0 against rounding."""
    result: FloatArray = np.maximum((half_norms - closeness) * np.float32(2), np.float32(0))
    return result
