"""`pcbench`: measurements anybody can repeat. `--help` and `--version` load nothing heavy."""

import sys
from pathlib import Path

import click

from pcbench.console import say
from pcbench.latency.command import latency
from pcbench.options import (
    PATHS,
    bundle_option,
    bundles_option,
    defective_option,
    max_images_option,
    name_option,
    providers_option,
    result_option,
)
from pcbench.peers.command import peers
from pcrun._version import __version__
from pcrun.commands.shared_options import (
    SEEDS,
    json_option,
    output_option,
    threads_option,
)
from pcrun.commands.support import HELP_SETTINGS, debug_option, print_json, run_command
from pcrun.errors import PcError
from pcrun.words import plural

_RESULTS = Path("benchmarks/results")


@click.group(context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name="pcbench")
@debug_option
def cli() -> None:
    """Measure builds and verdicts, and put the figures into the README."""


cli.add_command(latency)
cli.add_command(peers)


@cli.command(
    context_settings={**HELP_SETTINGS, "ignore_unknown_options": True},
    short_help="Time a whole `pcexport build`.",
)
@click.argument("data")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@name_option
@result_option
@debug_option
def build(data: str, flags: tuple[str, ...], name: str, output: Path) -> int:
    """Time a whole `pcexport build DATA`; FLAGS after `--` are passed on to it."""
    from pcbench.build import measure_build

    result = measure_build(data, list(flags), output, name)
    print(f"{output}: {result['wall_s']:.1f} s, peak memory {result['peak_rss_mb']} MB")
    return 0


@cli.command(context_settings=HELP_SETTINGS, short_help="Measure certified search beside brute force.")
@bundles_option("for memory banks of several sizes")
@click.option(
    "--normal",
    required=True,
    multiple=True,
    metavar="PATH",
    help=f"Normal images: {PATHS}; repeatable.",
)
@defective_option
@max_images_option(75, "of each kind")
@click.option(
    "--cold-start/--no-cold-start",
    default=True,
    show_default=True,
    help="Measure from the start of a process to its first verdict, too.",
)
@name_option
@result_option
@debug_option
def search(
    bundles: tuple[Path, ...],
    normal: tuple[str, ...],
    defective: tuple[str, ...],
    max_images: int,
    cold_start: bool,
    name: str,
    output: Path,
) -> int:
    """Measure certified search beside brute force: alone, end to end, and from a cold start."""
    from pcbench.search import described, measure_search
    from pcrun.commands.tables import show

    contents = {"normal": list(normal)} | ({"defective": list(defective)} if defective else {})
    result = measure_search(
        bundles, contents, max_images=max_images, starts=cold_start, output=output, name=name
    )
    show(*described(result))
    return 0


@cli.command(context_settings=HELP_SETTINGS, short_help="Measure the embedder by precision and provider.")
@bundles_option("the first is the fp32 one that the others are compared with")
@click.argument("images", nargs=-1, required=True)
@providers_option
@threads_option()
@max_images_option(200)
@name_option
@result_option
@debug_option
def embedder(
    bundles: tuple[Path, ...],
    images: tuple[str, ...],
    providers: tuple[str, ...],
    threads: int,
    max_images: int,
    name: str,
    output: Path,
) -> int:
    """Measure the embedder on IMAGES in milliseconds, by precision and provider, in turns."""
    from pcbench.embedder import described, measure_embedders
    from pcrun.commands.tables import show

    result = measure_embedders(
        bundles,
        images,
        providers=providers,
        threads=threads,
        max_images=max_images,
        output=output,
        name=name,
    )
    show(*described(result))
    return 0


