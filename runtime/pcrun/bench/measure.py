"""`pcrun bench`: the whole job, from a detector to a report."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pcrun.bench import conditions
from pcrun.bench.camera import run_camera
from pcrun.bench.content import Content, Item
from pcrun.bench.scenarios import (
    MULTI_STREAM_IMAGES,
    SERVER_PERCENTILE,
    Limits,
    Runner,
    Trial,
    endless,
    settled_after_s,
)
from pcrun.bench.stages import StagedDetector
from pcrun.bench.statistics import UNSTABLE, Summary, drift, queries_needed, summarise, upper_bound
from pcrun.bundle.bundle import file_label
from pcrun.detector import AnomalyDetector
from pcrun.machine.facts import machine_facts, versions
from pcrun.machine.threads import available_cores
from pcrun.tuning.in_force import settings_in_force

BENCH_VERSION = 1
WARM_UP_IMAGES = 20


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        scenarios: some of `SCENARIOS`.
        limits: of each scenario, and of each rate of the server.
        bound_ms: of the server's p99.
        fps: of the camera.
        seed: of the arrivals.
        images_per_query: of multi-stream.
    """

    scenarios: tuple[str, ...]
    limits: Limits
    bound_ms: float
    fps: float
    seed: int = 0
    images_per_query: int = MULTI_STREAM_IMAGES


Say = Callable[[str], None]


def measure(detector: AnomalyDetector, contents: Sequence[Content], job: Job, say: Say) -> dict[str, Any]:
    """Measure every content in every scenario; gives a report of plain types with all samples.

    Args:
        detector: loaded as it would run.
        contents: kinds of images, measured apart.
        job: what to do.
        say: called before each part.
    """
    return {
        "bench_version": BENCH_VERSION,
        "bundle": _bundle_facts(detector),
        "settings": settings_in_force(detector),
        "machine": machine_facts(),
        "versions": versions(),
        "warm_up_images": WARM_UP_IMAGES,
        "contents": [_measure_content(detector, content, job, say) for content in contents],
        "peak_resident_mb": conditions.peak_resident_mb(),
        "gpu_memory_mb": conditions.gpu_memory_mb(),
    }


def _bundle_facts(detector: AnomalyDetector) -> dict[str, Any]:
    manifest = detector.manifest
    return {
        "name": manifest.name,
        "file": file_label(detector.bundle.path) if detector.bundle else None,
        "digest": detector.bundle.digest if detector.bundle else None,
        "backbone": manifest.embedding.backbone,
        "weights": manifest.embedding.weights_source,
        "memory_bank": manifest.memory_bank.count,
        "dim": manifest.memory_bank.dim,
        "input_px": [manifest.preprocess.crop_width_px, manifest.preprocess.crop_height_px],
    }


def _measure_content(detector: AnomalyDetector, content: Content, job: Job, say: Say) -> dict[str, Any]:
    staged = StagedDetector(detector)
    _warm_up(staged, content.items)
    results = {}
    for name in job.scenarios:
        say(f"{content.name}: {name}")
        staged.forget()
        before = conditions.snapshot()
        result = _SCENARIOS[name](detector, staged, content, job)
        found = conditions.between(before, conditions.snapshot(), cores=available_cores())
        result["conditions"] = conditions.facts(found)
        result["warnings"] = [*result.pop("warnings", []), *found.warnings]
        results[name] = result
    return {"name": content.name, "images": len(content.items), "scenarios": results}


def _warm_up(staged: StagedDetector, items: Sequence[Item], *, images: int = 1) -> None:
    source = endless(items)
    for _ in range(math.ceil(WARM_UP_IMAGES / images)):
        staged.serve([next(source) for _ in range(images)])
    staged.forget()


def _single_stream(
    detector: AnomalyDetector, staged: StagedDetector, content: Content, job: Job
) -> dict[str, Any]:
    latencies = _runner(staged, content, job).streams(job.limits)
    return {
        "metric": "p90_ms",
        "value": summarise(latencies).p90,
        **_described(latencies, 90),
        "images_per_second": len(latencies) / (sum(latencies) / 1e3),
        **_stages(staged, 1),
        "verified_patches": dataclasses.asdict(summarise(staged.verified)),
    }


def _multi_stream(
    detector: AnomalyDetector, staged: StagedDetector, content: Content, job: Job
) -> dict[str, Any]:
    images = job.images_per_query
    # The first batches allocate.
    _warm_up(staged, content.items, images=images)
    latencies = _runner(staged, content, job).streams(job.limits, images=images)
    return {
        "metric": "p99_ms",
        "value": summarise(latencies).p99,
        "images_per_query": images,
        **_described(latencies, 99),
        "images_per_second": images * len(latencies) / (sum(latencies) / 1e3),
        **_stages(staged, images),
    }


