"""What the three command lines share: errors as one line, exit codes, options that take several values."""

import math
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pcrun.errors import PcError

# ParamType is generic in click's newer versions only, so not at run time.
if TYPE_CHECKING:
    _FloatParamType = click.ParamType[float]
else:
    _FloatParamType = click.ParamType

EXIT_OK = 0
EXIT_ANOMALY = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_OPENCV_ADVICE = (
    "It needs system libraries: on Debian or Ubuntu run `sudo apt-get install libgl1 libglib2.0-0`, or put "
    "opencv-python-headless in the place of opencv-python."
)

# Shown in --help; `run_command` acts on it before click sees the arguments, wherever it stands.
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the trace of an error.")


class FiniteFloat(_FloatParamType):
    """A number that is neither infinite nor NaN."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def run_command(command: click.Command, name: str, argv: Sequence[str] | None = None) -> int:
    """Run a click command as a process would: prints an error as one line, returns the exit code.

    Args:
        command: its callback returns an exit code or None.
        name: program name for messages.
        argv: arguments; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # A supervisor's SIGTERM must leave as little behind as Ctrl-C: same exception, same clean-up.
    signal.signal(signal.SIGTERM, _interrupt)
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
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted; without this Python complains when it flushes at exit.
        sys.stdout = None
        return EXIT_OK
    except (PcError, ImportError) as error:
        if debug or not (isinstance(error, PcError) or _is_opencv_problem(error)):
            raise
        advice = "" if isinstance(error, PcError) else f". {_OPENCV_ADVICE}"
        print(f"{name}: error: {error}{advice}", file=sys.stderr)
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


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _is_opencv_problem(error: ImportError) -> bool:
    return error.name == "cv2" or any(library in str(error) for library in ("libGL", "libgthread", "libglib"))
