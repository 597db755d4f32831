"""An evaluation as files and as a table: JSON, CSV per image, terminal."""

import csv
import io
import json
from pathlib import Path

from pcexport.evaluation.metrics import Metric
from pcexport.evaluation.run import Evaluation, to_json
from pcexport.evaluation.scored import ScoredImage
from pcexport.report.format import format_l2
from pcrun.commands.tables import show, table_of
from pcrun.files import write_file

CSV_FIELDS = (
    "image", "label", "class", "score", "threshold", "verdict", "map_maximum", "regions", "width_px",
    "height_px", "defect_px", "found_px", "false_px", "total_ms",
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
            "width_px": image.size[0],
            "height_px": image.size[1],
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
    found = {label: len(evaluation.of_label(label)) for label in ("normal", "defective", "unlabelled")}
    images = ", ".join(f"{count:,} {label}" for label, count in found.items() if count)
    title = f"{evaluation.manifest.name} on {evaluation.data['name']}"
    table = table_of(("figure", "value", "95 % interval"), title=title)
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
    show(table)
    if metrics and metrics.classes:
        _print_classes(evaluation)


def _print_classes(evaluation: Evaluation) -> None:
    assert evaluation.metrics is not None
    columns = ("class", "images", "found", "image AUROC", "pixel AUROC", "AUPRO up to 30 %")
    table = table_of(columns, title="classes of defects")
    for name, figures in evaluation.metrics.classes.items():
        members = [image for image in evaluation.scored if image.image.defect == name]
        found = sum(image.is_anomalous for image in members)
        values = (described(figures[key])[0] for key in ("image_auroc", "auroc", "aupro_30"))
        table.add_row(name, str(len(members)), str(found), *values)
    show(table)


def described(metric: Metric) -> tuple[str, str]:
    """Value and interval as text; why there is none in place of a number."""
    if metric.value is None:
        return "not defined", metric.undefined or ""
    interval = f"{metric.low:.4f} .. {metric.high:.4f}" if metric.low is not None else ""
    return f"{metric.value:.4f}", interval
