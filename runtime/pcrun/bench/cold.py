"""Cold starts: from the start of a process to its first verdict."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pcrun.errors import BackendError

_LIMIT_S = 120.0


def cold_starts(arguments: Sequence[str], image: bytes, suffix: str, *, starts: int) -> list[float]:
    """Seconds of each of some starts of `pcrun` on one image, to the end of the process.

    Args:
        arguments: of `pcrun`, without the image.
        image: its file's bytes.
        suffix: of its file name.
        starts: how many.

    Raises:
        BackendError: it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{suffix}"
        path.write_bytes(image)
        command = [sys.executable, "-m", "pcrun.cli", *arguments, "--images", str(path), "--format", "jsonl"]
        seconds = []
        for _ in range(starts):
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
            seconds.append(time.perf_counter() - started)
            if done.returncode not in (0, 1):
                raise BackendError(
                    f"pcrun does not start on its own: {done.stderr.strip().splitlines()[-1:]}"
                )
    return seconds
