"""`pcbench coreset`: the coreset selection beside plain greedy, in one process, on the same rows."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pcbench.machine import machine_facts, versions
from pcbench.results import save_result

# What is measured is the exporter's own function, without a build around it.
from pcexport.memory_bank.coreset import Coreset, select_coreset  # noqa: TID251
from pcrun.commands.tables import table_of
from pcrun.errors import PcError
from pcrun.machine.threads import available_cores
from pcrun.types import FloatArray, Int64Array

_CLUSTERS = 300
_GENERATED_ROWS = 65_536


def measure_coreset(
    rows: FloatArray,
    *,
    picks: int,
    plain_picks: int,
    seed: int,
    threads: int,
    repeats: int,
    output: Path,
    name: str,
) -> dict[str, Any]:
    """Time both selections, compare them pick by pick, and save what was found.

    Args:
        rows: (rows, dim) float32.
        picks: rows to choose, at least 2.
        plain_picks: picks of the plain selection; its time for all is in proportion. 0 makes all.
        seed: of the start row.
        threads: 0 is one per available core.
        repeats: timed runs, of which the median counts.
        output: result file.
        name: title in reports.

    Raises:
        PcError: the two choose different rows.
    """
    chosen, memory_mb = _with_memory(rows, picks, seed, threads)
    made = min(picks, plain_picks or picks)
    plain, samples = PlainGreedy(rows, int(chosen.ids[0])), []
    # In turns, so that a drift of the machine's speed reaches both.
    for part in range(1, repeats + 1):
        samples.append(_seconds(rows, picks, seed, threads))
        plain.pick_until(made * part // repeats)
    seconds, plain_seconds = float(np.median(samples)), plain.seconds * (picks - 1) / (made - 1)
    _require_same(chosen.ids[:made], np.array(plain.ids, np.int64))
    result = {
        "name": name,
        "machine": machine_facts(),
        "versions": versions(),
        "rows": len(rows),
        "dim": rows.shape[1],
        "picks": picks,
        "seed": seed,
        "threads": threads or available_cores(),
        "seconds": round(seconds, 3),
        "samples_s": [round(sample, 3) for sample in samples],
        "memory_mb": round(memory_mb, 1),
        "plain_seconds": round(plain_seconds, 3),
        "plain_picks": made,
        "plain_extrapolated": made < picks,
        "compared_picks": made,
        "ratio": round(plain_seconds / seconds, 2),
        "passes": chosen.passes,
        "updated_share": round(chosen.rows_updated / (len(rows) * max(1, chosen.passes)), 4),
        "distances_share": round(chosen.distances / (len(rows) * (picks - 1)), 4),
        "covering_radius": chosen.covering_radius,
    }
    save_result(output, "coreset", result)
    return result


def described(result: dict[str, Any]) -> list[Table | str]:
    """One row under its heading."""
    note = f" (from {result['plain_picks']:,} picks)" if result["plain_extrapolated"] else ""
    row = (
        f"{result['picks']:,} of {result['rows']:,} x {result['dim']}",
        f"{result['seconds']:.2f} s",
        f"{result['plain_seconds']:.1f} s{note}",
        f"{result['ratio']:.1f}x",
        str(result["passes"]),
        f"{result['updated_share']:.1%} of rows",
        f"{result['distances_share']:.1%} of plain",
        f"{result['memory_mb']:.0f} MB",
    )
    columns = (
        "coreset", "time", "plain greedy", "ratio", "passes", "updated a pass", "distances", "memory",
    )  # fmt: skip
    return [
        table_of(columns, [row]),
        f"The first {result['compared_picks']:,} picks are the same, in the same order.",
    ]


class PlainGreedy:
    """k-center greedy as in the paper: all rows are scanned after each pick, by one matrix product.

    Where float32 cannot tell the farthest row from the next one, float64 decides, so that the choice can be
    compared; the time this takes is left out.

    Attributes:
        ids: the picks so far.
        seconds: spent on them.
    """

    def __init__(self, rows: FloatArray, start: int) -> None:
        self.ids, self.seconds = [start], 0.0
        self._rows = rows
        # From the start row, where float32 keeps its digits.
        self._centred = rows - rows[start]
        self._half_norms = np.einsum("ij,ij->i", self._centred, self._centred) * np.float32(0.5)
        self._rounding = float(self._half_norms.max()) * 2.0**-24 * np.sqrt(rows.shape[1])
        self._nearest = np.full(len(rows), np.inf, np.float32)
        self._halves = np.empty(len(rows), np.float32)

    def pick_until(self, count: int) -> None:
        """Pick on until there are `count`."""
        while len(self.ids) < count:
            started = time.perf_counter()
            farthest = self._scan(self.ids[-1])
            self.seconds += time.perf_counter() - started
            self.ids.append(self._settle(farthest))

    def _scan(self, new: int) -> int:
        """Bring the (halved, squared) distances up to date with a pick; the row with the largest."""
        np.matmul(self._centred, self._centred[new], out=self._halves)
        np.subtract(self._half_norms, self._halves, out=self._halves)
        self._halves += self._half_norms[new]
        np.minimum(self._nearest, self._halves, out=self._nearest)
        self._nearest[new] = -np.inf
        return int(self._nearest.argmax())

    def _settle(self, farthest: int) -> int:
        """The farthest row in float64, of those that are as far as float32 can tell; the first of equals."""
        close = np.flatnonzero(self._nearest >= self._nearest[farthest] - 2 * self._rounding)
        if len(close) == 1:
            return farthest
        centres = self._rows[self.ids].astype(np.float64)
        exact = [float(np.square(centres - self._rows[row]).sum(axis=1).min()) for row in close]
        return int(close[int(np.argmax(exact))])


def load_rows(path: Path) -> FloatArray:
    """Rows of a .npy file.

    Raises:
        PcError: it is not a 2-d float32 array of at least 2 rows.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except OSError as error:
        raise PcError(f"{path} cannot be read ({error}). Expected a .npy file.") from error
    except ValueError as error:  # numpy's text for any other file is advice to unpickle it
        raise PcError(f"{path} is not a whole .npy file of numbers. Expected float32 (rows, dim).") from error
    if rows.ndim != 2 or rows.dtype != np.float32 or len(rows) < 2:
        raise PcError(
            f"{path} holds {rows.dtype} {rows.shape}. Expected float32 (rows, dim), 2 rows or more."
        )
    loaded: FloatArray = rows
    return loaded


