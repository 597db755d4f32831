"""The three programs speak one language: a flag of several commands is the same flag in all of them."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest

from tests.packaging.commands import PROGRAMS, command_tree, options_of

TREE = command_tree()
# What comes last, in this order; what a command is about comes before.
LAST = ("--output", "--force", "--json", "--debug")
# Words that say the same as the one on the right, which is the one to use.
OTHER_WORDS = {
    r"\bby default\b|\bdefaults? (is|to)\b": "left out: ...",
    r"\bmay be repeated\b": "repeatable",
    r"\bneighbor|\bcenter(?!_)|\bcolor": "neighbour, centre, colour",
    r"\bfalse positive|\bfalse alarm rate\b": "false-alarm rate",
    r"\bscore map\b": "anomaly map",
    r"\bexecution provider\b|\bbackend\b": "provider",
    r"\banomaly score\b|\bimage-level score\b": "image score",
    r"\bfeature bank\b": "memory bank",
    r"\bgolden images?\b": "golden sample",
}

# Flag -> aspects in which its commands differ, and why they must.
DIFFERENT: dict[str, tuple[set[str], str]] = {
    "--output": ({"help", "required"}, "each command writes something else"),
    "--bundle": ({"multiple", "required", "help"}, "pcrun finds one by itself; what measures wants it named"),
    "--json": ({"help"}, "each command prints something else"),
    "--force": ({"help"}, "each command replaces something else"),
    "--images": ({"metavar", "help"}, "pcrun takes several at once; distill takes lists of a data set, too"),
    "--video": ({"required", "help"}, "pcrun scores it, bench measures with it, soak loops it"),
    "--weights": ({"type", "default", "help"}, "peers knows the backbone: only a file, for another program"),
    "--batch": ({"type", "default", "multiple", "help"}, "of the graph, of the training, of a query"),
    "--precision": ({"type", "default", "multiple", "help"}, "a graph is made in more than it is run in"),
    "--provider": (
        {"default", "multiple", "help"},
        "a measurement names its provider; a sweep takes several",
    ),
    "--threads": ({"multiple", "help"}, "a sweep takes several; in pcrun 0 asks the device profile first"),
    "--exactness": ({"multiple", "help"}, "a sweep takes several"),
    "--ef": ({"help"}, "left out, the build measures it, and a run takes the build's"),
    "--seed": ({"help"}, "each command draws something else"),
    "--strict": ({"type"}, "as a key of a recipe it can be switched off, too"),
    "--allow-flips": ({"type", "help"}, "as a key of a recipe it can be switched off, too"),
    "--false-alarm-rate": ({"default", "help"}, "a calibration keeps the rate of the bundle"),
    "--fps": ({"default", "help"}, "a limit of real sources, the rate of made ones"),
    "--duration": ({"type", "default", "help"}, "where a run ends, how long a measurement lasts at least"),
    "--queries": ({"help"}, "of a scenario, of a kind of image"),
    "--max-images": ({"default", "help"}, "what a command does with an image takes from 10 ms to seconds"),
}

# Their texts differ, and begin alike all the same.
SAME_BEGINNING = (
    *("--bundle", "--provider", "--precision", "--threads", "--exactness", "--ef", "--false-alarm-rate"),
    *("--weights", "--name", "--max-images", "--images", "--seed", "--video", "--json", "--force"),
)


def uses() -> dict[str, dict[str, click.Option]]:
    """Flag -> command -> its option, for flags of several commands."""
    found: dict[str, dict[str, click.Option]] = {}
    for name, command in TREE.items():
        for option in options_of(command):
            for flag in (*option.opts, *option.secondary_opts):
                found.setdefault(flag, {})[name] = option
    return {flag: options for flag, options in found.items() if len(options) > 1}


SHARED = uses()


def default_of(option: click.Option) -> Any:
    """None where there is none: click has other values for that, by version and kind of option."""
    default = option.default
    return None if "UNSET" in repr(default) or default is False or default == () else default


def aspects(option: click.Option) -> dict[str, Any]:
    default = default_of(option)
    return {
        "type": ("flag", *option.secondary_opts) if option.is_flag else repr(option.type.to_info_dict()),
        "metavar": option.metavar,
        "default": default[0] if isinstance(default, tuple) else default,
        "multiple": option.multiple,
        "required": option.required,
        "help": option.help,
    }


def differing(flag: str) -> set[str]:
    seen = [aspects(option) for option in SHARED[flag].values()]
    return {aspect for aspect in seen[0] if len({repr(one[aspect]) for one in seen}) > 1}


@pytest.mark.parametrize("flag", [flag for flag in SHARED if flag.startswith("--")])
def test_a_flag_of_several_commands_is_the_same_in_all(flag: str) -> None:
    """Or the difference is listed above; one that is gone is not listed any more."""
    allowed, _ = DIFFERENT.get(flag, (set(), ""))
    shown = {name: aspects(option) for name, option in SHARED[flag].items()}
    assert differing(flag) == allowed, shown


def test_only_flags_of_several_commands_are_listed() -> None:
    assert DIFFERENT.keys() <= SHARED.keys()
    assert set(SAME_BEGINNING) <= SHARED.keys()


@pytest.mark.parametrize("flag", SAME_BEGINNING)
def test_helps_of_a_flag_begin_alike(flag: str) -> None:
    beginnings = {re.split(r"\W", str(option.help))[0] for option in SHARED[flag].values()}
    assert len(beginnings) == 1, beginnings


def test_the_only_short_name_is_that_of_output() -> None:
    spellings = {tuple(option.opts) for command in TREE.values() for option in options_of(command)}
    assert {names for names in spellings if len(names) > 1} == {("-o", "--output")}
    assert ("--output",) not in spellings


@pytest.mark.parametrize("name", TREE)
def test_help_texts_begin_and_end_alike(name: str) -> None:
    command = TREE[name]
    for option in options_of(command):
        told = f"{name} {option.opts[-1]}: {option.help}"
        assert option.help, told
        assert re.match(r"[A-Z]|npy\b", option.help), told
        assert option.help.endswith("."), told
        # Defaults and ranges are written by click; an address has brackets of its own.
        assert "[" not in re.sub(r"\[USER:PASSWORD@\]|\[:PORT\]", "", option.help), told
    for text in ((command.help or "").split("\n\n")[0], command.get_short_help_str(limit=1000)):
        assert re.match(r"[A-Z]", text), f"{name}: {text}"
        assert text.endswith("."), f"{name}: {text}"


@pytest.mark.parametrize("name", TREE)
def test_help_uses_the_words_of_this_project(name: str) -> None:
    command = TREE[name]
    for text in (command.help or "", *(option.help or "" for option in options_of(command))):
        for other, ours in OTHER_WORDS.items():
            assert not re.search(other, text, re.IGNORECASE), f"{name}: say {ours!r}: {text}"


@pytest.mark.parametrize("name", TREE)
def test_every_default_is_shown(name: str) -> None:
    """By click: a typed one can be another than the one in force."""
    for option in options_of(TREE[name]):
        if default_of(option) is not None:
            assert option.show_default, f"{name} {option.opts[-1]} hides its default {option.default}"


@pytest.mark.parametrize("name", TREE)
def test_a_repeatable_flag_says_so(name: str) -> None:
    for option in options_of(TREE[name]):
        said = re.search(r"repeatable|repeated|takes several", str(option.help)) is not None
        assert said == option.multiple, f"{name} {option.opts[-1]}: {option.help}"


@pytest.mark.parametrize("name", TREE)
def test_common_flags_stand_last_in_one_order(name: str) -> None:
    flags = [option.opts[-1] for option in options_of(TREE[name])]
    assert [flag for flag in flags if flag in LAST] == [flag for flag in LAST if flag in flags]
    assert flags[-1] == "--debug"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_list_of_commands_is_not_cut_off(program: str) -> None:
    group = TREE[program]
    shown = click.Context(
        group, info_name=program, max_content_width=80, terminal_width=80, help_option_names=["-h", "--help"]
    )
    assert "..." not in group.get_help(shown).partition("Commands:")[2]
