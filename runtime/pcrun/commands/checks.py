"""What click does not check of `pcrun`'s options, and their order in its help."""

from collections.abc import Sequence
from typing import Any

import click

from pcrun.commands.support import is_given

# Options that only change what another one does.
_ONLY_WITH = {
    "rotate_mb": "output",
    "keep": "rotate_mb",
    "map_format": "save_maps",
    "video_fps": "save_video",
    "evidence_mb": "evidence",
    "webhook_all": "webhook",
    "mqtt_qos": "mqtt",
    "mqtt_retain": "mqtt",
}
# Cameras, streams and videos have these, and what else can be read has not.
_OF_MOVING_PICTURES = ("fps", "properties", "stall_timeout_s")
_NOT_MOVING = ("images", "watch", "stdin_frames")
# `--help` of a run is long: where each part of it begins.
_HELP_SECTIONS = {
    "images": "Where frames come from",
    "fps": "Which frames, and which part of them",
    "threshold": "Verdict",
    "provider": "Device",
    "output_format": "Where results go",
    "fail_on_anomaly": "Other",
}


class Subcommand(click.Command):
    """A command without arguments: they are mostly the bundle, without its option."""

    allow_extra_args = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        if left:
            raise unexpected(left[0], ctx)
        return left


def unexpected(argument: str, ctx: click.Context) -> click.UsageError:
    """What to raise where somebody names a bundle without its option."""
    return click.UsageError(f"Unexpected {argument!r}. A bundle is named with --bundle PATH.", ctx)


def long_flag(parameter: click.Parameter) -> str:
    """The flag that messages name: `--output`, not `-o`."""
    return parameter.opts[-1]


def refuse_idle_options(ctx: click.Context, options: dict[str, Any]) -> None:
    """Refuse what would do nothing: whoever gave it expects something of it."""
    flags = {parameter.name: long_flag(parameter) for parameter in ctx.command.params}
    for name, needed in _ONLY_WITH.items():
        if is_given(ctx, name) and options[needed] in (None, ()):
            raise click.UsageError(f"{flags[name]} does nothing without {flags[needed]}.")
    for source in _NOT_MOVING:
        for name in _OF_MOVING_PICTURES if options[source] not in (None, ()) else ():
            if is_given(ctx, name):
                raise click.UsageError(
                    f"{flags[name]} is for cameras, streams and videos. With {flags[source]} it does nothing."
                )


def write_sections(
    parameters: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    """Write the options of a run under the headings of their parts."""
    sections: list[tuple[str, list[tuple[str, str]]]] = [("Options", [])]
    for parameter in parameters:
        if parameter.name in _HELP_SECTIONS:
            sections.append((_HELP_SECTIONS[parameter.name], []))
        record = parameter.get_help_record(ctx)
        if record is not None:
            sections[-1][1].append(record)
    for title, records in sections:
        with formatter.section(title):
            formatter.write_dl(records)
