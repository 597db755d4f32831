"""`pcexport`: build, inspect and pack bundles. `--help` and `--version` load nothing heavy."""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import click

from pcexport.config import BuildConfig, load_config, recipe_names
from pcexport.datasets import LAYOUTS
from pcexport.distill import STUDENT_NAMES
from pcrun._version import __version__
from pcrun.commands.options import (
    EXACTNESS_LEVELS,
    PRECISION_NAMES,
    PROVIDER_NAMES,
    device_options,
    profile_option,
)
from pcrun.commands.support import HELP_SETTINGS, FiniteFloat, debug_option, run_command


@click.group(context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name="pcexport")
@debug_option
def cli() -> None:
    """From a folder of normal images to a verified bundle for `pcrun`."""


def _config_options(command: Any) -> Any:
    """One flag per configuration key; a flag left out is absent from the overrides."""
    hints = typing.get_type_hints(BuildConfig)
    for field in reversed(dataclasses.fields(BuildConfig)):
        command = _config_option(field, hints[field.name])(command)
    return command


def _config_option(field: "dataclasses.Field[Any]", hint: Any) -> Any:
    flag = "--" + field.name.replace("_", "-")
    text = field.metadata["help"]
    if hint is bool:
        return click.option(
            f"{flag}/--no-{flag[2:]}", field.name, default=None, help=f"{text}  [{_shown(field.default)}]"
        )
    scalar = (
        next((a for a in typing.get_args(hint) if a is not type(None)), hint) if _is_optional(hint) else hint
    )
    kind: Any = scalar if scalar in (int, float, str) else str
    if field.metadata["choices"]:
        kind = click.Choice(field.metadata["choices"])
    shown = "" if field.default is None else f"  [{_shown(field.default)}]"
    return click.option(flag, field.name, type=kind, default=None, help=text + shown)


