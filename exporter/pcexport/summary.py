"""Tables for people: what a build made, what a bundle is, which backbones there are."""

from typing import TYPE_CHECKING

from pcexport.backbones.registry import list_backbones, student_files
from pcexport.datasets import LAYOUTS
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import (
    AccuracySpec,
    EmbeddingSpec,
    Manifest,
    ParitySpec,
    PastThresholds,
    PrecisionSpec,
    ThresholdSpec,
)
from pcrun.commands.tables import facts_table, show, table_of

if TYPE_CHECKING:
    from pcexport.build import BuildSummary
    from pcexport.calibration.recalibrate import CalibrateSummary


def print_summary(summary: "BuildSummary") -> None:
    """The table at the end of `pcexport build`."""
    facts = facts_table(_facts(summary.manifest), title=f"{summary.output}  ({summary.bytes / 1e6:.1f} MB)")
    if summary.embed_ms:
        facts.add_row(
            "embedder",
            ", ".join(f"{name} {value:.1f} ms" for name, value in summary.embed_ms.items())
            + " an image (medians, in turns)",
        )
    if summary.profile:
        settings = summary.profile.settings
        facts.add_row(
            "on this machine",
            f"{summary.profile.median_ms:.1f} ms an image (median), search {settings.search}, "
            f"provider {settings.provider}; stored as its device profile",
        )
    rows = [(name, f"{seconds:.1f}") for name, seconds in summary.seconds.items()]
    times = table_of(("step", "s"), rows, title="seconds per step")
    times.add_row("total", f"{sum(summary.seconds.values()):.1f}", style="bold")
    show(facts, times)


def print_calibration(summary: "CalibrateSummary") -> None:
    """The table at the end of `pcexport calibrate`."""
    before, after = summary.before, summary.manifest.scoring
    kind = "zip" if summary.output.is_file() else "directory"
    rows = [
        ("threshold", _threshold(after.threshold)),
        ("before", _threshold(before.threshold)),
        ("pixel threshold", _threshold(after.pixel_threshold)),
        ("before", _threshold(before.pixel_threshold)),
        ("scored with", f"{summary.scored_with['provider']} {summary.scored_with['precision']}"),
        ("digest", summary.digest),
    ]
    show(facts_table(rows, title=f"{summary.output}  ({kind})"))


def print_bundle(bundle: Bundle) -> None:
    """What `pcexport inspect` shows."""
    rows = [*_facts(bundle.manifest), ("digest", bundle.digest)]
    rows += [
        (name, f"{entry.bytes:,} bytes, sha256 {entry.sha256[:16]}…")
        for name, entry in sorted(bundle.manifest.files.items())
    ]
    created_by = ", ".join(f"{k} {v}" for k, v in sorted(bundle.manifest.created_by.items()))
    show(facts_table([*rows, ("created by", created_by)], title=str(bundle.path)))


def print_backbones() -> None:
    """What `pcexport backbones` shows."""
    # The one table that needs onnx.
    from pcexport.backbones.student_file import read_student

    table = table_of(("name", "layers", "from", "note"), title="backbones", words=range(4))
    for path in student_files():
        facts = read_student(path).facts
        table.add_row(path.stem, ", ".join(facts.layers), "student file", facts.note)
    for spec in list_backbones():
        table.add_row(spec.name, ", ".join(spec.default_layers), spec.family, spec.note)
    show(
        table,
        "Any other torchvision classification CNN works with --layers, any timm model as timm:NAME, and a\n"
        "student file of `pcexport distill` by its path. All but students need the extra `export`.",
    )


