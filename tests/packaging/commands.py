"""All commands of the three programs, for tests that walk them."""

from __future__ import annotations

import importlib

import click

PROGRAMS = ("pcexport", "pcrun", "pcbench")
# Every command has them, or every program; docs/cli.md explains them once.
COMMON_FLAGS = {"-h", "--help", "--version", "--debug"}


def command_tree() -> dict[str, click.Command]:
    """Every command by its full name, "pcexport build" and so on."""
    found: dict[str, click.Command] = {}
    for program in PROGRAMS:
        command = importlib.import_module(f"{program}.cli").cli
        found[program] = command
        found |= {f"{program} {name}": sub for name, sub in command.commands.items()}
    return found


def options_of(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def flags_of(command: click.Command) -> set[str]:
    """All spellings of its options but the common ones."""
    return {
        flag for option in options_of(command) for flag in (*option.opts, *option.secondary_opts)
    } - COMMON_FLAGS
