"""The result of `pcbench peers` for a terminal."""

from typing import Any

from pcbench.peers.contenders import CONTENDERS


def table(result: dict[str, Any]) -> str:
    """A row a pair, then who was absent, and what makes the figures doubtful."""
    lines = [
        f"{ours_line(result)}; bank {result['bank']:,} x {result['dim']}, {result['images']} images",
        f"{'peer':<30} {'pcrun ms':>9} {'peer ms':>8} {'ratio':>6} {'of rounds':>12} {'pcrun MB':>9} "
        f"{'peer MB':>8}  scores differ by",
    ]
    for pair in result["pairs"]:
        spread = f"{pair['ratio_least']:.2f} .. {pair['ratio_most']:.2f}"
        lines.append(
            f"{pair['title']:<30} {pair['ours']['median_ms']:>9.2f} {pair['theirs']['median_ms']:>8.2f} "
            f"{pair['ratio']:>6.2f} {spread:>12} {megabytes(pair['ours']['peak_rss_mb']):>9} "
            f"{megabytes(pair['theirs']['peak_rss_mb']):>8}  {difference(result['checks'][pair['peer']])}"
        )
    lines += [f"absent: {CONTENDERS[name].title}: {reason}" for name, reason in result["absent"].items()]
    return "\n".join([*lines, *(f"warning: {text}" for text in result["warnings"])])


def ours_line(result: dict[str, Any]) -> str:
    """What `pcrun` ran with."""
    ours = result["ours"]
    settings = ours["settings"]
    return (
        f"pcrun: {settings['provider']} {settings['precision']}, {settings['search']} search, exactness "
        f"{ours['exactness']}, {'with' if ours['device_profile'] else 'no'} device profile, "
        f"{result['threads']} threads"
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