def _one(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str:
    """One value; a shell makes many of a glob without quotes."""
    if len(values) != 1:
        name = parameter.human_readable_name
        raise click.UsageError(
            f"Expected one {name}, got {len(values)}: {values[0]}, {values[1]}, ... Put a glob into quotes "
            "('good/*.png'), or give the folder.",
            context,
        )
    return values[0]


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


@cli.command(context_settings=HELP_SETTINGS, short_help="Build a bundle from normal images.")
@click.argument("data", metavar="DATA", nargs=-1, required=True, callback=_one)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Bundle to write (NAME.pcbundle)."
)
@click.option("--config", "recipe", help=f"YAML file, or one of: {', '.join(recipe_names())}.")
@click.option("--force", is_flag=True, help="Replace an existing bundle when the new one is complete.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@_config_options
@debug_option
def build(data: str, output: Path, recipe: str | None, force: bool, as_json: bool, **flags: Any) -> int:
    """Build a bundle from DATA: a folder of images, a quoted glob, or a list (CSV, JSONL).

    `pcexport datasets` shows which folders are known.

    Every key of a recipe is also a flag; a flag wins over the recipe, the recipe over the default.
    """
    config = load_config(recipe, {key: value for key, value in flags.items() if value is not None})
    from pcexport.build import build_bundle
    from pcexport.progress import Steps
    from pcexport.summary import print_summary

    steps = Steps()
    summary = build_bundle(data, output, config, steps, force=force)
    if as_json:
        print(json.dumps(summary.to_json(), indent=2))
    else:
        print_summary(summary)
    return 0


@cli.command("eval", context_settings=HELP_SETTINGS, short_help="Accuracy of a bundle, with intervals.")
@click.argument("arguments", metavar="BUNDLE DATA", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="REPORT.html",
    help="Write a report, with .json and .csv beside it.",
)
@click.option(
    "--compare", is_flag=True, help="Several bundles side by side: --compare BUNDLE BUNDLE ... DATA."
)
@click.option(
    "--layout",
    type=click.Choice(("auto", *LAYOUTS)),
    default="auto",
    show_default=True,
    help="How DATA is read.",
)
@click.option(
    "--threshold",
    type=FiniteFloat(),
    help="Instead of the bundle's (L2 units); the pixel threshold moves in proportion.",
)
@click.option("--pixel-threshold", type=FiniteFloat(), help="Instead of the bundle's (L2 units).")
@device_options
@click.option(
    "--exactness",
    type=click.Choice(EXACTNESS_LEVELS),
    default="mask",
    show_default=True,
    help="As for pcrun; full makes the map exact everywhere.",
)
@profile_option
@click.option("--strict", is_flag=True, help="Stop at the first unreadable image.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@debug_option
def evaluate(
    arguments: tuple[str, ...], output: Path | None, compare: bool, as_json: bool, **options: Any
) -> int:
    """Evaluate BUNDLE on the images of DATA, labelled or not, through the runtime.

    \b
    pcexport eval bottle.pcbundle parts/bottle -o report.html
    pcexport eval --compare fp32.pcbundle int8.pcbundle parts/bottle
    """
    *bundles, data = arguments
    if (not bundles) or (len(bundles) < 2) == compare:
        wanted = "--compare BUNDLE BUNDLE ... DATA" if compare else "BUNDLE DATA"
        raise click.UsageError(
            f"Expected {wanted}, got {len(arguments)} arguments. Put a glob into quotes: 'bad/*.png'."
        )
    if output is not None and output.suffix != ".html":
        raise click.UsageError(
            f"{output} does not end in .html. Expected the report's name; .json and .csv follow."
        )
    from pcexport.evaluation.command import evaluate_here

    return evaluate_here([Path(bundle) for bundle in bundles], data, output, as_json=as_json, **options)


@cli.command(context_settings=HELP_SETTINGS, short_help="Choose new thresholds from new normal images.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("normals", metavar="NORMALS", nargs=-1, required=True, callback=_one)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="New bundle; left out: BUNDLE, with --force.",
)
@click.option(
    "--false-alarm-rate",
    "rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of normal images that may be called anomalous; left out: that of the bundle's threshold.",
)
@click.option(
    "--provider",
    type=click.Choice(PROVIDER_NAMES),
    default="auto",
    show_default=True,
    help="What the embedder runs on: best what it is on the device.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISION_NAMES),
    help="As for pcrun; left out: that of this machine's device profile, else the bundle's.",
)
@profile_option
@click.option(
    "--allow-shortage", is_flag=True, help="Take the largest score where the images are too few for the rate."
)
@click.option("--force", is_flag=True, help="Replace an existing bundle when the new one is complete.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@debug_option
def calibrate(bundle: Path, normals: str, output: Path | None, as_json: bool, **options: Any) -> int:
    """Choose new thresholds for BUNDLE from NORMALS: a folder or quoted glob of normal images.

    The bundle must not have seen them. They are scored as on the device. The new bundle is the old one but
    for its thresholds; the old ones are kept in its history.
    """
    from pcexport.calibration.recalibrate import CalibrateOptions, calibrate_bundle
    from pcexport.progress import Steps
    from pcexport.summary import print_calibration

    steps = Steps()
    summary = calibrate_bundle(bundle, normals, output, CalibrateOptions(**options), steps)
    if as_json:
        print(json.dumps(summary.to_json(), indent=2))
    else:
        print_calibration(summary)
    steps.say(
        "Device profiles are valid for one digest: run `pcrun tune` where the new bundle runs"
        + (", here too." if summary.had_profile else ".")
    )
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@debug_option
def inspect(bundle: Path, as_json: bool) -> int:
    """Verify BUNDLE and show what it is."""
    from pcexport.summary import print_bundle
    from pcrun.bundle.bundle import Bundle
    from pcrun.records import to_jsonable

    opened = Bundle.load(bundle)
    if as_json:
        print(json.dumps({"digest": opened.digest, **to_jsonable(opened.manifest)}, indent=2))
    else:
        print_bundle(opened)
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Zip to write; default BUNDLE.zip.")
@click.option("--force", is_flag=True, help="Replace an existing zip.")
@debug_option
def pack(bundle: Path, output: Path | None, force: bool) -> int:
    """Put BUNDLE into one zip file, which every command accepts too."""
    from pcexport.bundle_writer import pack_bundle

    named = bundle.resolve() if bundle.name in ("", "..") else bundle  # `pcexport pack .`
    target = output or named.with_name(f"{named.name}.zip")
    size = pack_bundle(bundle, target, force=force)
    print(f"{target} ({size / 1e6:.1f} MB)")
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@debug_option
def backbones() -> int:
    """List the backbones with their default layers."""
    from pcexport.summary import print_backbones

    print_backbones()
    return 0


@cli.command("distill", context_settings=HELP_SETTINGS, short_help="Train a small backbone.")
@click.option("--teacher", default="resnet18", show_default=True, help="Backbone to imitate.")
@click.option(
    "--weights",
    default="default",
    show_default=True,
    help="Weights of the teacher, as for build: default or a file.",
)
@click.option(
    "--student",
    type=click.Choice(STUDENT_NAMES),
    default="edge-s",
    show_default=True,
    help="Network to train; edge-m is the larger one.",
)
@click.option(
    "--images",
    multiple=True,
    metavar="DATA",
    help="Your own normal images, for half of the pictures; may be repeated.",
)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Student to write (NAME.onnx)."
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    help="Pictures, checkpoint and log; a second call goes on from there  [OUTPUT.work]",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=1),
    default=20_000,
    show_default=True,
    help="Training pictures; some are held out.",
)
@click.option(
    "--size",
    "size_px",
    type=click.IntRange(min=32),
    default=192,
    show_default=True,
    help="Their height and width, px; a multiple of 16.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=24_000,
    show_default=True,
    help="Steps of gradient descent.",
)
@click.option(
    "--batch", type=click.IntRange(min=2), default=16, show_default=True, help="Pictures in each step."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 1, min_open=True),
    default=2e-3,
    show_default=True,
    help="The largest; it falls to nearly 0.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of pictures, first weights and order.",
)
@click.option(
    "--teacher-scale",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="0: all channels of the embedding vary alike; 1: as the teacher's.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@debug_option
def distill_command(output: Path, work: Path | None, force: bool, **options: Any) -> int:
    """Train a small backbone that imitates TEACHER's patch embeddings, for `build --backbone NAME.onnx`.

    The pictures are drawn by the program; your own normal images make it fit your parts better. It takes
    hours on a CPU, and an interrupted training goes on when the same command is given again.
    """
    from pcexport.distill.command import distill_here

    return distill_here(output, work, force=force, **options)


@cli.command(context_settings=HELP_SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="Print the layouts as JSON.")
@debug_option
def datasets(as_json: bool) -> int:
    """List the layouts of data that `pcexport build` reads."""
    if as_json:
        keys = ("name", "title", "expects")
        print(
            json.dumps([{key: getattr(known, key) for key in keys} for known in LAYOUTS.values()], indent=2)
        )
    else:
        from pcexport.summary import print_layouts

        print_layouts()
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder to write."
)
@debug_option
def demo(out: Path) -> int:
    """Make part images, build a bundle from them and run it.

    The backbone is the shipped student edge-s: neither torch nor a download is needed.
    """
    from pcexport.demo.command import run_demo

    return run_demo(out)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(cli, "pcexport", argv, extras="build,cpu")


if __name__ == "__main__":
    sys.exit(main())