def _server(detector: AnomalyDetector, staged: StagedDetector, content: Content, job: Job) -> dict[str, Any]:
    runner = _runner(staged, content, job)
    probe = runner.streams(Limits(0.0, WARM_UP_IMAGES))
    highest = 1e3 / summarise(probe).mean
    rate, trials = runner.server(job.bound_ms, job.limits, highest_rate=highest)
    accepted = [trial for trial in trials if trial.met]
    best = max(accepted, key=lambda trial: trial.rate, default=None)
    result: dict[str, Any] = {
        "metric": "queries_per_second",
        "value": rate,
        "bound_ms": job.bound_ms,
        "seed": job.seed,
        "trials": [
            {
                "rate": trial.rate,
                "queries": len(trial.latencies_ms),
                "p99_ms": summarise(trial.latencies_ms).p99,
                "met": trial.met,
                "given_up": trial.given_up,
            }
            for trial in trials
        ],
    }
    if best is not None:
        described = _described(best.latencies_ms, SERVER_PERCENTILE, steady=False)
        described["warnings"] += _too_short(best, highest)
        return {**result, **described}
    return {**result, "warnings": [f"no rate keeps the p99 within {job.bound_ms:g} ms"]}


def _too_short(best: Trial, highest_rate: float) -> list[str]:
    """Whether a rate may have met the bound only because its queue had no time to grow."""
    lasted_s, needed_s = len(best.latencies_ms) / best.rate, settled_after_s(best.rate, highest_rate)
    if lasted_s >= needed_s:
        return []
    return [
        f"{best.rate:.1f} queries a second are {best.rate / highest_rate:.0%} of what is served one after "
        f"the other: in {lasted_s:.1f} s the queue had no time to grow, and the rate may be far too high; "
        "repeat with a longer --duration until it stays the same"
    ]


def _offline(detector: AnomalyDetector, staged: StagedDetector, content: Content, job: Job) -> dict[str, Any]:
    images, seconds = _runner(staged, content, job).offline(job.limits)
    return {"metric": "images_per_second", "value": images / seconds, "images": images, "seconds": seconds}


def _camera(detector: AnomalyDetector, staged: StagedDetector, content: Content, job: Job) -> dict[str, Any]:
    found = run_camera(
        detector,
        content.items,
        fps=job.fps,
        duration_s=max(job.limits.duration_s, job.limits.queries / job.fps),
    )
    if not found.age_ms:
        return {"metric": "dropped", "value": found.dropped, "warnings": ["no frame was scored"]}
    return {
        "metric": "dropped",
        "value": found.dropped,
        "fps": found.fps,
        "frames": found.frames,
        "scored": found.scored,
        "dropped": found.dropped,
        **_described(found.age_ms, 99),
    }


_SCENARIOS: dict[str, Callable[[AnomalyDetector, StagedDetector, Content, Job], dict[str, Any]]] = {
    "single-stream": _single_stream,
    "multi-stream": _multi_stream,
    "server": _server,
    "offline": _offline,
    "camera": _camera,
}
SCENARIOS = tuple(_SCENARIOS)


def _runner(staged: StagedDetector, content: Content, job: Job) -> Runner[Item]:
    return Runner(staged.serve, content.items, seed=job.seed)


def _stages(staged: StagedDetector, images: int) -> dict[str, Any]:
    """Stages of whole queries, so that they add up to a query's total."""
    queries = {
        stage: [sum(values[first : first + images]) for first in range(0, len(values), images)]
        for stage, values in staged.samples.items()
    }
    return {
        "stages_ms": {stage: dataclasses.asdict(summarise(values)) for stage, values in queries.items()},
        "stage_samples_ms": {stage: _rounded(values) for stage, values in queries.items()},
    }


def _described(latencies: Sequence[float], percentile: int, *, steady: bool = True) -> dict[str, Any]:
    """Summary, samples, the percentile's bound, and what makes them doubtful."""
    summary = summarise(latencies)
    return {
        "latency_ms": dataclasses.asdict(summary),
        f"p{percentile}_upper_95_ms": upper_bound(latencies, percentile),
        "samples_ms": _rounded(latencies),
        "warnings": _doubts(latencies, summary, percentile, steady=steady),
    }


def _doubts(latencies: Sequence[float], summary: Summary, percentile: int, *, steady: bool) -> list[str]:
    doubts = []
    needed = queries_needed(percentile)
    if summary.count < needed:
        doubts.append(
            f"{summary.count} queries are too few for a p{percentile}: {needed} would bound it at 95 %"
        )
    if steady and summary.variation > UNSTABLE:
        doubts.append(f"unstable: the standard deviation is {summary.variation:.0%} of the mean")
    change = drift(latencies) if steady else None
    if change is not None:
        doubts.append(
            f"the last third is {abs(change):.0%} {'slower' if change > 0 else 'faster'} than the first"
        )
    return doubts


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
