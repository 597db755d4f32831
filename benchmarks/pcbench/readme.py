"""`pcbench readme`: the figures of README.md, rendered from the result files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pcbench.results import load_results
from pcrun.errors import PcError

BEGIN = "<!-- figures: `pcbench readme` writes what stands between these two lines -->"
END = "<!-- end of figures -->"

_STAGES = ("preprocess_ms", "embed_ms", "search_ms", "verify_ms", "map_ms", "total_ms")


def render(results_folder: Path) -> str:
    """Markdown tables of all results."""
    results = load_results(results_folder)
    parts = [_TABLES[kind]([r for r in results if r["kind"] == kind]) for kind in _TABLES]
    return "\n\n".join(part for part in parts if part)


def update(readme: Path, results_folder: Path, *, check: bool) -> bool:
    """Put the tables into the README; with `check` only compare.

    Returns:
        Whether the README held them already.

    Raises:
        PcError: the README lacks the two marker lines.
    """
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise PcError(f"{readme} lacks the lines between which the figures stand:\n{BEGIN}\n{END}")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    wanted = f"{head}{BEGIN}\n{render(results_folder)}\n{END}{tail}"
    if not check and wanted != text:
        readme.write_text(wanted, encoding="utf-8")
    return wanted == text


def _build_table(results: list[dict[str, Any]]) -> str:
    if not results:
        return ""
    heads = (
        "build",
        "images",
        "memory bank",
        "image AUROC",
        "false alarms, misses",
        "time",
        "peak memory",
        "bundle",
    )
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in results:
        manifest = result["manifest"]
        accuracy, bank = manifest["accuracy"], manifest["memory_bank"]
        measured = ["-", "-"]
        if accuracy:
            measured = [
                f"{accuracy['image_auroc']:.4f}",
                f"{accuracy['false_alarms']} of {accuracy['images_normal']}, "
                f"{accuracy['misses']} of {accuracy['images_defective']}",
            ]
        rows.append(
            f"| {result['name']} | {manifest['source']['images_bank']} | {bank['count']:,} of "
            f"{bank['coreset']['candidates']:,} | {measured[0]} | {measured[1]} | {result['wall_s']:.0f} s | "
            f"{_megabytes(result['peak_rss_mb'])} | {result['bundle_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join([*rows, "", _device(results[0])])


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} MB"


def _stages_table(results: list[dict[str, Any]]) -> str:
    if not results:
        return ""
    heads = " | ".join(stage.removesuffix("_ms") for stage in _STAGES)
    rows = [f"| median ms per image | search | {heads} |", "|---|---|" + "---|" * len(_STAGES)]
    for result in results:
        for level, search in (("image", f"{result['search']}, certified"), ("full", "exact")):
            values = " | ".join(f"{result['median_ms'][level][stage]:.1f}" for stage in _STAGES)
            rows.append(f"| {result['name']}, bank {result['bank']:,} | {search} | {values} |")
    first = results[0]
    note = f"{first['images']} images, warm-up of {first['warm_up']} dropped, {first['threads']} threads"
    return "\n".join([*rows, "", f"{note}, provider {first['provider']}. {_device(first)}"])


def _device(result: dict[str, Any]) -> str:
    machine, packages = result["machine"], result["versions"]
    names = ("onnxruntime", "hnswlib", "numpy", "torch")
    listed = ", ".join(f"{name} {packages[name]}" for name in names if name in packages)
    return f"{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, {listed}."


_TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {"build": _build_table, "stages": _stages_table}
