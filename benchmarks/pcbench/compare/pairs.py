"""The job behind `pcbench compare`: pair cells, compare each pair, say what is certain."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pcbench.compare.statistics import CONFIDENCE, Difference, compare, compare_runs, holm
from pcbench.latency.load import Measured, NotRun, cells_of, is_latency, read_json, shown_settings
from pcrun.errors import PcError

SLOWER, FASTER, SAME, UNKNOWN = "slower", "faster", "no difference", "cannot tell"

# Where the interval reaches beyond twice or half the latency, "no difference" would promise too much.
_WIDEST = 2.0


@dataclass(frozen=True)
class Pair:
    """One kind of image under the same settings, before and after.

    Attributes:
        old, new: what was measured, a process each.
        difference: None where a series is too short; the verdict is "cannot tell" then.
        p_adjusted: of a difference, over all pairs; None without one.
        above: whether it is slower by more than was allowed, with confidence; None where nothing was asked.
    """

    old: list[Measured]
    new: list[Measured]
    difference: Difference | None
    p_adjusted: float | None = None
    above: bool | None = None

    @property
    def verdict(self) -> str:
        """In words."""
        if self.difference is None or self.p_adjusted is None:
            return UNKNOWN
        if self.p_adjusted > 1 - CONFIDENCE:
            low, high = self.difference.interval
            return SAME if high < _WIDEST and low > 1 / _WIDEST else UNKNOWN
        return SLOWER if self.difference.log_ratio > 0 else FASTER

    @property
    def title(self) -> str:
        """Settings and kind of image."""
        return f"{shown_settings(self.new[0].asked)}; {self.new[0].content}"

    @property
    def medians_ms(self) -> tuple[float, float]:
        """Of all latencies, old and new."""
        old, new = (float(np.median(np.concatenate([cell.samples_ms for cell in s]))) for s in self.sides)
        return old, new

    @property
    def p99_ms(self) -> tuple[float, float]:
        """Of all latencies, old and new; shown, never tested."""
        old, new = (
            float(np.percentile(np.concatenate([cell.samples_ms for cell in s]), 99)) for s in self.sides
        )
        return old, new

    @property
    def sides(self) -> tuple[list[Measured], list[Measured]]:
        """Old and new."""
        return self.old, self.new


@dataclass(frozen=True)
class Compared:
    """Everything that was found.

    Attributes:
        pairs: in the order of the new files.
        fail_above_pct: what was allowed, or None.
        broken: cells that ran before and cannot now, with the error.
        notes: what else a reader must know.
    """

    pairs: list[Pair]
    fail_above_pct: float | None
    broken: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether more became slower than was allowed."""
        return self.fail_above_pct is not None and bool(self.broken or any(p.above for p in self.pairs))


@dataclass
class Side:
    """One folder or file."""

    measured: dict[tuple[Any, ...], list[Measured]] = field(default_factory=dict)
    not_run: list[NotRun] = field(default_factory=list)

    @property
    def bundles(self) -> set[str]:
        """File names without suffix."""
        cells: list[Measured | NotRun] = [*(runs[0] for runs in self.measured.values()), *self.not_run]
        return {cell.asked["bundle"] for cell in cells}

    def renamed(self, bundle: str) -> "Side":
        """The same cells, as if of a bundle of this name."""
        side = Side(not_run=[_of_bundle(cell, bundle) for cell in self.not_run])
        for runs in self.measured.values():
            named = [_of_bundle(cell, bundle) for cell in runs]
            side.measured[named[0].key] = named
        return side


_Cell = TypeVar("_Cell", Measured, NotRun)


def _of_bundle(cell: _Cell, bundle: str) -> _Cell:
    return dataclasses.replace(cell, asked={**cell.asked, "bundle": bundle})


def _two_bundles(before: Side, after: Side) -> tuple[str, str] | None:
    """Old and new name where each side is of one bundle, and of another one: then these are compared."""
    if len(before.bundles) == len(after.bundles) == 1 and before.bundles != after.bundles:
        return next(iter(before.bundles)), next(iter(after.bundles))
    return None


