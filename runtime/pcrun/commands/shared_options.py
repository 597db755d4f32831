"""Options of `pcrun`, `pcexport` and `pcbench` that mean the same in all; nothing heavy is imported here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

THREADS = click.IntRange(0, 1024)
SEEDS = click.IntRange(0, 2**31 - 1)

PROVIDER_HELP = "What the embedder runs on; auto is CUDA where onnxruntime has it, else the CPU."
EXACTNESS_HELP = (
    "What equals brute force. none: nothing. image: the image score. mask: that and the mask. "
    "full: every patch."
)
LAYOUT_HELP = "How DATA is read; `pcexport datasets` lists the layouts."
STRICT_HELP = "Stop at the first unreadable image instead of leaving it out."
FALSE_ALARM_RATE_HELP = "Share of normal images that may be called anomalous"


def output_option(text: str, *, required: bool = False) -> Callable[[_Command], _Command]:
    """`-o`, `--output`: what a command writes."""
    return click.option("-o", "--output", required=required, type=click.Path(path_type=Path), help=text)


def force_option(what: str) -> Callable[[_Command], _Command]:
    """`--force`: without it nothing that exists is replaced."""
    return click.option(
        "--force", is_flag=True, help=f"Replace an existing {what} when the new one is complete."
    )


def json_option(what: str) -> Callable[[_Command], _Command]:
    """`--json`: the same for programs."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def duration_option(what: str, *, most_s: float | None = None) -> Callable[[_Command], _Command]:
    """`--duration` of a measurement."""
    return click.option(
        "--duration",
        "duration_s",
        type=click.FloatRange(0, most_s),
        default=10.0,
        show_default=True,
        metavar="S",
        help=f"Seconds that {what} lasts, at least.",
    )


def queries_option(what: str) -> Callable[[_Command], _Command]:
    """`--queries` of a measurement."""
    return click.option(
        "--queries",
        type=click.IntRange(1),
        default=100,
        show_default=True,
        help=f"Queries of {what}, at least.",
    )


def threads_option(
    text: str = "Threads to use; 0 is one per available core.",
) -> Callable[[_Command], _Command]:
    """`--threads`."""
    return click.option("--threads", type=THREADS, default=0, show_default=True, help=text)
