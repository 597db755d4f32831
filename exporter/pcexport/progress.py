"""What a person sees during a build: one step after another, each with its ETA, all on standard error."""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

_PLAIN_INTERVAL_S = 15.0


class Step:
    """One running step; `advance_to` reports how far it is."""

    def __init__(self, steps: "Steps", name: str, total: int) -> None:
        self._steps = steps
        self._name = name
        self._total = total
        self._started = self._last = time.monotonic()
        self._task = steps.bars.add_task(name, total=total) if steps.bars else None

    def advance_to(self, done: int) -> None:
        """Report that `done` of `total` are done."""
        if self._steps.bars and self._task is not None:
            self._steps.bars.update(self._task, completed=done)
        elif time.monotonic() - self._last >= _PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            remaining = (self._last - self._started) * (self._total - done) / max(done, 1)
            self._steps.say(f"{self._name}: {done}/{self._total}, about {remaining:.0f} s left")

    def tell(self, text: str) -> None:
        """Report how it goes where nobody knows how much is left."""
        if self._steps.bars and self._task is not None:
            self._steps.bars.update(self._task, description=f"{self._name}: {text}")
        elif time.monotonic() - self._last >= _PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            self._steps.say(f"{self._name}: {text}")


class Steps:
    """Runs and times named steps; bars on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.bars: Progress | None = None

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning, once, and remember it for the summary."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.console.print(f"warning: {text}", style="yellow", markup=False)

    @contextmanager
    def own_warnings(self) -> Iterator[None]:
        """Show the warnings of this project's libraries as lines, each once; those of others as ever."""

        def show(message: Warning | str, category: type[Warning], filename: str, *where: Any) -> None:
            if {"pcexport", "pcrun"} & set(Path(filename).parent.parts[-3:]):
                self.warn(str(message))
            else:
                others(message, category, filename, *where)

        with warnings.catch_warnings():
            others = warnings.showwarning
            warnings.showwarning = show  # type: ignore[assignment]
            yield

    @contextmanager
    def step(self, name: str, total: int = 1) -> Iterator[Step]:
        """Time a step under `name` and show its progress while it runs."""
        started = time.monotonic()
        if self.console.is_terminal and sys.stderr.isatty():
            self.bars = _bars(self.console)
        try:
            if self.bars:
                with self.bars:
                    yield Step(self, name, total)
            else:
                self.say(f"{name} ...")
                yield Step(self, name, total)
        finally:
            self.bars = None
        self.seconds[name] = time.monotonic() - started
        self.say(f"{name}: {self.seconds[name]:.1f} s")


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
