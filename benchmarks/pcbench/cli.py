"""`pcbench`: measurements anybody can repeat. `--help` and `--version` load nothing heavy."""

import sys
from pathlib import Path
from typing import Any

import click

from pcbench.console import say
from pcbench.peers.command import peers
from pcrun._version import __version__
from pcrun.commands import options as cli_options
from pcrun.commands.support import HELP_SETTINGS, debug_option, run_command

_RESULTS = Path("benchmarks/results")


@click.group(context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name="pcbench")
@debug_option
def cli() -> None:
    """Measure builds and verdicts, and put the figures into the README."""


cli.add_command(peers)


@cli.command(context_settings={**HELP_SETTINGS, "ignore_unknown_options": True})
@click.argument("data")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", required=True, help="Title in reports.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file (JSON).")
def build(data: str, flags: tuple[str, ...], name: str, output: Path) -> int:
    """Time a whole `pcexport build DATA`; FLAGS after `--` are passed on to it."""
    from pcbench.build import measure_build

    result = measure_build(data, list(flags), output, name)
    print(f"{output}: {result['wall_s']:.1f} s, peak memory {result['peak_rss_mb']} MB")
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option(
    "--bundle",
    "bundles",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle to measure; repeatable, for banks of several sizes.",
)
@click.option(
    "--normal",
    required=True,
    multiple=True,
    metavar="PATH",
    help="Normal images: files, folders, globs, or @FILE with one path a line; repeatable.",
)
@click.option(
    "--defective", multiple=True, metavar="PATH", help="Defective images, likewise; reported apart."
)
@click.option("--max-images", type=click.IntRange(6), default=75, show_default=True, help="Of each kind.")
@click.option("--cold-start/--no-cold-start", default=True, show_default=True, help="Start processes too.")
@click.option("--name", required=True, help="Title in reports.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file (JSON).")
def search(
    bundles: tuple[Path, ...],
    normal: tuple[str, ...],
    defective: tuple[str, ...],
    max_images: int,
    cold_start: bool,
    name: str,
    output: Path,
) -> int:
    """Certified search beside brute force: alone, end to end, and from a cold start."""
    from pcbench.search import measure_search, table

    contents = {"normal": list(normal)} | ({"defective": list(defective)} if defective else {})
    result = measure_search(
        bundles, contents, max_images=max_images, starts=cold_start, output=output, name=name
    )
    print(table(result))
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option(
    "--bundle",
    "bundles",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle to measure; repeatable. The first is the fp32 one that the others are compared with.",
)
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="As in pcrun; repeatable.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads; 0 is one per available core.")
@click.option("--max-images", type=click.IntRange(6), default=200, show_default=True, help="Images used.")
@click.option("--name", required=True, help="Title in reports.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file (JSON).")
def embedder(
    bundles: tuple[Path, ...],
    images: tuple[str, ...],
    providers: tuple[str, ...],
    threads: int,
    max_images: int,
    name: str,
    output: Path,
) -> int:
    """Milliseconds of the embedder on IMAGES, by precision and provider, in turns."""
    from pcbench.embedder import measure_embedders, table

    result = measure_embedders(
        bundles,
        images,
        providers=providers,
        threads=threads,
        max_images=max_images,
        output=output,
        name=name,
    )
    print(table(result))
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option("--embeddings", type=click.Path(path_type=Path), help="Rows to choose from: float32, .npy.")
@click.option(
    "--rows", type=click.IntRange(3), default=596_624, show_default=True, help="Random rows, without a file."
)
@click.option("--dim", type=click.IntRange(1), default=128, show_default=True, help="Their length.")
@click.option("--picks", type=click.IntRange(2), help="Rows to choose; left out, 1 % of them.")
@click.option(
    "--plain-picks",
    type=click.IntRange(2),
    help="Picks of plain greedy, its time then in proportion; left out, all.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of rows and start row.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads; 0 is one per available core.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="The median counts.")
@click.option("--name", required=True, help="Title in reports.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file (JSON).")
def coreset(
    embeddings: Path | None,
    rows: int,
    dim: int,
    picks: int | None,
    plain_picks: int | None,
    seed: int,
    threads: int,
    repeats: int,
    name: str,
    output: Path,
) -> int:
    """The coreset selection beside plain greedy, which scans all rows for each pick."""
    from pcbench.coreset import load_rows, measure_coreset, random_rows, table

    candidates = load_rows(embeddings) if embeddings else random_rows(rows, dim, seed=seed)
    result = measure_coreset(
        candidates,
        picks=min(len(candidates), picks or max(2, len(candidates) // 100)),
        plain_picks=plain_picks or 0,
        seed=seed,
        threads=threads,
        repeats=repeats,
        output=output,
        name=name,
    )
    print(table(result))
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Bundle that judges.")
@click.option(
    "--video", required=True, type=click.Path(path_type=Path), help="Shown as a live source, looped."
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), default=10, show_default=True, help="How long."
)
@click.option(
    "--fps", type=click.FloatRange(min=0, min_open=True), help="Of the source; the video's by default."
)
@click.option("--normal", is_flag=True, help="Judge every frame normal, as nearly all of a line are.")
@click.option("--name", required=True, help="Title in reports.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Result file (JSON).")
def soak(
    bundle: Path, video: Path, minutes: float, fps: float | None, normal: bool, name: str, output: Path
) -> int:
    """Run a line on a looped video: frames, latencies, memory and files, minute by minute."""
    from pcbench.soak import measure_soak, minute_line, table

    result = measure_soak(
        bundle,
        video,
        minutes=minutes,
        fps=fps,
        normal=normal,
        output=output,
        name=name,
        say=lambda minute: print(minute_line(minute), flush=True),
    )
    print(table(result))
    return 0


_PRECISIONS = click.Choice(("bundle", *cli_options.PRECISION_NAMES))


def _axis(flag: str, name: str, kind: click.ParamType, default: str | int, text: str) -> Any:
    """An option whose values a sweep combines with those of all others."""
    return click.option(
        flag,
        name,
        multiple=True,
        type=kind,
        default=(default,),
        show_default=True,
        help=f"{text}; repeatable.",
    )


@cli.command(context_settings=HELP_SETTINGS)
@click.option(
    "--bundle",
    "bundles",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle to measure; repeatable.",
)
@_axis("--provider", "providers", click.Choice(cli_options.PROVIDER_NAMES), "cpu", "As in pcrun")
@_axis("--threads", "threads", click.IntRange(0, 1024), 0, "Threads; 0 is one per available core")
@_axis("--precision", "precisions", _PRECISIONS, "bundle", "As in pcrun, or the bundle's own")
@_axis("--exactness", "exactness", click.Choice(cli_options.EXACTNESS_LEVELS), "mask", "As in pcrun")
@_axis("--batch", "batches", click.IntRange(1, 1024), 1, "Images per query")
@click.option(
    "--images",
    multiple=True,
    metavar="PATH",
    help="Image files, folders or quoted globs; the golden samples by default; repeatable.",
)
@click.option("--defective", multiple=True, metavar="PATH", help="Likewise; reported apart.")
@click.option("--profile", is_flag=True, help="Use the device profile of `pcrun tune`, where there is one.")
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(0, 86_400),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Each kind of image of a cell takes at least so long.",
)
@click.option(
    "--queries",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="And at least so many queries.",
)
@click.option(
    "--runs",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Processes for each cell, one round after the other; `pcbench compare` then knows how they differ.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(1, 86_400),
    default=1800.0,
    show_default=True,
    metavar="S",
    help="A cell that takes longer is ended and recorded as timed out; the others go on.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of the result files, one JSON per cell; what it holds already is not measured again.",
)
def latency(
    bundles: tuple[Path, ...],
    images: tuple[str, ...],
    defective: tuple[str, ...],
    output: Path,
    providers: tuple[str, ...],
    threads: tuple[int, ...],
    precisions: tuple[str, ...],
    exactness: tuple[str, ...],
    batches: tuple[int, ...],
    profile: bool,
    duration_s: float,
    queries: int,
    runs: int,
    timeout_s: float,
) -> int:
    """Latencies of every combination of bundles and settings, each in a process and a file of its own."""
    from pcbench.latency.cell import Axes
    from pcbench.latency.sweep import check_folder, sweep

    check_folder(output)
    axes = Axes(providers, threads, precisions, exactness, batches, profile, duration_s, queries, runs)
    tally = sweep(
        bundles,
        axes,
        images=images,
        defective=defective,
        folder=output,
        say=say,
        timeout_s=timeout_s,
    )
    print(f"{output}: {tally.measured} measured, {tally.kept} kept, {tally.failed} cannot run here")
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="A page (.html), or Markdown (.md) with its plots beside it.",
)
@click.option("--title", default="Latency", show_default=True, help="Of the report.")
def report(results: tuple[Path, ...], output: Path, title: str) -> int:
    """Tables and plots of RESULTS: files or folders of `pcbench latency`, `pcrun bench`, `pcexport eval`."""
    from pcbench.report.write import write_report

    found = write_report(results, output, title)
    for reason in found.left_out:
        say(f"left out: {reason}")
    print(f"{output}: {len(found.cells)} measurements, {len(found.not_run)} could not run")
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--fail-above",
    type=click.FloatRange(0, 1000),
    metavar="PCT",
    help="Exit with 1 when a cell is slower by more than so many percent, with 95 % confidence, or cannot "
    "run any more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def compare(old: Path, new: Path, fail_above: float | None, as_json: bool) -> int:
    """What became slower or faster between OLD and NEW: folders or files of `pcbench latency`."""
    import json

    from pcbench.compare import output
    from pcbench.compare.pairs import compare_results

    compared = compare_results(old, new, fail_above_pct=fail_above)
    print(json.dumps(output.as_json(compared), indent=1) if as_json else output.table(compared))
    return 1 if compared.failed else 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option("--readme", type=click.Path(path_type=Path), default=Path("README.md"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=_RESULTS, show_default=True)
@click.option("--check", is_flag=True, help="Only compare; exit with 1 when the README is out of date.")
def readme(readme: Path, results: Path, check: bool) -> int:
    """Write the figures of the result files into the README."""
    from pcbench.readme import update

    up_to_date = update(readme, results, check=check)
    print(f"{readme}: {'up to date' if up_to_date else 'out of date' if check else 'updated'}")
    return 1 if check and not up_to_date else 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(cli, "pcbench", argv, extras="build")


if __name__ == "__main__":
    sys.exit(main())
