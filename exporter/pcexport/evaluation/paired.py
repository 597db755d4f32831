"""Several bundles on the same images, side by side, with paired differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pcexport.errors import BuildError
from pcexport.evaluation.metrics import Metric, interval_of
from pcexport.evaluation.outputs import IMAGE_METRICS, PIXEL_METRICS
from pcexport.evaluation.run import Evaluation
from pcexport.evaluation.run import to_json as evaluation_json
from pcexport.report.format import format_l2
from pcrun.commands.tables import show, table_of

# What bundles are compared by.
_COMPARED = (("image", "auroc"), ("image", "recall"), ("image", "false_positive_rate"), ("pixel", "auroc"),
             ("pixel", "aupro_30"))  # fmt: skip
_NAMES = {"image": IMAGE_METRICS, "pixel": PIXEL_METRICS}


@dataclass(frozen=True)
class Difference:
    """A bundle's figure less that of the first bundle, on the same images and the same resamples.

    Attributes:
        value: None where one of the two is not defined.
        low, high: 95 % bootstrap interval of the difference.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def require_same_images(evaluations: Sequence[Evaluation]) -> None:
    """Paired differences need the same images everywhere.

    Raises:
        BuildError: one bundle's run left out others than another's.
    """
    first = [image.image for image in evaluations[0].scored]
    for other in evaluations[1:]:
        if [image.image for image in other.scored] != first:
            raise BuildError("The bundles did not read the same images. Expected equal data; run them again.")


def titles(evaluations: Sequence[Evaluation]) -> list[str]:
    """What to call each bundle: its file name, or its whole path where two have one file name."""
    files = [evaluation.file for evaluation in evaluations]
    return [
        evaluation.bundle if files.count(evaluation.file) > 1 else evaluation.file
        for evaluation in evaluations
    ]


def differences(evaluations: Sequence[Evaluation]) -> list[dict[str, Difference]]:
    """Per bundle, each compared figure less the first bundle's."""
    if evaluations[0].metrics is None:
        return [{} for _ in evaluations]
    replicates = [evaluation.metrics.replicates for evaluation in evaluations if evaluation.metrics]
    rows = []
    for own, evaluation in zip(replicates, evaluations, strict=True):
        row = {}
        for group, key in _COMPARED:
            name = f"{group}_{key}"
            here, there = _value(evaluation, group, key), _value(evaluations[0], group, key)
            if here is None or there is None:
                row[name] = Difference(None)
            else:
                row[name] = Difference(here - there, *interval_of(own[name] - replicates[0][name]))
        rows.append(row)
    return rows


def _value(evaluation: Evaluation, group: str, key: str) -> float | None:
    assert evaluation.metrics is not None
    metric: Metric = getattr(evaluation.metrics, group)[key]
    return metric.value


def to_json(evaluations: Sequence[Evaluation], rows: Sequence[dict[str, Difference]]) -> list[dict[str, Any]]:
    """A list with one object per bundle."""
    return [
        {
            **evaluation_json(evaluation),
            "differences": {
                name: {"value": d.value, "low": d.low, "high": d.high} for name, d in row.items()
            },
        }
        for evaluation, row in zip(evaluations, rows, strict=True)
    ]


def table_rows(
    evaluations: Sequence[Evaluation], rows: Sequence[dict[str, Difference]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Figures, and what else a bundle is chosen by: name first, then a cell per bundle."""
    figures_shown = []
    if evaluations[0].metrics is not None:
        for group, key in _COMPARED:
            cells = [
                shown(_value(evaluation, group, key), row[f"{group}_{key}"], first=number == 0)
                for number, (evaluation, row) in enumerate(zip(evaluations, rows, strict=True))
            ]
            figures_shown.append([_NAMES[group][key], *cells])
    return figures_shown, [[title, *map(cell, evaluations)] for title, cell in _FACTS]


def print_comparison(evaluations: Sequence[Evaluation], rows: Sequence[dict[str, Difference]]) -> None:
    """One column per bundle: accuracy, latency, size."""
    table = table_of(("figure", *titles(evaluations)), title=f"bundles on {evaluations[0].data['name']}")
    for part in table_rows(evaluations, rows):
        for row in part:
            table.add_row(*row)
        table.add_section()
    show(table, *([EXPLANATION] if evaluations[0].metrics is not None else []))


EXPLANATION = (
    "In brackets the difference from the first bundle and its 95 % interval, with * where that leaves out 0."
)
_FACTS: tuple[tuple[str, Callable[[Evaluation], str]], ...] = (
    ("backbone", lambda e: f"{e.manifest.embedding.backbone}, {e.manifest.embedding.precision}"),
    ("memory bank", lambda e: f"{e.manifest.memory_bank.count:,} x {e.manifest.memory_bank.dim}"),
    ("size", lambda e: f"{e.bytes / 1e6:.1f} MB"),
    ("runs on", lambda e: f"{e.runs_on['provider']} {e.runs_on['precision']}, {e.runs_on['search']}"),
    ("threshold", lambda e: format_l2(e.threshold)),
    ("ms an image, p50", lambda e: f"{e.latency_ms['total']['p50']:.1f}"),
    ("ms an image, p99", lambda e: f"{e.latency_ms['total']['p99']:.1f}"),
)


def shown(value: float | None, difference: Difference, *, first: bool) -> str:
    """A figure with its difference from the first bundle's."""
    if value is None:
        return "not defined"
    if first or difference.value is None:
        return f"{value:.4f}"
    interval = f" {difference.low:+.4f} .. {difference.high:+.4f}" if difference.low is not None else ""
    return f"{value:.4f} ({difference.value:+.4f}{interval}{' *' if difference.certain else ''})"
