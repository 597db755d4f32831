"""`pcexport`: build, inspect and pack bundles. `--help` and `--version` load nothing heavy."""

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any

import click

from pcexport.config import (
    DEFAULT_RECIPE,
    FLOAT_RANGES,
    INTEGER_RANGES,
    BuildConfig,
    load_config,
    recipe_names,
)
from pcexport.datasets import LAYOUTS
from pcexport.distill import STUDENT_NAMES
from pcrun._version import __version__
from pcrun.commands.options import (
    device_options,
    exactness_option,
    precision_option,
    profile_option,
    provider_option,
    threshold_options,
)
from pcrun.commands.shared_options import (
    FALSE_ALARM_RATE_HELP,
    LAYOUT_HELP,
    SEEDS,
    STRICT_HELP,
    force_option,
    json_option,
    output_option,
)
from pcrun.commands.support import HELP_SETTINGS, debug_option, is_given, print_json, run_command
from pcrun.words import plural


@click.group(context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name="pcexport")
@debug_option
def cli() -> None:
    """From a folder of normal images to a verified bundle for `pcrun`."""


def _config_options(command: Any) -> Any:
    """One flag per configuration key."""
    hints = typing.get_type_hints(BuildConfig)
    for field in reversed(dataclasses.fields(BuildConfig)):
        command = _config_option(field, hints[field.name])(command)
    return command


def _config_option(field: "dataclasses.Field[Any]", hint: Any) -> Any:
    flag = "--" + field.name.replace("_", "-")
    return click.option(
        f"{flag}/--no-{flag[2:]}" if hint is bool else flag,
        field.name,
        type=None if hint is bool else _parameter_type(field, hint),
        default=field.default,
        show_default=True,
        help=field.metadata["help"],
    )


def _parameter_type(field: "dataclasses.Field[Any]", hint: Any) -> Any:
    if field.metadata["choices"]:
        return click.Choice(field.metadata["choices"])
    if field.name in INTEGER_RANGES:
        return click.IntRange(*INTEGER_RANGES[field.name])
    if field.name in FLOAT_RANGES:
        low, high, low_open, high_open = FLOAT_RANGES[field.name]
        return click.FloatRange(low, high, min_open=low_open, max_open=high_open)
    return str


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


def _given(ctx: click.Context, flags: dict[str, Any]) -> dict[str, Any]:
    """Those on the command line: any other would win over the recipe."""
    return {key: value for key, value in flags.items() if is_given(ctx, key)}


@cli.command(context_settings=HELP_SETTINGS, short_help="Build a bundle from normal images.")
@click.argument("data", metavar="DATA", nargs=-1, required=True, callback=_one)
@output_option("Bundle to write (NAME.pcbundle).", required=True)
@click.option(
    "--config",
    "recipe",
    default=DEFAULT_RECIPE,
    show_default=True,
    help=f"Recipe: a YAML file, or one of {', '.join(recipe_names())}.",
)
@force_option("bundle")
@json_option("the summary")
@_config_options
@debug_option
@click.pass_context
def build(
    ctx: click.Context, /, data: str, output: Path, recipe: str, force: bool, as_json: bool, **flags: Any
) -> int:
    """Build a bundle from DATA: a folder of images, a quoted glob, or a list (CSV, JSONL).

    `pcexport datasets` shows which folders are known.

    Every key of a recipe is also a flag; a flag wins over the recipe, the recipe over the default.
    """
    config = load_config(recipe, _given(ctx, flags))
    from pcexport.build import build_bundle
    from pcexport.progress import Steps
    from pcexport.summary import print_summary

    steps = Steps()
    summary = build_bundle(data, output, config, steps, force=force)
    if as_json:
        print_json(summary.to_json())
    else:
        print_summary(summary)
    return 0


@cli.command("eval", context_settings=HELP_SETTINGS, short_help="Evaluate a bundle on images.")
@click.argument("arguments", metavar="BUNDLE DATA", nargs=-1, required=True)
@output_option("Report to write (NAME.html), with .json and .csv beside it.")
@click.option(
    "--compare", is_flag=True, help="Put several bundles side by side: --compare BUNDLE BUNDLE ... DATA."
)
@click.option(
    "--layout",
    type=click.Choice(("auto", *LAYOUTS)),
    default="auto",
    show_default=True,
    help=LAYOUT_HELP,
)
@threshold_options
@device_options
@exactness_option
@profile_option
@click.option("--strict", is_flag=True, help=STRICT_HELP)
@json_option("the figures")
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
        got = f"{len(arguments)} {plural(len(arguments), 'argument')}"
        raise click.UsageError(f"Expected {wanted}, got {got}. Put a glob into quotes: 'bad/*.png'.")
    if output is not None and output.suffix != ".html":
        raise click.UsageError(
            f"{output} does not end in .html. Expected the report's name; .json and .csv follow."
        )
    from pcexport.evaluation.command import evaluate_here

    return evaluate_here([Path(bundle) for bundle in bundles], data, output, as_json=as_json, **options)


