"""`pcrun`: verdicts on images, a video or a camera. `--help` and `--version` load nothing heavy."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pcrun._version import __version__
from pcrun.cli_support import HELP_SETTINGS, FiniteFloat, debug_option, run_command, spread_values

if TYPE_CHECKING:
    from pcrun.run import RunOptions

_IMAGES_OPTION = "--images"
_PROVIDER_NAMES = ("auto", "cpu", "cuda", "tensorrt", "openvino")
_PRECISION_NAMES = ("fp32", "bf16")
_EXACTNESS_LEVELS = ("none", "image", "mask", "full")
_SEARCH_NAMES = ("auto", "quantised", "hnsw", "exact", "exact_graph")
_FORMATS = ("jsonl", "csv", "table")


class _RunGroup(click.Group):
    """`pcrun` itself scores; its subcommands do the rest."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_values(args, _IMAGES_OPTION))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands:
            known = ", ".join(sorted(self.commands))
            raise click.UsageError(
                f"Unexpected {args[0]!r}. To score files say {_IMAGES_OPTION} PATH...; commands: {known}."
            )
        return super().resolve_command(ctx, args)


def _bundle_option(command: Any) -> Any:
    return click.option(
        "--bundle",
        type=click.Path(path_type=Path),
        help="Bundle directory or zip. "
        "Left out: $PCRUN_BUNDLE, or the only *.pcbundle in the current folder.",
    )(command)


def _device_options(command: Any) -> Any:
    for option in (
        click.option(
            "--threads",
            type=click.IntRange(0, 1024),
            default=0,
            help="Threads; 0 is the device profile's, else one per available core.",
        ),
        click.option(
            "--precision",
            type=click.Choice(_PRECISION_NAMES),
            help="bf16 computes the embedder of an fp32 bundle in bfloat16 (OpenVINO alone); by default the "
            "bundle's own precision.",
        ),
        click.option(
            "--provider",
            type=click.Choice(_PROVIDER_NAMES),
            default="auto",
            show_default=True,
            help="What the embedder runs on; auto is CUDA where onnxruntime has it, else the CPU.",
        ),
    ):
        command = option(command)
    return command


