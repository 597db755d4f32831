"""The result of `pcbench peers` for a terminal."""

from typing import Any

from rich.table import Table

from pcbench.peers.contenders import CONTENDERS
from pcrun.commands.tables import table_of
from pcrun.words import plural


def described(result: dict[str, Any]) -> list[Table | str]:
    """A row a pair, then who was absent, and what makes the figures doubtful."""
    table = table_of(
        ("peer", "pcrun ms", "peer ms", "ratio", "of rounds", "pcrun MB", "peer MB", "scores differ by")
    )
    for pair in result["pairs"]:
        sides = (pair["ours"], pair["theirs"])
        table.add_row(
            pair["title"],
            *(f"{side['median_ms']:.2f}" for side in sides),
            f"{pair['ratio']:.2f}",
            f"{pair['ratio_least']:.2f} .. {pair['ratio_most']:.2f}",
            *(megabytes(side["peak_rss_mb"]) for side in sides),
            difference(result["checks"][pair["peer"]]),
        )
    return [
        f"{ours_line(result)}; memory bank {result['bank']:,} x {result['dim']}, {result['images']} images",
        table,
        *(f"absent: {CONTENDERS[name].title}: {reason}" for name, reason in result["absent"].items()),
        *(f"warning: {text}" for text in result["warnings"]),
    ]


def ours_line(result: dict[str, Any]) -> str:
    """What `pcrun` ran with."""
    ours = result["ours"]
    settings = ours["settings"]
    return (
        f"pcrun: {settings['provider']} {settings['precision']}, {settings['search']} search, exactness "
        f"{ours['exactness']}, {'with' if ours['device_profile'] else 'no'} device profile, "
        f"{result['threads']} {plural(result['threads'], 'thread')}"
    )


def absent_titles(result: dict[str, Any]) -> list[str]:
    """Who could not take part."""
    return [CONTENDERS[name].title for name in result["absent"]]


def difference(check: dict[str, Any]) -> str:
    """The largest difference of a score, and whether it had to be small."""
    if check["max_score_difference"] is None:
        return "not compared (random weights)"
    return f"{check['max_score_difference']:.1e}"


def megabytes(value: float | None) -> str:
    """Whole MB."""
    return "-" if value is None else f"{value:,.0f}"