@cli.command(context_settings=HELP_SETTINGS, short_help="Choose new thresholds from new normal images.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("normals", metavar="NORMALS", nargs=-1, required=True, callback=_one)
@output_option("Bundle to write; left out: BUNDLE, with --force.")
@click.option(
    "--false-alarm-rate",
    "rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help=f"{FALSE_ALARM_RATE_HELP}; left out: that of the bundle's threshold, else 0.01.",
)
@provider_option
@precision_option
@profile_option
@click.option(
    "--allow-shortage", is_flag=True, help="Take the largest score where the images are too few for the rate."
)
@force_option("bundle")
@json_option("the summary")
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
        print_json(summary.to_json())
    else:
        print_calibration(summary)
    steps.say(
        "Device profiles are valid for one digest: run `pcrun tune` where the new bundle runs"
        + (", here too." if summary.had_profile else ".")
    )
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option("the manifest")
@debug_option
def inspect(bundle: Path, as_json: bool) -> int:
    """Verify BUNDLE and show what it is."""
    from pcexport.summary import print_bundle
    from pcrun.bundle.bundle import Bundle
    from pcrun.records import to_jsonable

    opened = Bundle.load(bundle)
    if as_json:
        print_json({"digest": opened.digest, **to_jsonable(opened.manifest)})
    else:
        print_bundle(opened)
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@click.argument("bundle", type=click.Path(path_type=Path))
@output_option("Zip to write; left out: BUNDLE.zip.")
@force_option("zip")
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


def _number(flag: str, kind: click.ParamType, default: float, text: str) -> Any:
    return click.option(flag, type=kind, default=default, show_default=True, help=text)


@cli.command("distill", context_settings=HELP_SETTINGS, short_help="Train a small backbone.")
@click.option("--teacher", default="resnet18", show_default=True, help="Backbone to imitate.")
@click.option(
    "--weights",
    default="default",
    show_default=True,
    help="Weights of the teacher: `default` (downloaded once), a .pth or .safetensors file, or `untrained`.",
)
@click.option(
    "--student",
    type=click.Choice(STUDENT_NAMES),
    default="edge-s",
    show_default=True,
    help="Architecture of the student.",
)
@click.option(
    "--images",
    multiple=True,
    metavar="DATA",
    help="Image folders, quoted globs or lists of your own normal images, for half of the pictures; "
    "left out: all are drawn; repeatable.",
)
@_number("--pictures", click.IntRange(min=1), 20_000, "Pictures to learn from; the last 256 are held out.")
@_number("--size", click.IntRange(min=32), 192, "Height and width of a picture in pixels, a multiple of 16.")
@_number("--steps", click.IntRange(min=1), 24_000, "Steps of gradient descent.")
@_number("--batch", click.IntRange(min=2), 16, "Pictures per step.")
@_number("--learning-rate", click.FloatRange(0, 1, min_open=True), 2e-3, "Largest learning rate of AdamW.")
@_number("--seed", SEEDS, 0, "Seed of the pictures, first weights and order.")
@_number(
    "--teacher-scale",
    click.FloatRange(0, 1),
    0.0,
    "Variance of the channels: 0 is the same for all, 1 is the teacher's.",
)
@output_option("Student to write (NAME.onnx).", required=True)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of pictures, checkpoint and log; a second call goes on from there; left out: OUTPUT.work.",
)
@force_option("file")
@debug_option
def distill_command(output: Path, work: Path | None, force: bool, size: int, **options: Any) -> int:
    """Train a small backbone that imitates TEACHER's patch embeddings, for `build --backbone NAME.onnx`.

    The pictures are drawn by the program; your own normal images make it fit your parts better. It takes
    hours on a CPU, and an interrupted training goes on when the same command is given again.
    """
    from pcexport.distill.command import distill_here

    return distill_here(output, work, force=force, size_px=size, **options)


@cli.command(context_settings=HELP_SETTINGS)
@json_option("the layouts")
@debug_option
def datasets(as_json: bool) -> int:
    """List the layouts of data that `pcexport build` reads."""
    if as_json:
        keys = ("name", "title", "expects")
        print_json([{key: getattr(known, key) for key in keys} for known in LAYOUTS.values()])
    else:
        from pcexport.summary import print_layouts

        print_layouts()
    return 0


@cli.command(context_settings=HELP_SETTINGS)
@output_option("Folder to write; left out: demo.")
@debug_option
def demo(output: Path | None) -> int:
    """Make part images, build a bundle from them and run it.

    The backbone is the shipped student edge-s: neither torch nor a download is needed.
    """
    from pcexport.demo.command import run_demo

    return run_demo(output or Path("demo"))


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script."""
    return run_command(cli, "pcexport", argv, extras="build,cpu")


if __name__ == "__main__":
    sys.exit(main())
