"""The parent's side of a contender's process."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pcbench.peers.contenders import Absent, Request
from pcrun.errors import PcError
from pcrun.types import Float64Array, FloatArray

# onnxruntime reads the first; the second makes openvino's telemetry, which anomalib's export imports, silent.
_QUIET = {"ORT_DISABLE_TELEMETRY": "1", "CI": "true"}


class ContenderProcess:
    """A contender in a process of its own; a context manager that ends it.

    Attributes:
        facts: what it really runs with.
    """

    def __init__(self, request: Request, *, step: str = "run") -> None:
        """Start it and wait until it is ready.

        Raises:
            Absent: it cannot take part here.
            PcError: it should, and failed.
        """
        self._name = request.contender
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in _end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pcbench.peers.worker", step],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=os.environ | _QUIET,
        )
        try:
            answer = self._asked(request.to_json())
            if "absent" in answer:
                raise Absent(answer["absent"])
            if "error" in answer:
                raise PcError(f"{self._name}: {answer['error']}")
        except BaseException:
            self._end()
            raise
        self.facts: dict[str, Any] = answer["ready"]

    def __enter__(self) -> "ContenderProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def scored(self, file: Path) -> tuple[Float64Array, FloatArray]:
        """(images,) scores and (images, height, width) maps of all images; `file` is written between."""
        self._asked(json.dumps({"do": "score", "file": str(file)}))
        with np.load(file, allow_pickle=False) as found:
            return found["scores"], found["maps"]

    def timed(self, items: Sequence[int], *, warm_up: Sequence[int]) -> list[float]:
        """Milliseconds of each item; those of the warm-up run before and do not count."""
        order = {"do": "time", "items": list(items), "warm_up": list(warm_up)}
        samples: list[float] = self._asked(json.dumps(order))["ms"]
        return samples

    def peak_rss_mb(self) -> float | None:
        """Its largest resident memory so far, in MB (10^6 bytes); None where the system does not tell."""
        peak: float | None = self._asked(json.dumps({"do": "peak"}))["peak_rss_mb"]
        return peak

    def _asked(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None  # pipes, above
        try:
            print(line, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise PcError(
                f"{self._name}: its process ended with code {self._process.wait()}: {self._last_words()}"
            )
        found: dict[str, Any] = json.loads(answer)
        return found

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"

    def _end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()
            self._errors.close()


def prepare(request: Request) -> None:
    """Make a contender's files, in a process that ends before anything is measured.

    Raises:
        Absent: it cannot take part here.
        PcError: it should, and failed.
    """
    with ContenderProcess(request, step="prepare"):
        pass
