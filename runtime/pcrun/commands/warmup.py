"""The job behind `pcrun warmup`: build now what the first frame would otherwise wait for."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from pcrun.backends.tensorrt_cache import engines_in
from pcrun.bundle.bundle import Bundle
from pcrun.commands.run import DetectorOptions, find_bundle, load_detector
from pcrun.commands.support import EXIT_OK, print_json
from pcrun.detector import AnomalyDetector, missing_limit
from pcrun.errors import BackendError
from pcrun.images.image_io import decode_image
from pcrun.types import UInt8Array


def warm_up_here(bundle: Path | None, *, as_json: bool, **options: Any) -> int:
    """Open a bundle as it would run, judge one image twice, and say what was built; returns the exit code."""
    opened = Bundle.load(find_bundle(bundle))
    # A bundle without thresholds can be warmed up all the same.
    limit = missing_limit(opened.manifest)
    began, started = time.time(), time.perf_counter()
    detector = load_detector(
        opened, DetectorOptions(threshold=limit, pixel_threshold=limit, **options), share_with=()
    )
    image = _an_image(opened)
    seconds = [time.perf_counter() - started]
    for _ in range(2):
        started = time.perf_counter()
        detector(image)
        seconds.append(time.perf_counter() - started)
    facts = {
        "provider": detector.provider,
        "precision": detector.precision,
        "search": detector.search,
        "opened_s": round(seconds[0], 3),
        "first_ms": round(seconds[1] * 1e3, 3),
        "second_ms": round(seconds[2] * 1e3, 3),
        **_engines(detector, began),
    }
    if as_json:
        print_json(facts)
    else:
        print("\n".join(_lines(facts)))
    return EXIT_OK


def _an_image(bundle: Bundle) -> UInt8Array:
    samples = bundle.golden_samples().samples if bundle.has_golden_samples else ()
    if samples:
        return decode_image(bundle.read(samples[0].file))
    return np.zeros((*bundle.manifest.preprocess.input_hw, 3), np.uint8)


def _engines(detector: AnomalyDetector, began: float) -> dict[str, Any]:
    """Where onnxruntime's TensorRT provider keeps its engines, and whether they are new.

    Raises:
        BackendError: it should have some, and has none.
    """
    folder = detector.engine_folder
    if folder is None:
        return {"engine_folder": None, "engines_built": False}
    engines = engines_in(folder)
    if not engines:
        raise BackendError(
            f"TensorRT kept no engine in {folder}: onnxruntime gave the embedder's operators to another "
            "provider. Expected a graph that TensorRT takes; build the bundle again with this version of "
            "pcexport, or say `--provider cuda`."
        )
    built = max(engine.stat().st_mtime for engine in engines) >= began
    return {"engine_folder": str(folder), "engines_built": built}


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"provider {facts['provider']} {facts['precision']}, search {facts['search']}: opened in "
        f"{facts['opened_s']:.1f} s, first image {facts['first_ms']:.1f} ms, second {facts['second_ms']:.1f} "
        "ms"
    ]
    if facts["engine_folder"] is None:
        return [*lines, f"{facts['provider']} builds nothing that could be kept: each start takes as long"]
    state = "built now" if facts["engines_built"] else "were there already"
    return [*lines, f"TensorRT's engines {state}, in {facts['engine_folder']}"]
