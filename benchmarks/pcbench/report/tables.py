"""The tables of a report, as text cells."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pcbench.latency.cell import PAIRED_BY
from pcbench.latency.load import Measured, NotRun, shown_settings
from pcbench.report.inputs import Inputs

FIGURES = ("count", "mean", "median", "p90", "p95", "p99", "max", "std")


@dataclass(frozen=True)
class Section:
    """One cell with all there is to say about it.

    Attributes:
        title: settings and kind of image.
        rows: figures of each stage and of the query, by the names of `FIGURES`.
        facts: name and value: bundle, asked for, real, conditions.
        warnings: what makes it doubtful.
    """

    title: str
    rows: list[tuple[str, list[str]]]
    facts: list[tuple[str, str]]
    warnings: list[str]


def overview(cells: Sequence[Measured]) -> list[tuple[str, list[str], int]]:
    """A row per cell: title, figures of its queries, images a second, number of warnings."""
    return [
        (
            title_of(cell),
            [*figures(cell.result["latency_ms"]), f"{cell.result['images_per_second']:.1f}"],
            len(cell.warnings),
        )
        for cell in cells
    ]


def notes(cells: Sequence[Measured]) -> list[str]:
    """What a reader must know before the figures."""
    untrained = {cell.asked["bundle"] for cell in cells if cell.has_random_weights}
    if not untrained:
        return []
    return [
        f"{', '.join(sorted(untrained))}: random weights. The network is as fast as a trained one; "
        "its verdicts, and so what verification costs, are not those of one."
    ]


def title_of(cell: Measured) -> str:
    """Settings and kind of image."""
    again = f", run {cell.run}" if cell.run > 1 else ""
    return f"{shown_settings(cell.asked)}{again}; {cell.content}"


def section_of(cell: Measured, inputs: Inputs) -> Section:
    """Everything about one cell."""
    rows = [
        (stage, figures(summary)) for stage, summary in cell.result["stages_ms"].items() if stage != "total"
    ]
    rows.append(("query", figures(cell.result["latency_ms"])))
    return Section(title_of(cell), rows, facts_of(cell, inputs), cell.warnings)


def figures(summary: dict[str, Any]) -> list[str]:
    """Milliseconds, and the count before them."""
    return [f"{summary['count']:,}", *(milliseconds(summary[name]) for name in FIGURES[1:])]


def milliseconds(value: float) -> str:
    """Two decimals below 100 ms, one above, three below 1."""
    return f"{value:,.{3 if value < 1 else 2 if value < 100 else 1}f}"


def facts_of(cell: Measured, inputs: Inputs) -> list[tuple[str, str]]:
    """What was asked for, what really ran, and what went on meanwhile."""
    bundle, result = cell.whole["bundle"], cell.result
    width, height = bundle["input_px"]
    accuracy = inputs.accuracy.get(bundle["digest"])
    percentile = next(key for key in result if key.endswith("_upper_95_ms"))
    bound = result[percentile]
    found = [
        ("bundle", f"{bundle['name']}, {bundle['backbone']}, {width} x {height} px"),
        ("weights", bundle["weights"]),
        ("memory bank", f"{bundle['memory_bank']:,} entries of {bundle['dim']:,} values"),
        ("image AUROC", f"{accuracy.image_auroc:.4f} on {accuracy.data}" if accuracy else "not evaluated"),
        ("asked for", _listed({name: cell.asked[name] for name in PAIRED_BY if name != "bundle"})),
        ("real settings", _listed(cell.whole["settings"])),
        ("conditions", _listed(result.get("conditions", {}))),
        ("warm-up", f"{cell.whole['warm_up_images']} images"),
        (
            f"{percentile.split('_')[0]} with 95 % confidence at most",
            "too few queries" if bound is None else f"{milliseconds(bound)} ms",
        ),
        ("peak memory", _megabytes(cell.whole.get("peak_resident_mb"))),
        ("memory of GPUs", _megabytes(cell.whole.get("gpu_memory_mb"))),
        ("bundle SHA-256", bundle["digest"] or "-"),
        ("file", cell.file),
    ]
    measured_at = cell.whole.get("measured_at")
    return [*found, *([("measured at", measured_at)] if measured_at else [])]


def machines(inputs: Inputs) -> list[tuple[list[tuple[str, str]], list[str]]]:
    """Each machine with its software, once: its facts, and the files measured on it."""
    found: dict[str, tuple[list[tuple[str, str]], list[str]]] = {}
    items: list[Measured | NotRun] = [*inputs.cells, *inputs.not_run]
    for item in items:
        machine, versions = item.whole["machine"], item.whole["versions"]
        facts = [(str(name).replace("_", " "), _shown(value)) for name, value in machine.items()]
        facts += [(name, str(version)) for name, version in versions.items()]
        _, files = found.setdefault(json.dumps([machine, versions], sort_keys=True), (facts, []))
        if item.file not in files:
            files.append(item.file)
    return list(found.values())


def _listed(values: dict[str, Any]) -> str:
    shown = ((name.replace("_", " "), value) for name, value in values.items())
    return ", ".join(f"{name} {_shown(value)}" for name, value in shown) or "-"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _megabytes(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f} MB"