def print_layouts() -> None:
    """What `pcexport datasets` shows."""
    rows = [(layout.name, layout.title, layout.expects) for layout in LAYOUTS.values()]
    table = table_of(("name", "title", "what DATA holds"), rows, title="layouts of data", words=range(3))
    table.show_lines = True
    table.columns[0].no_wrap = True
    show(
        table,
        "`pcexport build` finds out which one it is; --layout NAME decides. More: docs/datasets.md.",
    )


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    source, embedding, bank = manifest.source, manifest.embedding, manifest.memory_bank
    rows = [
        ("source", f"{source.name} ({source.layout})"),
        ("images", f"{source.images_bank} in the bank, {source.images_held_out} held out, "
                   f"{source.images_skipped} left out"),
        ("backbone", f"{embedding.backbone} {','.join(embedding.layers)}; "
                     f"weights: {embedding.weights_source}"),
        ("input", f"{manifest.preprocess.crop_height_px}x{manifest.preprocess.crop_width_px} px, "
                  f"{embedding.grid_height}x{embedding.grid_width} patches of {embedding.dim}-d"),
        ("memory bank", f"{bank.count:,} of {bank.coreset.candidates:,} patches ({bank.coreset.method})"),
        ("threshold", _threshold(manifest.scoring.threshold)),
        ("pixel threshold", _threshold(manifest.scoring.pixel_threshold)),
    ]  # fmt: skip
    if manifest.scoring.calibrated_on:
        rows.append(("calibrated on", manifest.scoring.calibrated_on.name))
    if manifest.scoring.history:
        rows.append(("earlier thresholds", ", ".join(_past(past) for past in manifest.scoring.history)))
    if manifest.parity:
        rows.append(("parity torch/ONNX", _parity(manifest.parity)))
    if manifest.precision:
        rows.append(("precision", _precision(manifest.embedding, manifest.precision)))
    rows += [("search", _search(manifest))]
    if manifest.accuracy:
        accuracy = manifest.accuracy
        rows.append(("accuracy", f"image AUROC {accuracy.image_auroc:.4f}" + _counts(accuracy)))
    return rows


def _parity(spec: ParitySpec) -> str:
    recorded = "" if spec.recorded_values is None else f" ({spec.recorded_values} values in the student file)"
    return f"{spec.max_relative_error:.1e} relative, {spec.max_absolute_error:.1e} absolute{recorded}"


def _counts(accuracy: AccuracySpec) -> str:
    """Wrong verdicts on the test images, where they were counted at the threshold in force."""
    if accuracy.false_alarms is None or accuracy.misses is None:
        return ""
    return (
        f"; {accuracy.false_alarms} false alarms of {accuracy.images_normal}, "
        f"{accuracy.misses} misses of {accuracy.images_defective}"
    )


def _past(past: PastThresholds) -> str:
    where = past.calibrated_on.name if past.calibrated_on else "build"
    return f"{past.threshold.value:.4f} ({where})" if past.threshold else f"none ({where})"


def _precision(embedding: EmbeddingSpec, spec: PrecisionSpec) -> str:
    projected = f", projected from {embedding.projected_from}-d" if embedding.projected_from else ""
    auroc = (
        ""
        if spec.reference_auroc is None
        else f"; image AUROC in {spec.reference} {spec.reference_auroc:.4f}"
    )
    return (
        f"{embedding.precision}{projected}; beside {spec.reference}, scores drift by "
        f"{spec.mean_score_drift:.2%} of the threshold on average, {spec.max_score_drift:.2%} at most, "
        f"{spec.flipped_verdicts} of {spec.images} verdicts differ{auroc}"
    )


def _threshold(spec: ThresholdSpec | None) -> str:
    if spec is None:
        return "none"
    return (
        f"{spec.value:.4f} ({spec.method}, {spec.images} normal images; false-alarm rate "
        f"{spec.false_alarm_rate_expected:.2%} expected, "
        f"at most {spec.false_alarm_rate_upper_95:.2%} at 95%)"
    )


def _search(manifest: Manifest) -> str:
    if manifest.memory_bank.index is None:
        return "8-bit or exact (no index)"
    chosen = next((m for m in manifest.search.measured if m.ef == manifest.search.ef), None)
    recall = f", recall@1 {chosen.recall_at_1:.3f}" if chosen else ""
    worst = f", image score error before verification {chosen.worst_image_score_error:.1e}" if chosen else ""
    dim = f" in {manifest.search.dim} dimensions" if manifest.search.dim else ""
    return f"HNSW{dim}, ef {manifest.search.ef}{recall}{worst}; verdict and mask are verified exactly"
