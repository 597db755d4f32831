"""What a report is made of: latencies, and accuracy where it was evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcbench.latency.cell import PAIRED_BY
from pcbench.latency.load import Measured, NotRun, cells_of, is_latency, read_json, shown_threads
from pcrun.errors import PcError


@dataclass(frozen=True)
class Accuracy:
    """Of one bundle, by `pcexport eval`.

    Attributes:
        image_auroc: with `low` and `high`, its 95 % interval.
        data: name of the images it was measured on.
    """

    image_auroc: float
    low: float | None
    high: float | None
    data: str


@dataclass
class Inputs:
    """Everything that was read.

    Attributes:
        cells: what was measured, a kind of image each.
        not_run: what could not be.
        accuracy: by the digest of the bundle.
        left_out: files of other kinds, with the reason.
    """

    cells: list[Measured] = field(default_factory=list)
    not_run: list[NotRun] = field(default_factory=list)
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Read results of `pcbench latency`, reports of `pcrun bench` and JSON of `pcexport eval`.

    Raises:
        PcError: a file cannot be read, or there is no latency in any.
    """
    found = Inputs()
    for file, data in read_json(paths):
        evaluations = [e for e in (data if isinstance(data, list) else [data]) if _is_evaluation(e)]
        if is_latency(data):
            cells = cells_of(file, data)
            if isinstance(cells, NotRun):
                found.not_run.append(cells)
            else:
                found.cells += cells
        elif evaluations:
            for evaluation in evaluations:
                _add_accuracy(found, file, evaluation)
        else:
            kind = data.get("kind") if isinstance(data, dict) else None
            found.left_out.append(f"{file.name}: {f'of kind {kind}' if kind else 'not a result'}")
    if not found.cells and not found.not_run:
        raise PcError(
            f"None of the files holds latencies ({'; '.join(found.left_out) or 'evaluations alone'}). "
            "Expected results of `pcbench latency` or reports of `pcrun bench`."
        )
    return found


def _is_evaluation(data: Any) -> bool:
    return isinstance(data, dict) and {"bundle", "metrics", "runs_on"} <= set(data)


def _add_accuracy(found: Inputs, file: Path, evaluation: dict[str, Any]) -> None:
    metrics = evaluation["metrics"]
    auroc = metrics["image"]["auroc"] if metrics else {"value": None}
    if auroc["value"] is None:
        found.left_out.append(f"{file.name}: an evaluation without an image AUROC")
        return
    digest = evaluation["bundle"]["digest"]
    accuracy = Accuracy(auroc["value"], auroc["low"], auroc["high"], evaluation["data"]["name"])
    if found.accuracy.setdefault(digest, accuracy) != accuracy:
        raise PcError(
            f"{file} holds another accuracy of a bundle that was evaluated before. Expected one evaluation "
            "of each bundle; leave one out."
        )


def short_names(cells: Sequence[Measured]) -> list[str]:
    """Cells by those settings in which they differ; kinds of images are not named.

    Where nothing differs, the bundle.
    """
    differing = [name for name in PAIRED_BY if len({str(cell.asked[name]) for cell in cells}) > 1] or [
        "bundle"
    ]
    return [
        ", ".join([*(_shown(name, cell.asked[name]) for name in differing), *_again(cell)]) for cell in cells
    ]


def _again(cell: Measured) -> list[str]:
    """Named where a cell was measured several times; the first one as if it were alone."""
    return [f"run {cell.run}"] if cell.run > 1 else []


def _shown(name: str, value: Any) -> str:
    if name == "threads":
        return shown_threads(value)
    if name == "batch":
        return f"batch {value}"
    if name == "device_profile":
        return "device profile" if value else "no profile"
    if name == "precision" and value == "bundle":
        return "own precision"
    return str(value)


def per_image_ms(cell: Measured) -> float:
    """Median latency of a query, divided by its images."""
    median: float = cell.result["latency_ms"]["median"]
    images: int = cell.result.get("images_per_query", 1)
    return median / images
