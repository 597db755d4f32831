"""What the three command lines share: errors as one line, exit codes, options that take several values."""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from pcrun.errors import PcError

# ParamType is generic in click's newer versions only, so not at run time.
if TYPE_CHECKING:
    _FloatParamType = click.ParamType[float]
else:
    _FloatParamType = click.ParamType

# Windows has no SIGHUP.
_STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

EXIT_OK = 0
EXIT_ANOMALY = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141  # what a shell reports of a program that died of SIGPIPE

HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_OPENCV_ADVICE = (
    "It needs system libraries: on Debian or Ubuntu run `sudo apt-get install libgl1 libglib2.0-0`, or put "
    "opencv-python-headless in the place of opencv-python."
)

# Shown in --help; `run_command` acts on it before click sees the arguments, wherever it stands.
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the trace of an error.")


_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


class ThresholdType(_FloatParamType):
    """A number that distances in float32 are compared with: not below 0, neither infinite nor NaN."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not abs(number) <= _LARGEST_FLOAT32:  # NaN too
            self.fail(f"{value!r} is not a finite number", param, ctx)
        if number < 0:
            self.fail(f"{value!r} is below 0, and no score is: scores are distances", param, ctx)
        return number


def run_command(
    command: click.Command, name: str, argv: Sequence[str] | None = None, *, extras: str = ""
) -> int:
    """Run a click command as a process would: prints an error as one line, returns the exit code.

    Args:
        command: its callback returns an exit code or None.
        name: program name for messages.
        argv: arguments; None takes those of the process.
        extras: extras of the distribution that the command needs, for the advice when a package is missing.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if not debug:
        # Their logs would bury the one line that says what to do. Read when the libraries start.
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    # A supervisor's SIGTERM or a closed terminal must leave as little behind as Ctrl-C: the same clean-up.
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's choice stays
            signal.signal(number, _interrupt)
    stdout = sys.stdout
    try:
        code = command.main(
            args=[a for a in arguments if a != "--debug"], prog_name=name, standalone_mode=False
        )
        return code if isinstance(code, int) else EXIT_OK
    except click.ClickException as error:
        error.show()
        return EXIT_ERROR
    except (click.Abort, KeyboardInterrupt):
        print(f"{name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit:
        # On a closed pipe click replaces stdout and asks for 1, which is the code of an anomaly.
        if sys.stdout is stdout:
            raise
        return EXIT_PIPE_CLOSED
    except Exception as error:
        # Not left to Python, whose exit code for a crash is 1: with `--fail-on-anomaly` that says "anomaly".
        if debug or not (isinstance(error, PcError) or _advice(error, extras)):
            traceback.print_exc()
            return EXIT_ERROR
        print(f"{name}: error: {error}{_advice(error, extras)}", file=sys.stderr)
        return EXIT_ERROR


def spread_values(arguments: Sequence[str], option: str) -> list[str]:
    """Let one option take several values, as when the shell expands `--images *.png`.

    `--images a b --threads 2` becomes `--images a --images b --threads 2`.
    """
    spread: list[str] = []
    collecting = False
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            collecting = argument == option
            spread.append(argument)
        elif collecting and spread[-1] != option:
            spread += [option, argument]
        else:
            spread.append(argument)
    return spread


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let a clean-up or a rename finish: signals that ask to stop are ignored inside (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *_STOP_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def print_json(value: Any) -> None:
    """What `--json` prints: one value in plain types, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _advice(error: Exception, extras: str) -> str:
    """What to do about a package that cannot be imported; empty when nothing is known to help."""
    if not isinstance(error, ImportError):
        return ""
    if any(library in str(error) for library in ("libGL", "libgthread", "libglib")):
        return f". {_OPENCV_ADVICE}"
    if isinstance(error, ModuleNotFoundError) and extras:
        return f". This command needs more packages: pip install 'patchcore-edge[{extras}]'"
    return ""
