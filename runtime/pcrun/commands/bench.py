"""The job behind `pcrun bench`: measure, print, store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from pcrun.bench.cold import cold_starts
from pcrun.bench.content import Content, file_content, golden_contents, video_content
from pcrun.bench.measure import SCENARIOS, Job, measure
from pcrun.bench.scenarios import Limits
from pcrun.bundle.bundle import Bundle
from pcrun.commands.run import DetectorOptions, find_bundle, load_detector, say
from pcrun.commands.support import print_json
from pcrun.commands.tables import show, table_of
from pcrun.detector import missing_limit
from pcrun.errors import SourceError
from pcrun.files import make_folder, write_file
from pcrun.words import plural

_COLUMNS = ("median", "mean", "p90", "p95", "p99", "max")


def bench_here(
    bundle: Path | None,
    *,
    images: tuple[str, ...],
    video: Path | None,
    scenarios: tuple[str, ...],
    duration_s: float,
    queries: int,
    bound_ms: float,
    fps: float,
    starts: int,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure a bundle on this machine; returns the exit code."""
    if output is not None:
        make_folder(output.parent)  # before minutes of measuring
    opened = Bundle.load(find_bundle(bundle))
    contents = _contents(opened, images, video)
    # A bundle without thresholds can be measured all the same: nothing is anomalous then.
    limit = missing_limit(opened.manifest)
    detector = load_detector(
        opened, DetectorOptions(threshold=limit, pixel_threshold=limit, **options), share_with=()
    )
    job = Job(scenarios or SCENARIOS[:1], Limits(duration_s, queries), bound_ms, fps)
    report = measure(detector, contents, job, say)
    if starts:
        say("cold starts")
        report["cold_start_s"] = _cold_starts(opened, contents[0], options, starts)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    if output is not None:
        write_file(output, (text + "\n").encode())
    if as_json:
        print_json(report)
    else:
        show(*described(report))
    return 0


def _contents(bundle: Bundle, images: tuple[str, ...], video: Path | None) -> list[Content]:
    if video is not None:
        return [video_content(video)]
    if images:
        return [file_content(images, white_level_16bit=bundle.manifest.preprocess.white_level_16bit)]
    return golden_contents(bundle)


def _cold_starts(bundle: Bundle, content: Content, options: dict[str, Any], starts: int) -> list[float]:
    first = content.items[0]
    if first.data is None:
        raise SourceError("Cold starts are measured on a file. Give --images, or --starts 0 with --video.")
    arguments = ["--bundle", str(bundle.path)]
    for name, value in options.items():
        if value is True:
            arguments.append("--" + name.replace("_", "-"))
        elif value not in (None, False):
            arguments += ["--" + name.replace("_", "-"), str(value)]
    seconds = cold_starts(arguments, first.data, Path(first.name).suffix, starts=starts)
    return [round(value, 4) for value in seconds]


def described(report: dict[str, Any]) -> list[Table | str]:
    """The report for a terminal."""
    settings = ", ".join(_settings(report["settings"]))
    bundle, machine = report["bundle"], report["machine"]
    parts: list[Table | str] = [
        f"{bundle['file'] or bundle['name']}: {bundle['backbone']}, memory bank {bundle['memory_bank']:,}",
        f"{machine['cpu']}, {machine['cores']} cores; {settings}",
        f"the first {report['warm_up_images']} images of each kind are warm-up and not counted",
    ]
    for content in report["contents"]:
        images = content["images"]
        parts.append(f"\n{content['name']} ({images:,} {plural(images, 'image')})")
        for name, result in content["scenarios"].items():
            parts += _scenario(name, result)
    if "cold_start_s" in report:
        starts = ", ".join(f"{value:.2f}" for value in report["cold_start_s"])
        parts.append(f"\nprocess start to first verdict: {starts} s")
    return [*parts, f"peak resident memory {report['peak_resident_mb']} MB"]


def _settings(settings: dict[str, Any]) -> Iterator[str]:
    """In words; what does not apply is left out."""
    for key, value in settings.items():
        name = key.replace("_", " ")
        if isinstance(value, bool):
            yield name if value else f"no {name}"
        elif value is not None:
            yield f"{name} {value}"


def _scenario(name: str, result: dict[str, Any]) -> list[Table | str]:
    value = result["value"]
    shown = "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
    parts: list[Table | str] = [f"{name}: {result['metric']} {shown}"]
    if "latency_ms" in result:
        summary = result["latency_ms"]
        stages = {**result.get("stages_ms", {}), "age" if "fps" in result else "query": summary}
        rows = [
            (stage, *(f"{figures[column]:.2f}" for column in _COLUMNS)) for stage, figures in stages.items()
        ]
        parts.append(table_of(("ms", *_COLUMNS), rows))
        parts.append(f"{summary['count']:,} queries, standard deviation {summary['std']:.2f} ms")
    if "images_per_second" in result:
        parts.append(f"{result['images_per_second']:.1f} images a second")
    if "fps" in result:
        parts.append(
            f"{result['frames']:,} frames at {result['fps']:g} a second: {result['scored']:,} scored, "
            f"{result['dropped']:,} dropped, the others came when it was over"
        )
    return [*parts, *(f"warning: {warning}" for warning in result["warnings"])]
