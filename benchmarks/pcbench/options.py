"""Options that several commands of `pcbench` share; nothing heavy is imported here."""

from pathlib import Path
from typing import Any

import click

from pcrun.commands.options import PRECISION_NAMES, PROVIDER_NAMES
from pcrun.commands.shared_options import PROVIDER_HELP, output_option

PATHS = "files, folders, quoted globs, or @FILE with one path a line"
PRECISIONS = click.Choice(("bundle", *PRECISION_NAMES))

name_option = click.option("--name", required=True, help="Name of the measurement in reports.")
result_option = output_option("Result file to write (JSON).", required=True)


def bundle_option(use: str) -> Any:
    """`--bundle`, once."""
    return click.option(
        "--bundle", required=True, type=click.Path(path_type=Path), help=f"Bundle directory or zip; {use}."
    )


def bundles_option(more: str = "") -> Any:
    """`--bundle`, once or more."""
    return click.option(
        "--bundle",
        "bundles",
        required=True,
        multiple=True,
        type=click.Path(path_type=Path),
        help=f"Bundle directory or zip{'; ' if more else ''}{more}; repeatable.",
    )


def max_images_option(default: int, more: str = "") -> Any:
    """`--max-images`: evenly spread over those given."""
    return click.option(
        "--max-images",
        type=click.IntRange(6),
        default=default,
        show_default=True,
        help=f"Images used{' ' if more else ''}{more}, at most, evenly spread.",
    )


def axis_option(flag: str, name: str, kind: click.ParamType, default: str | int, text: str) -> Any:
    """An option whose values a sweep combines with those of all others."""
    return click.option(
        flag,
        name,
        multiple=True,
        type=kind,
        default=(default,),
        show_default=True,
        help=f"{text.removesuffix('.')}; repeatable.",
    )


providers_option = axis_option("--provider", "providers", click.Choice(PROVIDER_NAMES), "cpu", PROVIDER_HELP)
defective_option = click.option(
    "--defective",
    multiple=True,
    metavar="PATH",
    help=f"Defective images: {PATHS}; reported apart; repeatable.",
)
