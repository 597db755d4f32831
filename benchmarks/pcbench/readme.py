"""`pcbench readme`: the figures of README.md, rendered from the result files."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pcbench.latency.load import Measured, NotRun, cells_of, shown_threads
from pcbench.peers.table import absent_titles, difference, ours_line
from pcbench.results import load_results
from pcrun.commands.options import EXACTNESS_LEVELS
from pcrun.errors import PcError

BEGIN = "<!-- figures: `pcbench readme` writes what stands between these two lines -->"
END = "<!-- end of figures -->"

# Of the cells of a sweep, each of which is a file.
SWEEPS = "latency-*"
_PACKAGES = ("onnxruntime", "openvino", "hnswlib", "numpy", "torch", "anomalib")
_STAGES = ("preprocess_ms", "embed_ms", "search_ms", "verify_ms", "map_ms")

# Machine and versions of a result, as they stand below its table; nothing where they are said once for all.
Device = Callable[[dict[str, Any]], str]


def render(results_folder: Path) -> str:
    """Markdown tables of all results."""
    results = load_results(results_folder)
    sweeps = [load_results(folder) for folder in sorted(results_folder.glob(SWEEPS))]
    shared = _shared_device([*results, *itertools.chain(*sweeps)])
    device: Device = _device if shared is None else lambda result: ""
    parts = [_TABLES[kind]([r for r in results if r["kind"] == kind], device) for kind in _TABLES]
    parts += [_latency_table(sweep, device) for sweep in sweeps]
    parts += [_environments_table([r for r in results if r["kind"] == "environments"], device)]
    parts += [f"All measured on {shared}"] if shared else []
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


def _head(names: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [_row(names), "|---" * len(names) + "|"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _build_table(results: list[dict[str, Any]], device: Device) -> str:
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
    rows = _head(heads)
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
    return _with_note(rows, device(results[0]))


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} MB"


def _search_tables(results: list[dict[str, Any]], device: Device) -> str:
    return "\n\n".join(_search_table(result, device) for result in results)


def _search_table(result: dict[str, Any], device: Device) -> str:
    heads = (
        "memory bank",
        "images",
        "search",
        *(stage.removesuffix("_ms") for stage in _STAGES),
        "certified",
        "bare embedder",
        "exact",
        "one graph",
    )
    rows = _head(heads)
    for bundle in result["bundles"]:
        for kind, content in bundle["contents"].items():
            timed = content["end_to_end"]
            stages = [f"{timed['certified']['stages_ms'][stage]:.1f}" for stage in _STAGES]
            medians = [
                f"{timed[job]['median_ms']:.1f}" if job in timed else "-"
                for job in ("certified", "bare embedder", "exact", "one graph")
            ]
            cells = [f"{bundle['bank']:,}", kind, bundle["settings"]["search"], *stages, *medians]
            rows.append(_row(cells))
    starts = [
        f"{bundle['bank']:,} entries {bundle['cold_start']['median_ms'] / 1e3:.2f} s and "
        f"{_megabytes(bundle['cold_start']['peak_rss_mb'])}"
        for bundle in result["bundles"]
        if "cold_start" in bundle
    ]
    cold = f"From process start to first verdict, resident memory: {'; '.join(starts)}. " if starts else ""
    return _with_note(rows, f"{result['name']}, median ms per image. {cold}{device(result)}")


def _latency_table(results: list[dict[str, Any]], device: Device) -> str:
    """Medians of single images by exactness, of the most threads that were measured; a row per bundle."""
    cells = []
    for result in results:
        found = cells_of(Path(result["file"]), result)
        cells += [] if isinstance(found, NotRun) else found
    if not cells:
        return ""
    levels = [x for x in EXACTNESS_LEVELS if any(cell.asked["exactness"] == x for cell in cells)]
    threads = sorted({cell.asked["threads"] for cell in cells})
    contents = list(dict.fromkeys(cell.content for cell in cells))
    heads = (
        "network, precision",
        "memory bank",
        *(f"{level}, {shown_threads(threads[-1])}" for level in levels),
        *(f"mask, {shown_threads(count)}" for count in threads[:-1]),
        "p99 of mask",
    )
    rows = _head(heads)
    for bundle in sorted({cell.asked["bundle"] for cell in cells}, key=_order_of(cells)):
        own = {
            (cell.asked["exactness"], cell.asked["threads"], cell.content): cell
            for cell in cells
            if cell.asked["bundle"] == bundle and cell.asked["batch"] == 1
        }
        first = next(iter(own.values()))
        facts = first.whole
        wanted = [(level, threads[-1], "median") for level in levels]
        wanted += [("mask", count, "median") for count in threads[:-1]] + [("mask", threads[-1], "p99")]
        shown = [
            ", ".join(_milliseconds(own.get((level, count, content)), figure) for content in contents)
            for level, count, figure in wanted
        ]
        weights = ", random weights" if first.has_random_weights else ""
        rows.append(
            f"| {facts['bundle']['backbone']}{weights}, {facts['settings']['precision']} | "
            f"{facts['bundle']['memory_bank']:,} x {facts['bundle']['dim']:,} | {' | '.join(shown)} |"
        )
    note = f"Median milliseconds from an image's file to its verdict, by exactness: {', '.join(contents)}."
    return _with_note(rows, f"{note} {device(results[0])}")


def _order_of(cells: list[Measured]) -> Callable[[str], tuple[Any, ...]]:
    facts = {cell.asked["bundle"]: cell.whole for cell in cells}
    return lambda name: (
        facts[name]["bundle"]["dim"],
        facts[name]["settings"]["precision"],
        facts[name]["bundle"]["memory_bank"],
    )


def _milliseconds(cell: Measured | None, figure: str) -> str:
    if cell is None:
        return "-"
    value: float = cell.result["latency_ms"][figure]
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _coreset_table(results: list[dict[str, Any]], device: Device) -> str:
    if not results:
        return ""
    heads = (
        "coreset",
        "lazy greedy",
        "plain greedy",
        "ratio",
        "distances computed",
        "memory beside the rows",
    )
    rows = _head(heads)
    for result in results:
        from_part = f" (from {result['plain_picks']:,} picks)" if result["plain_extrapolated"] else ""
        rows.append(
            f"| {result['name']}: {result['picks']:,} of {result['rows']:,} x {result['dim']} | "
            f"{result['seconds']:.1f} s | {result['plain_seconds']:.0f} s{from_part} | "
            f"{result['ratio']:.0f}x | "
            f"{result['distances_share']:.1%} of plain | {_megabytes(result['memory_mb'])} |"
        )
    return _with_note(rows, f"Same rows in the same order. {device(results[0])}")


def _embedder_tables(results: list[dict[str, Any]], device: Device) -> str:
    return "\n\n".join(_embedder_table(result, device) for result in results)


def _embedder_table(result: dict[str, Any], device: Device) -> str:
    heads = ("embedder", "provider", "median ms", "p90 ms", "of fp32", "image AUROC")
    rows = _head(heads)
    for row in result["rows"]:
        auroc = "-" if row["image_auroc"] is None else f"{row['image_auroc']:.4f}"
        rows.append(
            f"| {row['backbone']}, {row['precision']}, {row['dim']}-d | {row['provider']} | "
            f"{row['median_ms']:.1f} | {row['p90_ms']:.1f} | {row['of_fp32']:.2f} | {auroc} |"
        )
    note = (
        f"{result['name']}, {result['images']} images, {shown_threads(result['threads'])}, measured in turns."
    )
    return _with_note(rows, f"{note} {device(result)}")


def _soak_table(results: list[dict[str, Any]], device: Device) -> str:
    if not results:
        return ""
    heads = ("live source", "minutes", "frames", "scored", "dropped", "age p50, p99", "memory", "growth")
    rows = _head(heads)
    for result in results:
        age, slope = result["age_ms"], result["rss_slope_mb_per_minute"]
        cells = (
            f"{result['name']}, {result['fps']:.0f} a second",
            str(len(result["minutes"])),
            f"{result['frames']:,}",
            f"{result['scored']:,}",
            f"{result['dropped']:,}",
            f"{age['p50']:.0f} ms, {age['p99']:.0f} ms",
            f"{result['minutes'][-1]['rss_mb']:.0f} MB",
            "-" if slope is None else f"{slope:+.2f} MB a minute",
        )
        rows.append(_row(cells))
    note = (
        "Age of a frame at its verdict; the last frames came when it was over. Growth after the first minute."
    )
    return _with_note(rows, f"{note} {device(results[0])}")


def _peers_table(results: list[dict[str, Any]], device: Device) -> str:
    if not results:
        return ""
    heads = (
        "images, memory bank",
        "peer",
        "pcrun ms",
        "peer ms",
        "peer / pcrun (rounds)",
        "memory: pcrun, peer",
        "scores differ by",
    )
    rows = _head(heads)
    for result in results:
        for pair in result["pairs"]:
            ours, theirs = pair["ours"], pair["theirs"]
            cells = (
                f"{result['name']}, {result['bank']:,}",
                pair["title"],
                f"{ours['median_ms']:.1f}",
                f"{theirs['median_ms']:.1f}",
                f"{pair['ratio']:.2f} ({pair['ratio_least']:.2f} .. {pair['ratio_most']:.2f})",
                f"{_megabytes(ours['peak_rss_mb'])}, {_megabytes(theirs['peak_rss_mb'])}",
                difference(result["checks"][pair["peer"]]),
            )
            rows.append(_row(cells))
    settings = "; ".join(dict.fromkeys(ours_line(result) for result in results))
    absent = [f"{title} ({result['name']})" for result in results for title in absent_titles(result)]
    left_out = f" Absent: {', '.join(absent)}." if absent else ""
    note = (
        "Decoded image to verdict and map, pair by pair in turns, median ms; in brackets the least and the "
        f"most of the rounds, each with new processes.{left_out} {settings}."
    )
    return _with_note(rows, f"{note} {device(results[0])}")


def _environments_table(results: list[dict[str, Any]], device: Device) -> str:
    if not results:
        return ""
    rows = _head(("installed", "for", "packages", "on disk"))
    rows += [
        _row((f"`{row['extras']}`", row["title"], str(row["packages"]), _megabytes(row["bytes"] / 1e6)))
        for result in results
        for row in result["environments"]
    ]
    sizes = " and ".join(f"{kind} {results[0][f'{kind}_bytes'] / 1e6:.1f} MB" for kind in ("wheel", "sdist"))
    return _with_note(
        rows, f"A virtual environment with the wheel and these extras; {sizes}. {device(results[0])}"
    )


def _with_note(rows: Sequence[str], note: str) -> str:
    return "\n".join([*rows, "", note.strip()] if note.strip() else rows)


def _device(result: dict[str, Any]) -> str:
    return _described(result["machine"], result["versions"])


def _shared_device(results: Sequence[dict[str, Any]]) -> str | None:
    """Machine and versions where no result says otherwise than another; a package may be missing in some."""
    if not results:
        return None
    versions: dict[str, str] = {}
    for result in results:
        for name in _PACKAGES:
            if (
                name in result["versions"]
                and versions.setdefault(name, result["versions"][name]) != (result["versions"][name])
            ):
                return None
    machines = {_described(result["machine"], {}) for result in results}
    return _described(results[0]["machine"], versions) if len(machines) == 1 else None


def _described(machine: dict[str, Any], versions: dict[str, str]) -> str:
    listed = ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if name in versions)
    return f"{machine['cpu']}, {machine['cores']} cores; Python {machine['python']}, {listed}."


_TABLES: dict[str, Callable[[list[dict[str, Any]], Device], str]] = {
    "build": _build_table,
    "search": _search_tables,
    "embedder": _embedder_tables,
    "coreset": _coreset_table,
    "soak": _soak_table,
    "peers": _peers_table,
}
