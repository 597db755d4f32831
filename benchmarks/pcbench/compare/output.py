"""A comparison as text and as plain types."""

from typing import Any

from rich.table import Table

from pcbench.compare.pairs import FASTER, SLOWER, UNKNOWN, Compared, Pair
from pcbench.compare.statistics import CONFIDENCE
from pcrun.commands.tables import table_of
from pcrun.words import plural

_COLUMNS = ("pair", "old ms", "new ms", "change", "95 % interval", "p", "old p99", "new p99", "verdict")
# A larger ratio is no percentage that anybody reads.
_IN_PERCENT = 10.0
_EXPLANATION = (
    "old ms, new ms: medians. Change, interval, p and verdict are of the typical latency; p99 is shown, not "
    "tested."
)


def described(compared: Compared) -> list[Table | str]:
    """One row per pair, then what else there is to say."""
    table = table_of(_COLUMNS, words=(0, len(_COLUMNS) - 1))
    for pair in compared.pairs:
        medians, tails = ((f"{old:.2f}", f"{new:.2f}") for old, new in (pair.medians_ms, pair.p99_ms))
        table.add_row(pair.title, *medians, *_change(pair), *tails, _verdict(pair, compared))
    lines = [_EXPLANATION]
    lines += [f"ran before, cannot run now: {text}" for text in compared.broken]
    lines += [f"note: {note}" for note in compared.notes]
    counts = {
        word: sum(pair.verdict == word for pair in compared.pairs) for word in (SLOWER, FASTER, UNKNOWN)
    }
    pairs = len(compared.pairs)
    summed = f"{pairs} {plural(pairs, 'pair')}: {counts[SLOWER]} slower, {counts[FASTER]} faster"
    if counts[UNKNOWN]:
        summed += f", {counts[UNKNOWN]} too uncertain to tell (measure longer, or with more --runs)"
    return [table, *lines, summed]


def _change(pair: Pair) -> tuple[str, str, str]:
    if pair.difference is None or pair.p_adjusted is None:
        return "-", "-", "-"
    low, high = pair.difference.interval
    return _percent(pair.difference.ratio), f"{_percent(low)} .. {_percent(high)}", f"{pair.p_adjusted:.4f}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%" if ratio < _IN_PERCENT else f"x {ratio:.2g}"


def _verdict(pair: Pair, compared: Compared) -> str:
    if pair.above:
        return f"{pair.verdict.upper()} by more than {compared.fail_above_pct:g} %"
    return pair.verdict


def as_json(compared: Compared) -> dict[str, Any]:
    """Plain types; a change is new over old, minus 1."""
    return {
        "confidence": CONFIDENCE,
        "fail_above_pct": compared.fail_above_pct,
        "failed": compared.failed,
        "pairs": [_pair(pair) for pair in compared.pairs],
        "cannot_run_now": compared.broken,
        "notes": compared.notes,
    }


def _pair(pair: Pair) -> dict[str, Any]:
    old, new = pair.medians_ms
    known = pair.difference
    return {
        **pair.new[0].asked,
        "content": pair.new[0].content,
        "scenario": pair.new[0].scenario,
        "processes": [len(side) for side in pair.sides],
        "queries": [sum(len(cell.samples_ms) for cell in side) for side in pair.sides],
        "median_ms": [old, new],
        "p99_ms": list(pair.p99_ms),
        "change": known.ratio - 1 if known else None,
        "change_low": known.interval[0] - 1 if known else None,
        "change_high": known.interval[1] - 1 if known else None,
        "p_holm": pair.p_adjusted,
        "verdict": pair.verdict,
        "above": pair.above,
    }
