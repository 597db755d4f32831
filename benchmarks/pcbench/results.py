"""Result files: one JSON per measurement, written whole or not at all."""

import json
import re
from pathlib import Path
from typing import Any

from pcrun.errors import PcError
from pcrun.files import write_file

RESULTS_VERSION = 1
# A list of numbers, as an indented JSON has it: hundreds of lines of samples.
_NUMBERS = re.compile(r"\[\s+(-?[\d.eE+-]+(?:,\s+-?[\d.eE+-]+)*)\s+\]")


def save_result(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write a result of a kind, for example "build" or "latency"; `pcbench.readme` knows all."""
    data = {"results_version": RESULTS_VERSION, "kind": kind, **content}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, (one_line_numbers(json.dumps(data, indent=1, ensure_ascii=False)) + "\n").encode())


def one_line_numbers(text: str) -> str:
    """An indented JSON with each list of numbers on one line: a third of the size, and easier to read."""
    return _NUMBERS.sub(lambda found: "[" + re.sub(r",\s+", ",", found[1]) + "]", text)


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder, by file name.

    Raises:
        PcError: a file that is not a result of this version.
    """
    loaded = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PcError(f"{path} is not JSON ({error}). Measure again.") from error
        if not isinstance(data, dict) or data.get("results_version") != RESULTS_VERSION:
            raise PcError(f"{path} is not a result file of version {RESULTS_VERSION}. Measure again.")
        loaded.append({**data, "file": path.name})
    return loaded
