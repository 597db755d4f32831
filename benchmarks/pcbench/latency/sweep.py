"""The job behind `pcbench latency`: plan, measure what is missing, write a file per cell."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pcbench.latency.cell import Axes, Cell, content_sha256, contents_of, plan, request_of
from pcbench.machine import machine_facts, versions
from pcbench.results import RESULTS_VERSION, save_result
from pcrun.bundle.bundle import Bundle
from pcrun.errors import PcError
from pcrun.files import make_folder
from pcrun.words import plural

Say = Callable[[str], None]


@dataclass
class Tally:
    """What became of the cells of a sweep."""

    measured: int = 0
    kept: int = 0
    failed: int = 0


def sweep(
    bundles: Sequence[Path],
    axes: Axes,
    *,
    images: Sequence[str] = (),
    defective: Sequence[str] = (),
    folder: Path,
    say: Say,
    timeout_s: float,
) -> Tally:
    """Measure every cell that the folder does not hold yet.

    Args:
        bundles: to measure.
        axes: what to combine.
        images, defective: files, folders or globs; the golden samples where both are empty.
        folder: of the result files.
        say: called once per cell with a line for a person.
        timeout_s: a cell that takes longer is ended, and is one that cannot run.

    Raises:
        PcError: a bundle or an image cannot be read, or a file cannot be written.
    """
    cells = plan(bundles, axes)
    contents = {
        cell.path: content_sha256(contents_of(Bundle.load(cell.path), images, defective))
        for cell in {cell.path: cell for cell in cells}.values()
    }
    here = {"machine": machine_facts(), "versions": versions()}
    tally, progress = Tally(), Progress(len(cells))
    missing = [cell for cell in cells if not is_measured(cell, folder, contents[cell.path], here)]
    tally.kept = len(cells) - len(missing)
    progress.done = tally.kept
    if tally.kept:
        say(f"{tally.kept} of {len(cells)} cells are in {folder} already")
    for cell in missing:
        file = folder / f"{cell.settings.name}.json"
        # Of other images, of another bundle, machine or software, or of a cell that could not run.
        say(f"{cell.settings.name} ..." + (" (in the place of an older result)" if file.exists() else ""))
        started = time.monotonic()
        report = run_worker(request_of(cell, images, defective), timeout_s=timeout_s)
        result = {
            "name": cell.settings.name,
            "asked": dataclasses.asdict(cell.settings),
            "bundle_digest": cell.digest,
            "content_sha256": contents[cell.path],
            "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **report,
            **here,
        }
        save_result(file, "latency", result)
        tally.failed += report["error"] is not None
        tally.measured += report["error"] is None
        progress.add(time.monotonic() - started, failed=report["error"] is not None)
        say(f"{progress}: {described(report)}")
    return tally


def is_measured(cell: Cell, folder: Path, content: str, here: dict[str, Any]) -> bool:
    """Whether a complete file of this very cell, on this machine and software, is there.

    What could not run is tried again: it costs little, and a package may have been installed meanwhile.
    """
    try:
        found = json.loads((folder / f"{cell.settings.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(found, dict)
        and found.get("results_version") == RESULTS_VERSION
        and found.get("kind") == "latency"
        and found.get("error", "unknown") is None
        and found.get("asked") == dataclasses.asdict(cell.settings)
        and found.get("bundle_digest") == cell.digest
        and found.get("content_sha256") == content
        and all(found.get(key) == value for key, value in here.items())
    )


def run_worker(request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Measure a cell in a process of its own; a crash is an error like any other, and so is a hang."""
    with tempfile.TemporaryDirectory() as folder:
        asked, report = Path(folder) / "request.json", Path(folder) / "report.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "pcbench.latency.worker", str(asked), str(report)]
        try:
            done = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            return {"error": f"timed out after {timeout_s:,.0f} s (--timeout); it hangs, or needs longer"}
        if done.returncode == 0 and report.is_file():
            found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
            return found
    if done.returncode < 0 and -done.returncode in (2, 15):
        raise KeyboardInterrupt
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return {"error": f"its process ended with code {done.returncode}: {' '.join(last) or 'no message'}"}


class Progress:
    """How many cells are done, and when the others will be; failures are no measure of time."""

    def __init__(self, cells: int) -> None:
        self.done = 0
        self._cells = cells
        self._seconds: list[float] = []

    def add(self, seconds: float, *, failed: bool) -> None:
        """A cell took so long."""
        self.done += 1
        if not failed:
            self._seconds.append(seconds)

    @property
    def left_s(self) -> float | None:
        """Seconds that the others will take; None before the first was measured."""
        if not self._seconds:
            return None
        return sum(self._seconds) / len(self._seconds) * (self._cells - self.done)

    def __str__(self) -> str:
        """As "3/12, about 40 s left"."""
        left = self.left_s
        shown = "" if left is None or self.done == self._cells else f", about {left:.0f} s left"
        return f"{self.done}/{self._cells}{shown}"


def described(report: dict[str, Any]) -> str:
    """One line: medians by kind of image, or why there are none."""
    if report["error"] is not None:
        return f"cannot run: {report['error']}"
    shown = []
    for content in report["contents"]:
        (result,) = content["scenarios"].values()
        doubts = len(result["warnings"])
        summary = result["latency_ms"]
        shown.append(
            f"{content['name']} median {summary['median']:.2f} ms, p99 {summary['p99']:.2f} ms"
            + (f" ({doubts} {plural(doubts, 'warning')})" if doubts else "")
        )
    return "; ".join(shown)


def check_folder(folder: Path) -> None:
    """Make the folder of a sweep before hours are spent.

    Raises:
        PcError: it cannot be made or written.
    """
    make_folder(folder)
    if not os.access(folder, os.W_OK):
        raise PcError(f"{folder} cannot be written. Choose another folder.")
