"""`pcbench build`: time and memory of a whole `pcexport build`, as its own process."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pcbench.machine import machine_facts, versions
from pcbench.results import save_result
from pcrun.errors import PcError


def measure_build(data: str, flags: list[str], output: Path, name: str) -> dict[str, Any]:
    """Run one build into a temporary folder and save what it took and what it measured.

    Args:
        data: the data folder.
        flags: further arguments of `pcexport build`.
        output: result file.
        name: title in reports.

    Raises:
        PcError: the build failed (its messages went to standard error).
    """
    with tempfile.TemporaryDirectory(prefix="pcbench-") as folder:
        # The exporter of this environment, whatever else is on the path.
        command = [
            sys.executable,
            "-m",
            "pcexport.cli",
            "build",
            data,
            "-o",
            str(Path(folder) / "bench.pcbundle"),
            "--json",
            *flags,
        ]
        started = time.perf_counter()
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        wall_s = time.perf_counter() - started
    peak_mb = _peak_memory_mb()
    if process.returncode != 0:
        raise PcError(
            f"pcexport build ended with exit code {process.returncode}. Expected 0; see its message above."
        )
    summary = json.loads(process.stdout)
    result = {
        "name": name,
        "data": Path(data).resolve().name,
        "machine": machine_facts(),
        "versions": versions(),
        "wall_s": round(wall_s, 2),
        "peak_rss_mb": None if peak_mb is None else round(peak_mb, 1),
        "seconds": summary["seconds"],
        "bundle_bytes": summary["bytes"],
        "manifest": summary["manifest"],
    }
    save_result(output, "build", result)
    return result


def _peak_memory_mb() -> float | None:
    """Largest resident memory of any child so far in MB (10^6 bytes); None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e6
