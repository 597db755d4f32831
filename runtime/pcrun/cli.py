"""`pcrun`: verdicts on images, a video or a camera. `--help` and `--version` load nothing heavy."""

import contextlib
import dataclasses
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pcrun._version import __version__
from pcrun.commands.checks import Subcommand, long_flag, refuse_idle_options, unexpected, write_sections
from pcrun.commands.options import (
    ENGINE_PRECISIONS,
    IMAGES_OPTION,
    SCENARIOS,
    bundle_option,
    bundles_option,
    device_options,
    engine_option,
    exactness_option,
    measured_images_option,
    profile_option,
    search_options,
    sink_options,
    source_options,
    verdict_options,
    view_options,
)
from pcrun.commands.shared_options import duration_option, json_option, output_option, queries_option
from pcrun.commands.support import HELP_SETTINGS, debug_option, is_given, run_command, spread_values

if TYPE_CHECKING:
    from pcrun.commands.run import RunOptions

_SOURCES = ("images", "video", "camera", "watch", "stdin_frames", "sources")


class _RunGroup(click.Group):
    """`pcrun` itself scores; its subcommands do the rest."""

    command_class = Subcommand

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_sections(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread_values(args, IMAGES_OPTION))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands:
            known = ", ".join(sorted(self.commands))
            if args[0].rstrip("/").endswith((".pcbundle", ".pcbundle.zip")):
                raise unexpected(args[0], ctx)
            raise click.UsageError(
                f"Unexpected {args[0]!r}. To score files say {IMAGES_OPTION} PATH...; commands: {known}."
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_RunGroup, invoke_without_command=True, context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name="pcrun")
@bundles_option
@source_options
@view_options
@verdict_options
@sink_options
@debug_option
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> int | None:
    """Score images, videos, cameras and streams with a bundle; one result line per frame.

    \b
    pcrun --bundle bottle.pcbundle --images parts/*.png
    pcrun --bundle bottle.pcbundle --camera 0 --format table
    pcrun --bundle bottle.pcbundle --source 'rtsp://$CAM_USER:$CAM_PASSWORD@camera-3/ch1' --output line3.jsonl

    Exit codes: 0 done (no anomaly, or --fail-on-anomaly not given), 1 an anomaly with --fail-on-anomaly,
    2 an error or at least one unreadable frame.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_lost_options(ctx)
        return None
    given = [name for name in _SOURCES if options[name] not in (None, ())]
    if len(given) != 1:
        raise click.UsageError(
            "Give exactly one of --images, --video, --camera, --watch or --stdin-frames, or any number of "
            "--source. `pcrun --help` shows all options."
        )
    _refuse_contradictions(**{name: options[name] for name in ("search", "ef", "exactness")})
    refuse_idle_options(ctx, options)
    from pcrun.commands.run import run

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
        long_flag(parameter)
        for parameter in ctx.command.params
        if parameter.name != "bundles" and parameter.name is not None and is_given(ctx, parameter.name)
    ]
    if given:
        raise click.UsageError(
            f"{', '.join(given)} before {ctx.invoked_subcommand!r} would do nothing. "
            "Put options after the command."
        )


@cli.command(context_settings=HELP_SETTINGS, short_help="Replay the bundle's golden samples.")
@bundle_option
@device_options
@engine_option
@profile_option
@json_option("the result")
@debug_option
@click.pass_context
def selftest(ctx: click.Context, /, **options: Any) -> int:
    """Replay the bundle's golden samples and compare with the build's scores.

    Exit codes: 0 all agree, 1 at least one differs, 2 an error.
    """
    from pcrun.commands.selftest import selftest as replay

    return replay(options.pop("bundle") or _bundle_before(ctx), **options)


@cli.command(context_settings=HELP_SETTINGS, short_help="Look at what this machine can do.")
@bundle_option
@json_option("the findings")
@debug_option
@click.pass_context
def doctor(ctx: click.Context, /, **options: Any) -> int:
    """Look at processor, libraries, providers and cameras, and say how to repair what does not work.

    Providers are tried by computing something. With --bundle that is replayed and timed as well.

    Exit codes: 0 no problem, 1 at least one, 2 an error.
    """
    from pcrun.commands.doctor import doctor as examine_here

    return examine_here(options["bundle"] or _bundle_before(ctx), as_json=options["as_json"])


@cli.command(context_settings=HELP_SETTINGS, short_help="Build what the first frame would wait for.")
@bundle_option
@device_options
@engine_option
@search_options
@profile_option
@json_option("what was done")
@debug_option
@click.pass_context
def warmup(ctx: click.Context, /, **options: Any) -> int:
    """Open the bundle as it would run and judge one image, so that TensorRT's engines are there.

    With `--provider tensorrt` they are kept beside the bundle, and later starts take them from there.
    """
    _refuse_contradictions(search=options["search"], ef=options["ef"], exactness="mask")
    from pcrun.commands.warmup import warm_up_here

    return warm_up_here(options.pop("bundle") or _bundle_before(ctx), **options)


@cli.command("compile", context_settings=HELP_SETTINGS, short_help="Build a native TensorRT engine.")
@bundle_option
@click.option(
    "--precision",
    type=click.Choice(ENGINE_PRECISIONS),
    help="Arithmetic of the engine; left out: the bundle's. An fp32 bundle can become fp16 where TensorRT is "
    "older than 11; int8 needs a bundle built with `--precision int8 --int8-activations signed`.",
)
@output_option("Engine to write; its header goes beside it.", required=True)
@click.option("--allow-flips", is_flag=True, help="Write it even where verdicts of golden samples change.")
@json_option("the engine's header")
@debug_option
@click.pass_context
def compile_engine(ctx: click.Context, /, **options: Any) -> int:
    """Build the embedder as a native TensorRT engine for this GPU, and score the golden samples with it.

    It runs with `--engine FILE`, on the GPU and the TensorRT that built it alone. A changed verdict stops it.
    """
    from pcrun.commands.compile import compile_here

    return compile_here(options.pop("bundle") or _bundle_before(ctx), **options)


@cli.command(context_settings=HELP_SETTINGS, short_help="Find the fastest settings on this machine.")
@bundle_option
@device_options
@measured_images_option
@click.option(
    "--budget-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Exit with 1 when more than one image in ten takes longer than this with the chosen settings.",
)
@click.option(
    "--frames", type=click.IntRange(6, 10_000), default=40, show_default=True, help="Images scored per trial."
)
@json_option("the profile")
@debug_option
@click.pass_context
def tune(ctx: click.Context, /, **options: Any) -> int:
    """Measure search engines, threads and spinning end to end, and store the fastest as device profile.

    Every setting gives the same certified verdicts. Later runs of this bundle on this machine use the
    profile by themselves; `--no-profile` ignores it.

    Exit codes: 0 done, 1 the fastest misses --budget-ms, 2 an error.
    """
    from pcrun.commands.tune import tune_here

    options["bundle"] = options["bundle"] or _bundle_before(ctx)
    return tune_here(**options)


@cli.command(context_settings=HELP_SETTINGS, short_help="Measure latencies on this machine.")
@bundle_option
@device_options
@engine_option
@exactness_option
@search_options
@profile_option
@measured_images_option
@click.option(
    "--video",
    type=click.Path(path_type=Path),
    help="Video file whose first frames to measure with.",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(SCENARIOS),
    help="What a query is, and when the next one comes; left out: single-stream; repeatable.",
)
@duration_option("each scenario")
@queries_option("each scenario")
@click.option(
    "--bound-ms",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    metavar="MS",
    help="What the p99 of the server scenario must not exceed.",
)
@click.option(
    "--fps",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Frames a second of the camera scenario.",
)
@click.option(
    "--starts",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    help="Cold starts to measure; 0 is none.",
)
@output_option("Report to write (JSON), with all samples.")
@json_option("the report")
@debug_option
@click.pass_context
def bench(ctx: click.Context, /, **options: Any) -> int:
    """Measure this bundle on this machine, stage by stage, in the scenarios of MLPerf Inference.

    single-stream: one image after the other, p90. multi-stream: eight at once, p99. server: Poisson
    arrivals, the largest rate whose p99 stays within --bound-ms. offline: images a second. camera: frames
    at --fps, how many are dropped and how old they are at their verdict.
    """
    if options["images"] and options["video"]:
        raise click.UsageError("Give --images or --video, not both.")
    _refuse_contradictions(**{name: options[name] for name in ("search", "ef", "exactness")})
    from pcrun.commands.bench import bench_here

    return bench_here(options.pop("bundle") or _bundle_before(ctx), **options)


def _bundle_before(ctx: click.Context) -> Any:
    """The bundle given before the command, if any."""
    given = ctx.find_root().params["bundles"]
    if len(given) > 1:
        raise click.UsageError(f"{ctx.info_name} takes one bundle, {len(given)} were given.")
    return given[0] if given else None


def _run_options(options: dict[str, Any]) -> "RunOptions":
    from pcrun.commands.run import DetectorOptions, RunOptions, SinkOptions
    from pcrun.sources.view import Roi

    def part(cls: Any) -> Any:
        return cls(**{field.name: options[field.name] for field in dataclasses.fields(cls)})

    return RunOptions(
        bundles=options["bundles"],
        images=options["images"],
        sources=_sources(options),
        fps=options["fps"],
        stall_timeout_s=options["stall_timeout_s"],
        properties=dict(options["properties"]),
        rotate_deg=int(options["rotate"]),
        roi=Roi(*options["roi"]) if options["roi"] else None,
        debounce=options["debounce"],
        drift_window=options["drift_window"],
        max_frames=options["max_frames"],
        duration_s=options["duration_s"],
        fail_on_anomaly=options["fail_on_anomaly"],
        detector=part(DetectorOptions),
        sinks=part(SinkOptions),
    )


def _sources(options: dict[str, Any]) -> tuple[str, ...]:
    """The options for single sources, as --source would say it."""
    prefixes = {"video": "video", "camera": "camera", "watch": "watch", "stdin_frames": "stdin"}
    single = [f"{prefix}:{options[name]}" for name, prefix in prefixes.items() if options[name] is not None]
    return tuple(single) or options["sources"]


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    code = run_command(cli, "pcrun", argv)
    if argv is None:
        _leave_hanging_reads(code)
    return code


def _leave_hanging_reads(code: int) -> None:
    """End the process here when a camera's driver does not return from a read.

    Python would end that thread in the middle of foreign code, which aborts the process: a crash in a
    service's log, and another exit code.
    """
    live = sys.modules.get("pcrun.sources.live")
    if live is None or not any(t.name.startswith(live.READER_THREADS) for t in threading.enumerate()):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
