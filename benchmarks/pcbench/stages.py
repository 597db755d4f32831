"""`pcbench stages`: milliseconds per stage of the runtime, certified and exact search in turn."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from pcbench.machine import machine_facts, versions
from pcbench.results import save_result
from pcrun.bundle import Bundle
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.errors import SourceError
from pcrun.image_io import read_image
from pcrun.sources import expand_images

LEVELS = ("image", "full")
_WARM_UP_FRAMES = 5


def measure_stages(
    bundle_path: Path,
    images: list[str],
    *,
    provider: str,
    threads: int,
    max_images: int,
    output: Path,
    name: str,
) -> dict[str, Any]:
    """Score images alternately at both exactness levels, and save every sample.

    Args:
        bundle_path: the bundle.
        images: files, folders or globs.
        provider, threads: as in `pcrun`.
        max_images: how many images to use, evenly spread.
        output: result file.
        name: title in reports.
    """
    bundle = Bundle.load(bundle_path)
    files = [file for path in images for file in expand_images(path)]
    if len(files) > max_images:
        files = [files[i] for i in np.linspace(0, len(files) - 1, max_images).astype(int)]
    if len(files) <= _WARM_UP_FRAMES:
        raise SourceError(
            f"{len(files)} images are too few. Expected more than {_WARM_UP_FRAMES}, dropped as warm-up."
        )
    detectors = {
        level: AnomalyDetector.load(
            bundle,
            provider=provider,
            threads=threads,
            exactness=level,
            threshold=NO_THRESHOLD,
            pixel_threshold=NO_THRESHOLD,
        )
        for level in LEVELS
    }
    samples: dict[str, list[dict[str, float]]] = {level: [] for level in LEVELS}
    scores: dict[str, list[float]] = {level: [] for level in LEVELS}
    for file in files:
        image = read_image(file, white_level_16bit=bundle.manifest.preprocess.white_level_16bit)
        for level, detector in detectors.items():
            result = detector(image)
            timings = dataclasses.asdict(result.timings) | {"total_ms": result.timings.total_ms}
            samples[level].append({key: round(value, 4) for key, value in timings.items()})
            scores[level].append(result.image_score)
    difference = np.abs(np.array(scores["image"]) / np.array(scores["full"]) - 1).max()
    result_data = {
        "name": name,
        "digest": bundle.digest,
        "machine": machine_facts(),
        "versions": versions(),
        "provider": detectors["image"].provider,
        "threads": threads or machine_facts()["cores"],
        "search": detectors["image"].search,
        "ef": bundle.manifest.search.ef,
        "bank": bundle.manifest.memory_bank.count,
        "images": len(files),
        "warm_up_frames": _WARM_UP_FRAMES,
        "worst_relative_score_difference": float(difference),
        "median_ms": {level: _medians(samples[level][_WARM_UP_FRAMES:]) for level in LEVELS},
        "samples_ms": samples,
    }
    save_result(output, "stages", result_data)
    return result_data


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(float(np.median([sample[key] for sample in samples])), 2) for key in samples[0]}