@click.group(cls=_RunGroup, invoke_without_command=True, context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name="pcrun")
@_bundle_option
@click.option(
    _IMAGES_OPTION, "images", multiple=True, metavar="PATH...", help="Image files, folders or quoted globs."
)
@click.option("--video", type=click.Path(path_type=Path), help="Video file.")
@click.option("--camera", type=click.IntRange(0), metavar="N", help="Camera number.")
@click.option("--max-frames", type=click.IntRange(1), help="Stop after this many frames.")
@click.option(
    "--threshold",
    type=FiniteFloat(),
    help="Anomalous above this image score (L2 units); bundle's by default.",
)
@click.option(
    "--pixel-threshold",
    type=FiniteFloat(),
    help="Mask where the map is above this; by default the bundle's, moved in proportion to --threshold.",
)
@_device_options
@click.option(
    "--exactness",
    type=click.Choice(_EXACTNESS_LEVELS),
    default="mask",
    show_default=True,
    help="What equals brute force. none: nothing. image: the image score. mask: that and the mask. "
    "full: every patch.",
)
@click.option(
    "--search",
    type=click.Choice(_SEARCH_NAMES),
    default="auto",
    show_default=True,
    help="How near entries are found; the certified verdict is the same. auto: the device profile's, else by "
    "the size of the memory bank.",
)
@click.option(
    "--ef",
    type=click.IntRange(1, 65536),
    help="Search width of the HNSW index, which it asks for; the bundle's by default.",
)
@click.option("--no-profile", is_flag=True, help="Ignore the device profile of `pcrun tune`.")
@click.option(
    "--format", "output_format", type=click.Choice(_FORMATS), help="Default: table on a terminal, else jsonl."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write the results here instead of standard output."
)
@click.option(
    "--save-overlays", type=click.Path(path_type=Path), metavar="DIR", help="Save heatmaps over the images."
)
@click.option("--save-maps", type=click.Path(path_type=Path), metavar="DIR", help="Save anomaly maps.")
@click.option(
    "--map-format",
    type=click.Choice(("npy", "png")),
    default="npy",
    show_default=True,
    help="npy: float32 in L2 units. png: 16 bits, 65535 = 4 times the pixel threshold.",
)
@click.option("--fail-on-anomaly", is_flag=True, help="Exit with 1 when any frame is anomalous.")
@debug_option
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> int | None:
    """Score images, a video or a camera with a bundle; one result line per frame.

    \b
    pcrun --bundle bottle.pcbundle --images parts/*.png
    pcrun --bundle bottle.pcbundle --camera 0 --format table

    Exit codes: 0 done (no anomaly, or --fail-on-anomaly not given), 1 an anomaly with --fail-on-anomaly,
    2 an error or at least one unreadable frame.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_lost_options(ctx)
        return None
    given = (bool(options["images"]), options["video"] is not None, options["camera"] is not None)
    if given.count(True) != 1:
        raise click.UsageError(
            "Give exactly one of --images, --video or --camera. `pcrun --help` shows all options."
        )
    _refuse_contradictions(**{name: options[name] for name in ("search", "ef", "exactness")})
    from pcrun.run import run

    return run(_run_options(options))


def _refuse_contradictions(*, search: str, ef: int | None, exactness: str) -> None:
    if ef is not None and search not in ("auto", "hnsw"):
        raise click.UsageError(f"--ef is the search width of hnsw. With --search {search} it does nothing.")
    if exactness == "full" and (ef is not None or search in ("quantised", "hnsw")):
        raise click.UsageError(
            "--exactness full needs an exact search. Say --search exact or exact_graph, or leave "
            "--search and --ef out."
        )


def _refuse_lost_options(ctx: click.Context) -> None:
    """Options of a run, given before a subcommand, would do nothing: only --bundle is shared."""
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name != "bundle"
        and parameter.name is not None
        and ctx.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"{', '.join(given)} before {ctx.invoked_subcommand!r} would do nothing. "
            "Put options after the command."
        )


@cli.command(context_settings=HELP_SETTINGS, short_help="Replay the bundle's golden samples.")
@_bundle_option
@_device_options
@click.option("--no-profile", is_flag=True, help="Ignore the device profile of `pcrun tune`.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@debug_option
@click.pass_context
def selftest(ctx: click.Context, /, **options: Any) -> int:
    """Replay the bundle's golden samples and compare with the build's scores.

    Exit codes: 0 all agree, 1 at least one differs, 2 an error.
    """
    from pcrun.run import selftest as replay

    given = options.pop("bundle") or ctx.find_root().params["bundle"]
    return replay(given, **options)


@cli.command(context_settings=HELP_SETTINGS, short_help="Find the fastest settings on this machine.")
@_bundle_option
@_device_options
@click.option(
    _IMAGES_OPTION,
    "images",
    multiple=True,
    metavar="PATH",
    help="Image file, folder or quoted glob to measure with; repeatable. Left out: the golden samples.",
)
@click.option(
    "--budget-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Exit with 1 when more than one image in ten takes longer than this with the chosen settings.",
)
@click.option(
    "--frames", type=click.IntRange(6, 10_000), default=40, show_default=True, help="Images scored per trial."
)
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
@debug_option
@click.pass_context
def tune(ctx: click.Context, /, **options: Any) -> int:
    """Measure search engines, threads and spinning end to end, and store the fastest as device profile.

    Every setting gives the same certified verdicts. Later runs of this bundle on this machine use the
    profile by themselves; `--no-profile` ignores it.

    Exit codes: 0 done, 1 the fastest misses --budget-ms, 2 an error.
    """
    from pcrun.tune_command import tune_here

    options["bundle"] = options["bundle"] or ctx.find_root().params["bundle"]
    return tune_here(**options)


def _run_options(options: dict[str, Any]) -> "RunOptions":
    from pcrun.run import RunOptions

    return RunOptions(**options)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(cli, "pcrun", argv)


if __name__ == "__main__":
    sys.exit(main())