def compare_results(old: Path, new: Path, *, fail_above_pct: float | None = None) -> Compared:
    """Compare two folders or files.

    Raises:
        PcError: one of them cannot be read, or they have no cell in common.
    """
    before, after = read_side(old), read_side(new)
    two = _two_bundles(before, after)
    if two is not None:
        before = before.renamed(two[1])
    keys = [key for key in after.measured if key in before.measured]
    broken = [
        f"{shown_settings(cell.asked)}: {cell.error}"
        for cell in after.not_run
        if any(kept[0].asked == cell.asked for kept in before.measured.values())
    ]
    if not keys and not broken:
        raise PcError(
            f"{old} and {new} have no cell in common. Expected results of the same settings and kinds of "
            "images, and bundles of the same file names, or one bundle on each side."
        )
    pairs = judged([(before.measured[key], after.measured[key]) for key in keys], fail_above_pct)
    notes = [*_unpaired(before, after), *_unlike(pairs, two), *_single_processes(pairs)]
    return Compared(pairs, fail_above_pct, list(dict.fromkeys(broken)), notes)


def read_side(path: Path) -> Side:
    """All cells of a folder or file.

    Raises:
        PcError: there is none, or two have the same settings and number of the run.
    """
    side = Side()
    for file, data in read_json([path]):
        if not is_latency(data):
            continue
        cells = cells_of(file, data)
        if isinstance(cells, NotRun):
            side.not_run.append(cells)
            continue
        for cell in cells:
            runs = side.measured.setdefault(cell.key, [])
            for other in runs:
                if other.run == cell.run:
                    raise PcError(
                        f"{file.name} and {other.file} hold the same settings and run. Expected each once; "
                        "take one away."
                    )
            runs.append(cell)
    if not side.measured and not side.not_run:
        raise PcError(f"{path} holds no latencies. Expected results of `pcbench latency`.")
    return side


def judged(
    pairs: Sequence[tuple[list[Measured], list[Measured]]], fail_above_pct: float | None
) -> list[Pair]:
    """Compare each pair; what is certain is so for all of them together (Holm)."""
    found = [_compared(old, new) for old, new in pairs]
    known = [difference for difference in found if difference is not None]
    differs = iter(holm([difference.p_differs for difference in known]))
    factor = 1 + (fail_above_pct or 0) / 100
    slower = iter(holm([difference.p_above(factor) for difference in known]))
    result = []
    for (old, new), difference in zip(pairs, found, strict=True):
        if difference is None:
            result.append(Pair(old, new, None))
        else:
            above = next(slower) <= 1 - CONFIDENCE
            result.append(
                Pair(old, new, difference, next(differs), above if fail_above_pct is not None else None)
            )
    return result


def _compared(old: list[Measured], new: list[Measured]) -> Difference | None:
    """By the processes where both sides have several, else by the first ones' blocks."""
    if min(len(old), len(new)) > 1:
        return compare_runs([cell.samples_ms for cell in old], [cell.samples_ms for cell in new])
    return compare(old[0].samples_ms, new[0].samples_ms)


def _single_processes(pairs: Sequence[Pair]) -> list[str]:
    if all(min(map(len, pair.sides)) > 1 for pair in pairs):
        return []
    return [
        "a side was measured in one process: two processes of the same program may differ by some percent, "
        "which cannot be told from a change; measure both with `pcbench latency --runs 5`"
    ]


def _unpaired(before: Side, after: Side) -> list[str]:
    notes = []
    for name, mine, other in (("OLD", before, after), ("NEW", after, before)):
        for key, (cell, *_) in mine.measured.items():
            if key not in other.measured and all(cell.asked != n.asked for n in other.not_run):
                notes.append(f"only in {name}: {shown_settings(cell.asked)}; {cell.content}")
    return notes


def _unlike(pairs: Sequence[Pair], two: tuple[str, str] | None) -> list[str]:
    """What else than the code differs: it may be the cause."""
    told = [f"OLD is the bundle {two[0]}, NEW the bundle {two[1]}"] if two else []
    looked_at: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("the machines differ", lambda whole: whole["machine"]),
        ("the versions of the software differ", lambda whole: whole["versions"]),
        ("other images were scored", lambda whole: whole.get("content_sha256")),
        ("what was asked for led to other real settings", lambda whole: whole["settings"]),
    ]
    if not two:
        looked_at.append(("bundles of one name differ in their content", lambda w: w["bundle"]["digest"]))
    told += [
        note
        for note, fact in looked_at
        if any(
            fact(cell.whole) != fact(pair.old[0].whole) for pair in pairs for s in pair.sides for cell in s
        )
    ]
    return told
