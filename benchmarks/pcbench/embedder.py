"""`pcbench embedder`: milliseconds of the embedder alone, by precision and provider, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from pcbench.images import chosen_images
from pcbench.machine import machine_facts, versions
from pcbench.results import save_result
from pcbench.timing import WARM_UP_NOTE, in_turns, summary
from pcrun.backends.embedder import Embedder
from pcrun.backends.session import open_embedder
from pcrun.bundle.bundle import Bundle
from pcrun.commands.tables import table_of
from pcrun.errors import BackendError, PcError
from pcrun.images.image_io import read_image
from pcrun.machine.threads import available_cores
from pcrun.preprocess import preprocess
from pcrun.types import UInt8Array

REFERENCE = "fp32"


@dataclass(frozen=True)
class _Candidate:
    """One bundle's embedder on one provider."""

    bundle: Bundle
    embedder: Embedder

    @property
    def label(self) -> str:
        """What the row is called: bundles of one precision differ in name."""
        return f"{self.bundle.manifest.name}: {self.embedder.precision} {self.embedder.provider}"

    def facts(self) -> dict[str, Any]:
        """What it is, and the accuracy that its build measured."""
        spec, accuracy = self.bundle.manifest.embedding, self.bundle.manifest.accuracy
        return {
            "bundle": self.bundle.manifest.name,
            "digest": self.bundle.digest,
            "backbone": spec.backbone,
            "dim": spec.dim,
            "precision": self.embedder.precision,
            "provider": self.embedder.provider,
            "built_on": spec.provider,
            "image_auroc": None if accuracy is None else accuracy.image_auroc,
        }


def measure_embedders(
    bundles: Sequence[Path],
    images: Sequence[str],
    *,
    providers: Sequence[str],
    threads: int,
    max_images: int,
    output: Path,
    name: str,
) -> dict[str, Any]:
    """Run the embedder of every bundle on every provider, in turns, and save every sample.

    Args:
        bundles: of several precisions; the first must be the fp32 one that the others are compared with.
        images: files, folders or globs.
        providers: as in `pcrun`; the first one runs the reference.
        threads: 0 is one per available core.
        max_images: how many images to use, evenly spread.
        output: result file.
        name: title in reports.

    Raises:
        PcError: the bundles cannot be compared, or a provider does not work here.
    """
    opened = [Bundle.load(path) for path in bundles]
    _require_comparable(opened)
    candidates, left_out = _candidates(opened, providers, threads)
    prepared = _prepared(opened[0], images, max_images)
    jobs = {item.label: item.embedder.embed for item in candidates}
    if len(jobs) < len(candidates):
        raise PcError("Two bundles share name and precision. Expected names that tell them apart in a table.")
    samples = in_turns(jobs, prepared)
    rows = [{**item.facts(), **summary(samples[item.label])} for item in candidates]
    for row in rows:
        row["of_fp32"] = round(row["median_ms"] / rows[0]["median_ms"], 4)
        if row["image_auroc"] is not None and rows[0]["image_auroc"] is not None:
            row["auroc_difference"] = round(row["image_auroc"] - rows[0]["image_auroc"], 4)
    result = {
        "name": name,
        "machine": machine_facts(),
        "versions": versions(),
        "threads": threads or available_cores(),
        "images": len(prepared),
        "warm_up": WARM_UP_NOTE,
        "rows": rows,
        "left_out": left_out,
        "samples_ms": {label: [round(ms, 4) for ms in taken] for label, taken in samples.items()},
    }
    save_result(output, "embedder", result)
    return result


def described(result: dict[str, Any]) -> list[Table | str]:
    """The rows as people read them."""
    columns = ("bundle", "precision", "provider", "median ms", "p90 ms", "of fp32", "image AUROC")
    table = table_of(columns, words=range(3))
    for row in result["rows"]:
        auroc = "-" if row["image_auroc"] is None else f"{row['image_auroc']:.4f}"
        if "auroc_difference" in row:
            auroc += f" ({row['auroc_difference']:+.4f})"
        figures = (f"{row[name]:.2f}" for name in ("median_ms", "p90_ms", "of_fp32"))
        table.add_row(row["bundle"], row["precision"], row["provider"], *figures, auroc)
    return [table, *(f"left out: {reason}" for reason in result["left_out"])]


def _require_comparable(bundles: Sequence[Bundle]) -> None:
    first = bundles[0].manifest
    if first.embedding.precision != REFERENCE:
        raise PcError(
            f"The first bundle computes in {first.embedding.precision}. Expected an {REFERENCE} one: the "
            "others are compared with it."
        )
    for bundle in bundles:
        if bundle.manifest.preprocess != first.preprocess:
            raise PcError(
                f"{bundle.path} prepares images otherwise than {bundles[0].path}. Expected bundles that "
                "differ in precision alone, so that their latencies can be compared."
            )


def _candidates(
    bundles: Sequence[Bundle], providers: Sequence[str], threads: int
) -> tuple[list[_Candidate], list[str]]:
    """Every bundle on every provider; what a provider cannot compute is left out and named."""
    found, left_out = [], []
    for bundle in bundles:
        for provider in providers:
            try:
                embedder = open_embedder(
                    bundle.embedder, bundle.manifest.embedding, provider=provider, threads=threads
                )
            except BackendError as error:
                if bundle is bundles[0]:
                    raise
                left_out.append(f"{bundle.manifest.name} on {provider}: {error}")
            else:
                found.append(_Candidate(bundle, embedder))
    return found, left_out


def _prepared(bundle: Bundle, images: Sequence[str], max_images: int) -> list[UInt8Array]:
    spec = bundle.manifest.preprocess
    return [
        preprocess(read_image(file, white_level_16bit=spec.white_level_16bit), spec)[None]
        for file in chosen_images(images, max_images)
    ]
