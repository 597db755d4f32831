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
from pcrun.result import AnomalyResult
from pcrun.sources import expand_images
from pcrun.threads import available_cores
from pcrun.types import UInt8Array

LEVELS = ("image", "full")
# The levels take turns in blocks, so that a drift of the machine's speed reaches both; not frame by frame,
# because the threads of one level's search still spin when the next frame begins.
_BLOCK_IMAGES = 25
_WARM_UP_FRAMES = 5
_MIN_IMAGES = 6


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
    """Score images at both exactness levels in turn, and save every sample.

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
    if len(files) < _MIN_IMAGES:
        raise SourceError(f"{len(files)} images are too few for a median. Expected at least {_MIN_IMAGES}.")
    certified = AnomalyDetector.load(
        bundle, provider=provider, threads=threads, threshold=NO_THRESHOLD, pixel_threshold=NO_THRESHOLD
    )
    detectors = {"image": certified, "full": certified.with_exact_search()}
    results: dict[str, list[AnomalyResult]] = {level: [] for level in LEVELS}
    for start in range(0, len(files), _BLOCK_IMAGES):
        white_level = bundle.manifest.preprocess.white_level_16bit
        images_of_block = [
            read_image(file, white_level_16bit=white_level) for file in files[start : start + _BLOCK_IMAGES]
        ]
        for level, detector in detectors.items():
            _run(detector, images_of_block[:_WARM_UP_FRAMES])
            results[level] += _run(detector, images_of_block)
    scores = {level: np.array([result.image_score for result in results[level]]) for level in LEVELS}
    samples = {level: [_timings(result) for result in results[level]] for level in LEVELS}
    difference = np.abs(scores["image"] / scores["full"] - 1).max()
    result_data = {
        "name": name,
        "digest": bundle.digest,
        "machine": machine_facts(),
        "versions": versions(),
        "provider": detectors["image"].provider,
        "threads": threads or available_cores(),
        "search": detectors["image"].search,
        "ef": bundle.manifest.search.ef,
        "bank": bundle.manifest.memory_bank.count,
        "images": len(files),
        "warm_up": f"{_WARM_UP_FRAMES} frames before every {_BLOCK_IMAGES}",
        "worst_relative_score_difference": float(difference),
        "median_ms": {level: _medians(samples[level]) for level in LEVELS},
        "samples_ms": samples,
    }
    save_result(output, "stages", result_data)
    return result_data


def _run(detector: AnomalyDetector, images: list[UInt8Array]) -> list[AnomalyResult]:
    return [detector(image) for image in images]


def _timings(result: AnomalyResult) -> dict[str, float]:
    timings = dataclasses.asdict(result.timings) | {"total_ms": result.timings.total_ms}
    return {key: round(value, 4) for key, value in timings.items()}


def _medians(samples: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(float(np.median([sample[key] for sample in samples])), 2) for key in samples[0]}
