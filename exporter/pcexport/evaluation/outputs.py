"""An evaluation as files and as a table: JSON, CSV per image, terminal."""

import csv
import io
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pcexport.evaluation.metrics import Metric
from pcexport.evaluation.run import Evaluation, to_json
from pcexport.evaluation.scored import ScoredImage
from pcexport.report.format import format_l2
from pcrun.files import write_file

CSV_FIELDS = (
    "image", "label", "class", "score", "threshold", "verdict", "map_maximum", "regions", "width", "height",
    "defect_px", "found_px", "false_px", "total_ms",
)  # fmt: skip
# Names of figures as people read them, in their order.
IMAGE_METRICS = {
    "auroc": "image AUROC",
    "aupr": "image AUPR",
    "best_f1": "image F1 at the best threshold",
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "false_positive_rate": "false-positive rate",
}
PIXEL_METRICS = {
    "auroc": "pixel AUROC",
    "aupro_30": "AUPRO up to 30 %",
    "aupro_05": "AUPRO up to 5 %",
    "best_f1": "pixel F1 at the best threshold",
    "recall": "pixel recall",
    "precision": "pixel precision",
    "f1": "pixel F1",
}


def write_outputs(evaluation: Evaluation, report: Path, root: Path) -> tuple[Path, Path]:
    """Write JSON and CSV beside a report; gives their paths.

    Raises:
        SinkError: they cannot be written.
    """
    as_json, as_csv = report.with_suffix(".json"), report.with_suffix(".csv")
    text = json.dumps(to_json(evaluation), indent=1, allow_nan=False)
    write_file(as_json, (text + "\n").encode())
    write_file(as_csv, csv_of(evaluation, root).encode("utf-8", "replace"))
    return as_json, as_csv


def csv_of(evaluation: Evaluation, root: Path) -> str:
    """One line per image; scores with all their digits, so that figures can be computed again."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for image in evaluation.scored:
        pixels = image.pixels
        row = {
            "image": name_of(image, root),
            "label": image.label,
            "class": image.image.defect or "",
            "score": repr(image.score),
            "threshold": repr(evaluation.threshold),
            "verdict": "anomalous" if image.is_anomalous else "normal",
            "map_maximum": repr(image.map_maximum),
            "regions": image.regions,
            "width": image.size[0],
            "height": image.size[1],
            "total_ms": round(image.timings_ms["total"], 3),
        }
        if pixels is not None:
            row |= {
                "defect_px": pixels.true + pixels.missed,
                "found_px": pixels.true,
                "false_px": pixels.false,
            }
        writer.writerow(row)
    return buffer.getvalue()


def name_of(image: ScoredImage, root: Path) -> str:
    """An image's path relative to the data, and which part of the file it is."""
    path = image.image.path
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return shown.as_posix() + image.image.ref.part


def print_evaluation(evaluation: Evaluation) -> None:
    """What `pcexport eval` shows on a terminal."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    found = {label: len(evaluation.of_label(label)) for label in ("normal", "defective", "unlabelled")}
    images = ", ".join(f"{count:,} {label}" for label, count in found.items() if count)
    table = Table(title=f"{evaluation.manifest.name} on {evaluation.data['name']}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_row("images", images, "")
    flagged = sum(image.is_anomalous for image in evaluation.scored)
    table.add_row(
        "called anomalous",
        f"{flagged:,} of {len(evaluation.scored):,}",
        f"above {format_l2(evaluation.threshold)}",
    )
    metrics = evaluation.metrics
    if metrics:
        for names, group in ((IMAGE_METRICS, metrics.image), (PIXEL_METRICS, metrics.pixel)):
            table.add_section()
            for key, name in names.items():
                table.add_row(name, *described(group[key]))
    table.add_section()
    total = evaluation.latency_ms["total"]
    table.add_row("milliseconds an image (p50)", f"{total['p50']:.1f}", f"p99 {total['p99']:.1f}")
    console.print(table)
    if metrics and metrics.classes:
        _print_classes(evaluation, console)


def _print_classes(evaluation: Evaluation, console: Console) -> None:
    assert evaluation.metrics is not None
    table = Table(title="classes of defects", title_justify="left")
    for number, column in enumerate(
        ("class", "images", "found", "image AUROC", "pixel AUROC", "AUPRO up to 30 %")
    ):
        table.add_column(column, justify="right" if number else "left")
    for name, figures in evaluation.metrics.classes.items():
        members = [image for image in evaluation.scored if image.image.defect == name]
        found = sum(image.is_anomalous for image in members)
        values = (described(figures[key])[0] for key in ("image_auroc", "auroc", "aupro_30"))
        table.add_row(name, str(len(members)), str(found), *values)
    console.print(table)


def described(metric: Metric) -> tuple[str, str]:
    """Value and interval as text; why there is none in place of a number."""
    if metric.value is None:
        return "not defined", metric.undefined or ""
    interval = f"{metric.low:.4f} .. {metric.high:.4f}" if metric.low is not None else ""
    return f"{metric.value:.4f}", interval