def random_rows(count: int, dim: int, *, seed: int) -> FloatArray:
    """Clusters whose spread falls from dimension to dimension, as that of principal components does."""
    generator = np.random.default_rng(seed)
    spread = np.arange(1, dim + 1, dtype=np.float32) ** np.float32(-0.5)
    centres = 2 * spread * generator.standard_normal((_CLUSTERS, dim), np.float32)
    rows = np.empty((count, dim), np.float32)
    for start in range(0, count, _GENERATED_ROWS):
        part = rows[start : start + _GENERATED_ROWS]
        generator.standard_normal(dtype=np.float32, out=part)
        part *= spread
        part += centres[generator.integers(_CLUSTERS, size=len(part))]
    return rows


def _with_memory(rows: FloatArray, picks: int, seed: int, threads: int) -> tuple[Coreset, float]:
    """The selection, and what it allocated at most beside the rows in MB (10^6 bytes)."""
    tracemalloc.start()
    try:
        chosen = select_coreset(rows, picks, seed=seed, threads=threads)
        return chosen, tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def _seconds(rows: FloatArray, picks: int, seed: int, threads: int) -> float:
    started = time.perf_counter()
    select_coreset(rows, picks, seed=seed, threads=threads)
    return time.perf_counter() - started


def _require_same(ids: Int64Array, plain: Int64Array) -> None:
    different = np.flatnonzero(ids != plain)
    if len(different):
        raise PcError(
            f"Pick {different[0] + 1} is row {ids[different[0]]}, plain greedy takes row "
            f"{plain[different[0]]} ({len(different)} of {len(ids)} picks differ). Expected the same rows in "
            "the same order; nothing was written."
        )
