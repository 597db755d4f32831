"""Choosing the memory bank: k-center greedy, exact, without scanning every patch for every pick.

Plain greedy (Sener and Savarese 2018; Roth et al. 2022, algorithm 1) picks, n times, the patch farthest from
all chosen ones, and brings the distances of all patches up to date after each pick. Distances to the chosen
ones only ever fall, so an old distance is an upper bound, and three savings are exact:

* Lazy picks. Take the patches with the largest distances (the pool). As long as the pool's largest distance
  exceeds every bound outside, the global maximum is inside: pick there, and update the pool alone.
* Lazy updates. For the next pool, patches are brought up to date from the largest bound down, only until
  enough of them are known to exceed all bounds that were left alone. A patch that is once near a chosen one
  is never looked at again.
* Newest first. A patch is compared with the newest centres first, and given up when one of them shows that it
  does not belong to the pool.

Bounds come from float32 products and include their rounding; distances within the pool are exact. So the
selection is that of plain greedy in float64, ties to the lowest row number, whatever multiplies the matrices.
`coreset_memory_bytes` says what it takes.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcexport.memory_bank.distances import Centres, Float64Array, Products, best_products, exact_squared
from pcexport.memory_bank.store import ArrayRows, Rows, in_memory
from pcrun.machine.threads import available_cores, blas_threads
from pcrun.types import FloatArray, Int64Array

# 512 to 2048 are equally fast on 2 cores with 1 MiB of L2 each (596,624 x 128 rows, 1 %): a larger pool needs
# fewer passes and a look at more rows per pick.
_POOL_ROWS = 1024
# Rows from a file are held in memory up to this size: selection takes 1.3 times as long when they are not.
_HELD_BYTES = 512 * 2**20
# Bounds that are looked at to find about the k-th largest of all.
_SAMPLED_BOUNDS = 32_768
# Rows of one exact look at the distances.
_EXACT_ROWS = 256

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Coreset:
    """Chosen rows.

    Attributes:
        ids: (n,) int64 row numbers, in the order chosen (any prefix is the smaller coreset); ascending for
            `random`.
        covering_radius: no row is farther than this from its nearest chosen one, in the distances that were
            given; None for `random`.
        passes: how many pools were filled.
        rows_updated: rows brought up to date, over all passes.
        distances: computed; plain greedy computes rows * (n - 1).
    """

    ids: Int64Array
    covering_radius: float | None
    passes: int = 0
    rows_updated: int = 0
    distances: int = 0


def coreset_size(candidates: int, *, ratio: float, size: int | None) -> int:
    """Number of rows to choose.

    That is `size`, or `ratio` of the candidates (at least 1), never more than there are.
    """
    wanted = size if size is not None else max(1, int(candidates * ratio))
    return min(wanted, candidates)


def coreset_memory_bytes(candidates: int, dim: int, n: int, *, threads: int) -> int:
    """What `select_coreset` takes at most on a CPU, beside rows that are in memory already."""
    held = candidates * dim * 4
    blocks = threads * (8 * 2**20 + 32_768 * dim)
    return (held if held <= _HELD_BYTES else 0) + 48 * candidates + 12 * dim * n + blocks


def random_coreset(candidates: int, n: int, *, seed: int) -> Coreset:
    """A uniformly random choice, for comparison."""
    ids = np.random.default_rng(seed).choice(candidates, size=n, replace=False)
    return Coreset(np.sort(ids).astype(np.int64), None)


def select_coreset(
    embeddings: Rows | FloatArray,
    n: int,
    *,
    seed: int,
    threads: int = 0,
    products: Products | None = None,
    progress: Progress = lambda chosen: None,
) -> Coreset:
    """k-center greedy: choose `n` rows so that the farthest row is as near as greedy choice makes it.

    Args:
        embeddings: (candidates, dim) float32, projected or not.
        n: rows to choose, 1..candidates.
        seed: of the start row, which belongs to the coreset.
        threads: 0 is one per available core; the selection does not depend on it.
        products: where matrices are multiplied; None: on the GPU if torch is loaded and has one.
        progress: called with the number of rows chosen so far.

    Returns:
        The same rows in the same order as plain greedy in float64, ties to the lowest row number.
    """
    rows = ArrayRows(embeddings) if isinstance(embeddings, np.ndarray) else embeddings
    if not 1 <= n <= len(rows):
        raise ValueError(f"n must be 1..{len(rows)} (the number of rows), got {n}")
    start = int(np.random.default_rng(seed).integers(len(rows)))
    rows = in_memory(rows, _HELD_BYTES)
    # Each thread multiplies its own blocks: so that the maxima are found in parallel as well.
    with blas_threads(1), ThreadPoolExecutor(threads or available_cores()) as workers:
        return _LazyGreedy(rows, n, products or best_products(), workers).run(start, progress)


class _LazyGreedy:
    """State of one selection.

    Attributes:
        bounds: (rows,) float32, what the squared distance to the chosen rows surely does not exceed; -inf for
            the chosen ones, which are never picked again.
        seen: (rows,) int32, how many of the chosen rows this bound takes into account, at least.
    """

    def __init__(self, rows: Rows, n: int, products: Products, workers: ThreadPoolExecutor) -> None:
        self._rows, self._n, self._products, self._workers = rows, n, products, workers
        self._centres = Centres(rows, n)
        self._bounds = np.full(len(rows), np.inf, np.float32)
        self._seen = np.zeros(len(rows), np.int32)
        self._kept = 1.0  # share of the rows brought up to date that stayed above the floor
        self._passes = self._rows_updated = self._distances = 0

    def run(self, start: int, progress: Progress) -> Coreset:
        self._choose(np.array([start], np.int64))
        last = np.inf
        while len(self._centres) < self._n:
            progress(len(self._centres))
            new, last = self._next(self._n - len(self._centres))
            self._choose(new)
        progress(self._n)
        radius = float(np.sqrt(last)) if self._n > 1 else None
        return Coreset(self._centres.ids, radius, self._passes, self._rows_updated, self._distances)

    def _choose(self, ids: Int64Array) -> None:
        self._centres.append(ids)
        self._bounds[ids] = -np.inf

    def _next(self, wanted: int) -> tuple[Int64Array, float]:
        """At least one and at most `wanted` further picks, and the squared distance of the last one."""
        self._passes += 1
        pool = self._pool()
        if pool.largest == 0:
            # Every row left equals a chosen one; plain greedy takes them by number.
            return np.flatnonzero(self._bounds >= 0)[:wanted], 0.0
        picked, last = pool.pick(self._rows, self._centres, wanted)
        self._distances += len(pool.ids) * len(picked)
        return picked, last

    def _pool(self) -> "_Pool":
        """Rows with the largest distances, the largest of all among them."""
        floor = self._fill()
        bounds = self._bounds[self._bounds >= floor]
        if len(bounds) > _POOL_ROWS:
            floor = np.partition(bounds, len(bounds) - _POOL_ROWS)[len(bounds) - _POOL_ROWS]
        pool = self._pool_above(floor)
        if not pool.has_largest():
            # Rounding hides whether a row outside is the farthest: take in all that could be.
            self._bring_up_to_date(pool.largest)
            pool = self._pool_above(pool.largest)
        return pool

    def _fill(self) -> np.float32:
        """Bring rows up to date, largest bounds first, until about a pool of them is.

        Returns:
            The bound down to which rows are up to date.
        """
        floor, ready, widened = np.float32(np.inf), 0, 1
        while ready < (_POOL_ROWS + 1) // 2 and floor > 0:
            # A step that goes too far costs products; one too short only another look at the bounds.
            step = min((_POOL_ROWS - ready) / self._kept, len(self._rows) / 8) * widened
            lower = self._ranked_bound(ready + int(step))
            if lower >= floor:
                widened *= 2
                continue
            floor, widened = lower, 1
            updated = self._bring_up_to_date(floor)
            above = int(np.count_nonzero(self._bounds >= floor))
            self._kept = min(1.0, max(above - ready, 1) / max(updated, 1))
            ready = above
        return floor

    def _ranked_bound(self, rank: int) -> np.float32:
        """About the `rank`-th largest bound; 0 when that is every row."""
        step = max(1, len(self._bounds) // _SAMPLED_BOUNDS)
        sample = self._bounds[::step]
        place = len(sample) - rank // step - 1
        if place < 0:
            return np.float32(0)
        bound = np.partition(sample, place)[place]
        return bound if 0 <= bound < np.inf else np.float32(0)

    def _bring_up_to_date(self, floor: np.floating[Any]) -> int:
        """Lower the bounds from `floor` on until they are up to date, or below `floor`."""
        stale = np.flatnonzero((self._bounds >= floor) & (self._seen < len(self._centres)))
        # Rows that have seen equally many centres share a product.
        stale = stale[np.argsort(self._seen[stale], kind="stable")]
        size = self._products.points_at_once
        blocks = [stale[start : start + size] for start in range(0, len(stale), size)]
        self._distances += sum(self._workers.map(lambda ids: self._update(ids, floor), blocks))
        self._rows_updated += len(stale)
        return len(stale)

    def _update(self, ids: Int64Array, floor: np.floating[Any]) -> int:
        """Compare rows with the centres they have not seen, newest first; returns the number of distances."""
        points = self._centres.points(ids)
        enough = points.surely_within(np.float32(floor))
        closest = np.full(len(ids), -np.inf, np.float32)
        left, values, count = np.arange(len(ids)), points.values, 0
        first, stop = int(self._seen[ids[0]]), len(self._centres)
        while stop > first and len(left):
            start = max(first, stop - self._products.centres_at_once)
            found = self._products.closest(self._centres.values(start, stop), values)
            closest[left] = np.maximum(closest[left], found)
            count, stop = count + len(left) * (stop - start), start
            undecided = np.flatnonzero(closest[left] < enough[left])
            if len(undecided) < 0.8 * len(left):
                left, values = left[undecided], values.take(undecided, axis=0)
        self._bounds[ids] = np.minimum(self._bounds[ids], points.upper_bounds(closest))
        self._seen[ids[left]] = len(self._centres)
        return count

    def _pool_above(self, floor: np.floating[Any]) -> "_Pool":
        """The rows with bounds from `floor` on, with their exact distances to all chosen ones."""
        inside = self._bounds >= floor
        ids = np.flatnonzero(inside)
        blocks = [ids[start : start + _EXACT_ROWS] for start in range(0, len(ids), _EXACT_ROWS)]
        exact = self._workers.map(lambda part: self._centres.exact_nearest(part, self._bounds[part]), blocks)
        nearest = np.concatenate(list(exact))
        self._distances += len(ids) * len(self._centres)
        outside = float(np.max(self._bounds, where=~inside, initial=-np.inf))
        if len(ids) <= 2 * _POOL_ROWS:
            return _Pool(ids, nearest, outside, -1)
        # Many rows at nearly the same distance: the first of them in plain greedy's order.
        order = np.lexsort((ids, -nearest))
        chosen, after = np.sort(order[:_POOL_ROWS]), order[_POOL_ROWS]
        if nearest[after] >= outside:
            return _Pool(ids[chosen], nearest[chosen], float(nearest[after]), int(ids[after]))
        return _Pool(ids[chosen], nearest[chosen], outside, -1)


@dataclass(frozen=True)
class _Pool:
    """Candidates for the next picks.

    Attributes:
        ids: (m,) int64, ascending.
        nearest: (m,) float64, exact squared distance to the chosen rows.
        outside: no row outside is farther from the chosen ones (squared).
        outside_row: the first row outside that is so far; -1 when that is only a bound.
    """

    ids: Int64Array
    nearest: Float64Array
    outside: float
    outside_row: int

    @property
    def largest(self) -> np.float64:
        largest: np.float64 = self.nearest.max()
        return largest

    def has_largest(self) -> bool:
        """Whether the row that plain greedy picks next is surely in the pool."""
        top = int(self.nearest.argmax())
        return self._beats_outside(self.nearest[top], self.ids[top])

    def pick(self, rows: Rows, centres: Centres, wanted: int) -> tuple[Int64Array, float]:
        """Greedy picks that are certain to be the global maxima, and the squared distance of the last."""
        raw, points, nearest = rows.gather(self.ids), centres.points(self.ids), self.nearest.copy()
        values = points.values[:, :-1]
        reach = points.possibly_within(nearest.astype(np.float32))
        picked: list[int] = []
        last = np.inf
        top = int(nearest.argmax())
        while len(picked) < wanted and self._beats_outside(nearest[top], self.ids[top]):
            picked.append(top)
            last = float(nearest[top])
            nearest[top], reach[top] = -np.inf, np.inf
            closeness = values @ values[top] - points.half_norms[top]
            near = np.flatnonzero(closeness >= reach)
            nearest[near] = np.minimum(nearest[near], exact_squared(raw[near], raw[top]))
            top = int(nearest.argmax())
        return self.ids[picked], last

    def _beats_outside(self, squared: np.float64, row: np.int64) -> bool:
        return bool(squared > self.outside or (squared == self.outside and row < self.outside_row))
