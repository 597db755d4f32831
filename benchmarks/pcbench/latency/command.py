"""The command `pcbench latency`; what it does is in `pcbench.latency`."""

from pathlib import Path

import click

from pcbench.console import say
from pcbench.options import (
    PATHS,
    PRECISIONS,
    axis_option,
    bundles_option,
    defective_option,
    providers_option,
)
from pcrun.commands.options import EXACTNESS_LEVELS
from pcrun.commands.shared_options import (
    EXACTNESS_HELP,
    THREADS,
    duration_option,
    output_option,
    queries_option,
)
from pcrun.commands.support import HELP_SETTINGS, debug_option

# Far above what a cell takes (seconds to minutes): a driver that hangs must not stop a night's sweep.
_CELL_TIMEOUT_S = 1800.0


@click.command(context_settings=HELP_SETTINGS, short_help="Measure latencies of many settings.")
@bundles_option()
@providers_option
@axis_option("--threads", "threads", THREADS, 0, "Threads to use; 0 is one per available core")
@axis_option("--precision", "precisions", PRECISIONS, "bundle", "Arithmetic of the embedder; bundle: its own")
@axis_option("--exactness", "exactness", click.Choice(EXACTNESS_LEVELS), "mask", EXACTNESS_HELP)
@axis_option("--batch", "batches", click.IntRange(1, 1024), 1, "Images per query")
@click.option(
    "--images",
    multiple=True,
    metavar="PATH",
    help=f"Image {PATHS} to measure with; left out: the golden samples; repeatable.",
)
@defective_option
@click.option("--profile", is_flag=True, help="Use the device profile of `pcrun tune`, where there is one.")
@duration_option("each kind of image of a cell", most_s=86_400)
@queries_option("each kind of image")
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
    default=_CELL_TIMEOUT_S,
    show_default=True,
    metavar="S",
    help="A cell that takes longer is ended and recorded as timed out; the others go on.",
)
@output_option(
    "Folder to write, one result file (JSON) per cell; a cell it holds already, with the same images, is not "
    "measured again, any other result of that name is replaced.",
    required=True,
)
@debug_option
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
    """Measure latencies of all combinations of bundles and settings, each in its own process and file."""
    from pcbench.images import unlisted
    from pcbench.latency.cell import Axes
    from pcbench.latency.sweep import check_folder, sweep

    check_folder(output)
    axes = Axes(providers, threads, precisions, exactness, batches, profile, duration_s, queries, runs)
    tally = sweep(
        bundles,
        axes,
        images=unlisted(images),
        defective=unlisted(defective),
        folder=output,
        say=say,
        timeout_s=timeout_s,
    )
    print(f"{output}: {tally.measured} measured, {tally.kept} kept, {tally.failed} cannot run here")
    return 0
