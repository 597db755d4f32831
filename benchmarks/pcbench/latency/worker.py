"""The process that measures one cell: `python -m pcbench.latency.worker REQUEST REPORT`, both JSON.

A process of its own, so that threads, memory and a crash of one cell do not reach the next.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from pcbench.latency.cell import STORED_PRECISION, Settings, contents_of
from pcrun.bench.measure import Job, measure
from pcrun.bench.scenarios import Limits
from pcrun.bundle.bundle import Bundle
from pcrun.detector import AnomalyDetector, missing_limit
from pcrun.errors import BundleError, PcError


def measure_cell(request: dict[str, Any]) -> dict[str, Any]:
    """The report of `pcrun.bench.measure` on one cell, with the warnings of loading it.

    Raises:
        PcError: it cannot run here.
        ValueError: its settings do not fit together.
    """
    settings = Settings(**request["settings"])
    bundle = Bundle.load(request["path"])
    if bundle.digest != request["digest"]:
        raise BundleError(f"{request['path']} has changed since the sweep began. Start it again.")
    contents = contents_of(bundle, request["images"], request["defective"])
    # A bundle without thresholds can be measured all the same: nothing is anomalous then.
    limit = missing_limit(bundle.manifest)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        detector = AnomalyDetector.load(
            bundle,
            provider=settings.provider,
            precision=None if settings.precision == STORED_PRECISION else settings.precision,
            threads=settings.threads,
            exactness=settings.exactness,
            threshold=limit,
            pixel_threshold=limit,
            profile=settings.device_profile,
        )
    job = Job(
        ("single-stream" if settings.batch == 1 else "multi-stream",),
        Limits(settings.duration_s, settings.queries),
        bound_ms=0.0,
        fps=0.0,
        images_per_query=settings.batch,
    )
    report = measure(detector, contents, job, lambda text: None)
    return {**report, "warnings": [str(warning.message) for warning in caught]}


def main(request: Path, report: Path) -> int:
    """Measure, or write down why not."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    try:
        found = {"error": None, **measure_cell(asked)}
    except (PcError, ValueError, ImportError, MemoryError) as error:
        found = {"error": str(error) or type(error).__name__}
    report.write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