@cli.command(context_settings=HELP_SETTINGS, short_help="Measure the coreset selection beside plain greedy.")
@click.option(
    "--embeddings", type=click.Path(path_type=Path), help="File of rows to choose from (float32, .npy)."
)
@click.option(
    "--rows",
    type=click.IntRange(3),
    default=596_624,
    show_default=True,
    help="Number of random rows, without a file.",
)
@click.option("--dim", type=click.IntRange(1), default=128, show_default=True, help="Length of random rows.")
@click.option("--picks", type=click.IntRange(2), help="Rows to choose; left out: 1 % of them.")
@click.option(
    "--plain-picks",
    type=click.IntRange(2),
    help="Picks of plain greedy, whose time is then in proportion; left out: all.",
)
@click.option(
    "--seed",
    type=SEEDS,
    default=0,
    show_default=True,
    help="Seed of the random rows and the start row.",
)
@threads_option()
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Timed runs of the selection; the median counts.",
)
@name_option
@result_option
@debug_option
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
    """Measure the coreset selection beside plain greedy, which scans all rows for each pick."""
    from pcbench.coreset import described, load_rows, measure_coreset, random_rows
    from pcrun.commands.tables import show

    candidates = load_rows(embeddings) if embeddings else random_rows(rows, dim, seed=seed)
    if picks and picks > len(candidates):
        raise PcError(f"{picks:,} picks of {len(candidates):,} rows. Expected fewer; lower --picks.")
    result = measure_coreset(
        candidates,
        picks=picks or max(2, len(candidates) // 100),
        plain_picks=plain_picks or 0,
        seed=seed,
        threads=threads,
        repeats=repeats,
        output=output,
        name=name,
    )
    show(*described(result))
    return 0


@cli.command(context_settings=HELP_SETTINGS, short_help="Run a line on a looped video for long.")
@bundle_option("to judge with")
@click.option(
    "--video",
    required=True,
    type=click.Path(path_type=Path),
    help="Video file to show as a live source, looped.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="MIN",
    help="Minutes that the run lasts.",
)
@click.option(
    "--fps",
    type=click.FloatRange(min=0, min_open=True),
    help="Frames a second of the source; left out: the video's.",
)
@click.option("--all-normal", is_flag=True, help="Judge every frame normal, as nearly all of a line are.")
@name_option
@result_option
@debug_option
def soak(
    bundle: Path, video: Path, minutes: float, fps: float | None, all_normal: bool, name: str, output: Path
) -> int:
    """Run a line on a looped video: frames, latencies, memory and files, minute by minute."""
    from pcbench.soak import described, measure_soak, minute_line
    from pcrun.commands.tables import show

    result = measure_soak(
        bundle,
        video,
        minutes=minutes,
        fps=fps,
        all_normal=all_normal,
        output=output,
        name=name,
        say=lambda minute: say(minute_line(minute)),
    )
    show(*described(result))
    return 0


@cli.command(context_settings=HELP_SETTINGS, short_help="Make tables and plots of result files.")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--title", default="Latency", show_default=True, help="Title of the report.")
@output_option(
    "Report to write: a page (NAME.html), or Markdown (NAME.md) with its plots beside it.", required=True
)
@debug_option
def report(results: tuple[Path, ...], title: str, output: Path) -> int:
    """Make tables and plots of RESULTS.

    Files or folders of `pcbench latency`, `pcrun bench` and `pcexport eval`.
    """
    from pcbench.report.write import write_report

    found = write_report(results, output, title)
    for reason in found.left_out:
        say(f"left out: {reason}")
    measured = len(found.cells)
    print(f"{output}: {measured} {plural(measured, 'measurement')}, {len(found.not_run)} could not run")
    return 0


@cli.command(context_settings=HELP_SETTINGS, short_help="Say what became slower or faster.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--fail-above",
    type=click.FloatRange(0, 1000),
    metavar="PCT",
    help="Exit with 1 when a cell is slower by more than so many percent, with 95 % confidence, or cannot "
    "run any more.",
)
@json_option("the comparison")
@debug_option
def compare(old: Path, new: Path, fail_above: float | None, as_json: bool) -> int:
    """Say what became slower or faster between OLD and NEW: folders or files of `pcbench latency`."""
    from pcbench.compare import output
    from pcbench.compare.pairs import compare_results
    from pcrun.commands.tables import show

    compared = compare_results(old, new, fail_above_pct=fail_above)
    if as_json:
        print_json(output.as_json(compared))
    else:
        show(*output.described(compared))
    return 1 if compared.failed else 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option(
    "--readme",
    type=click.Path(path_type=Path),
    default=Path("README.md"),
    show_default=True,
    help="File to write the figures into, between its two marker lines.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=_RESULTS,
    show_default=True,
    help="Folder of result files.",
)
@click.option("--check", is_flag=True, help="Only compare; exit with 1 when the README is out of date.")
@debug_option
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
