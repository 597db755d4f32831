"""`pcbench search`: what certified search costs, alone and end to end, beside brute force."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pcbench.images import chosen_images
from pcbench.machine import machine_facts, versions
from pcbench.peers.one_graph import open_one_graph
from pcbench.results import save_result
from pcbench.timing import WARM_UP_NOTE, in_turns, summary
from pcrun.backends.session import OnnxEmbedder
from pcrun.bench.cold import cold_starts
from pcrun.bundle.bundle import Bundle
from pcrun.commands.tables import table_of
from pcrun.detector import AnomalyDetector, choose_thresholds, missing_limit
from pcrun.errors import PcError
from pcrun.images.image_io import read_image
from pcrun.machine.threads import available_cores
from pcrun.preprocess import preprocess
from pcrun.scoring.open import open_scorer
from pcrun.scoring.scorer import PatchCoreScorer
from pcrun.search import EXACT_SEARCH_NAMES
from pcrun.search.exact import ExactSearch
from pcrun.tuning.profile import RunSettings
from pcrun.tuning.settings import possible_searches
from pcrun.types import FloatArray, UInt8Array

_STARTS = 5
# Beyond this many entries exact search of every image takes minutes: a sample of the images has to do.
_LARGE_BANK = 100_000
_IMAGES_OF_LARGE_BANK = 10


def measure_search(
    bundles: Sequence[Path],
    contents: dict[str, list[str]],
    *,
    max_images: int,
    starts: bool,
    output: Path,
    name: str,
) -> dict[str, Any]:
    """Measure every bundle on every kind of content, and save all samples.

    Args:
        bundles: bundles that differ in the size of their memory banks.
        contents: kind ("normal", "defective") to image files, folders, globs, or @FILE with one path a line.
        max_images: images used of each kind, evenly spread.
        starts: also measure the time from the start of a process to its first verdict.
        output: result file.
        name: title in reports.
    """
    files = {kind: chosen_images(paths, max_images, kind=kind) for kind, paths in contents.items()}
    result: dict[str, Any] = {
        "name": name,
        "machine": machine_facts(),
        "versions": versions(),
        "warm_up": WARM_UP_NOTE,
        "bundles": [_measure_bundle(Bundle.load(path), files, starts=starts) for path in bundles],
    }
    save_result(output, "search", result)
    return result


def _measure_bundle(bundle: Bundle, files: dict[str, list[Path]], *, starts: bool) -> dict[str, Any]:
    limit = missing_limit(bundle.manifest)
    limits = choose_thresholds(bundle.manifest, limit, limit)
    # The processor and the build's own arithmetic, whatever a profile prefers: the other jobs run so too.
    detector = AnomalyDetector.load(bundle, provider="cpu", threshold=limits[0], pixel_threshold=limits[1])
    settings = detector.settings
    assert settings is not None  # loaded from a bundle
    white_level = bundle.manifest.preprocess.white_level_16bit
    facts: dict[str, Any] = {
        "bank": bundle.manifest.memory_bank.count,
        "dim": bundle.manifest.memory_bank.dim,
        "search_dim": bundle.manifest.search.dim,
        "digest": bundle.digest,
        "settings": dataclasses.asdict(settings),
        "device_profile": detector.profile is not None,
        "contents": {},
    }
    for kind, paths in files.items():
        images = [read_image(path, white_level_16bit=white_level) for path in paths]
        facts["contents"][kind] = {
            "search": _measure_engines(bundle, settings, images, limits[1]),
            "end_to_end": _measure_end_to_end(bundle, detector, images, limits),
        }
    if starts:
        facts["cold_start"] = _measure_starts(bundle, next(iter(files.values()))[0])
    return facts


def _measure_engines(
    bundle: Bundle, settings: RunSettings, images: list[UInt8Array], pixel_threshold: float
) -> dict[str, Any]:
    """Search and verification on embeddings made before, beside exact search with BLAS on all cores."""
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding, provider=settings.provider)
    spec = bundle.manifest.preprocess
    embeddings = [embedder.embed(preprocess(image, spec)[None])[0] for image in images]
    if len(bundle.memory_bank) > _LARGE_BANK:
        embeddings = embeddings[:_IMAGES_OF_LARGE_BANK]
    exact = ExactSearch(bundle.memory_bank, threads=available_cores())
    scorers = {
        f"{label} {level}": open_scorer(bundle, chosen, exactness=level)
        for label, chosen in _engines(bundle, settings).items()
        for level in ("image", "mask")
    }
    verified: dict[str, list[int]] = {label: [] for label in scorers}

    def scoring(label: str, scorer: PatchCoreScorer) -> Callable[[FloatArray], None]:
        def score(embedding: FloatArray) -> None:
            scores = scorer.score(embedding, pixel_threshold=pixel_threshold)
            verified[label].append(scores.verified_patches)

        return score

    jobs: dict[str, Callable[[Any], Any]] = {"exact BLAS": exact.nearest}
    jobs |= {label: scoring(label, scorer) for label, scorer in scorers.items()}
    samples = in_turns(jobs, embeddings)
    _require_equal_scores(exact, scorers, embeddings, pixel_threshold)
    rows = {label: summary(taken) for label, taken in samples.items()}
    for label, row in rows.items():
        row["of_exact"] = round(row["median_ms"] / rows["exact BLAS"]["median_ms"], 4)
        if label in verified:
            row["verified_patches"] = float(np.median(verified[label]))
    return rows


def _engines(bundle: Bundle, settings: RunSettings) -> dict[str, RunSettings]:
    """The approximate engines, and the chosen setting under its own name."""
    engines = {}
    for search in possible_searches(bundle):
        if search not in EXACT_SEARCH_NAMES:
            ef = bundle.manifest.search.ef if search == "hnsw" else None
            engines[search] = dataclasses.replace(settings, search=search, ef=ef)
    return {**engines, "chosen": settings} if settings not in engines.values() else engines


def _require_equal_scores(
    exact: ExactSearch,
    scorers: dict[str, PatchCoreScorer],
    embeddings: list[FloatArray],
    pixel_threshold: float,
) -> None:
    """A fast wrong score is worth nothing: every engine must give brute force's."""
    for embedding in embeddings:
        distances, _ = exact.nearest(embedding)
        for label, scorer in scorers.items():
            scores = scorer.score(embedding, pixel_threshold=pixel_threshold)
            if abs(float(scores.patch_scores.max()) - float(distances.max())) > 1e-5 * float(distances.max()):
                raise PcError(f"{label} gives another image score than exact search. Report this.")


def _measure_end_to_end(
    bundle: Bundle, detector: AnomalyDetector, images: list[UInt8Array], limits: tuple[float, float]
) -> dict[str, Any]:
    """Decoded image to verdict, map and regions, beside the bare embedder on prepared images."""
    spec = bundle.manifest.preprocess
    bare = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding, provider=detector.provider)
    full = AnomalyDetector.load(
        bundle,
        provider="cpu",
        threshold=limits[0],
        pixel_threshold=limits[1],
        exactness="full",
        profile=False,
    )
    jobs: dict[str, Callable[[Any], Any]] = {
        "bare embedder": lambda pair: bare.embed(pair[1]),
        "certified": lambda pair: detector(pair[0]),
    }
    if len(bundle.memory_bank) <= _LARGE_BANK:
        jobs["exact"] = lambda pair: full(pair[0])
        one_graph = open_one_graph(bundle, threads=available_cores())
        if one_graph is not None:
            jobs["one graph"] = lambda pair: one_graph(pair[1])
    samples = in_turns(jobs, [(image, preprocess(image, spec)[None]) for image in images])
    stages = [dataclasses.asdict(detector(image).timings) for image in images]
    rows: dict[str, Any] = {label: summary(taken) for label, taken in samples.items()}
    for row in rows.values():
        row["of_bare_embedder"] = round(row["median_ms"] / rows["bare embedder"]["median_ms"], 3)
    rows["certified"]["stages_ms"] = {
        stage: round(float(np.median([s[stage] for s in stages])), 3)
        for stage, first in stages[0].items()
        if first is not None  # copies, where nothing runs on a GPU
    }
    rows["samples_ms"] = {label: [round(t, 3) for t in taken] for label, taken in samples.items()}
    return rows


def _measure_starts(bundle: Bundle, image: Path) -> dict[str, Any]:
    """From the start of a process to the verdict on its only image, and its resident memory."""
    arguments = ["--bundle", str(bundle.path)]
    if bundle.manifest.scoring.threshold is None:
        arguments += ["--threshold", "1e30", "--pixel-threshold", "1e30"]
    seconds = cold_starts(arguments, image.read_bytes(), image.suffix, starts=_STARTS + 1)
    samples = [1e3 * value for value in seconds]
    command = [sys.executable, "-m", "pcrun.cli", *arguments, "--images", str(image)]
    # The first start read the files from disk.
    return {**summary(samples[1:]), "first_ms": round(samples[0], 1), "peak_rss_mb": _peak_memory_mb(command)}


def _peak_memory_mb(command: list[str]) -> float | None:
    """Largest resident memory of one run in MB (10^6 bytes), measured by a process of its own."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, "
        "stderr=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    if process.returncode != 0:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(int(process.stdout) * unit / 1e6, 1)


def described(result: dict[str, Any]) -> list[Table | str]:
    """All rows for a terminal: a table a bundle."""
    parts: list[Table | str] = []
    for bundle in result["bundles"]:
        chosen = bundle["settings"]["search"]
        table = table_of(
            ("images", "measured", "median ms", "ratio", "of", "patches verified"),
            title=f"memory bank {bundle['bank']:,} x {bundle['dim']}, chosen search: {chosen}",
            words=(0, 1, 4),
        )
        for kind, content in bundle["contents"].items():
            for row in _rows(kind, content):
                table.add_row(*row)
            table.add_section()
        parts.append(table)
        if "cold_start" in bundle:
            start = bundle["cold_start"]
            parts.append(f"cold start {start['median_ms']:.0f} ms, {start['peak_rss_mb']} MB resident")
    return parts


def _rows(kind: str, content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for label, row in content["search"].items():
        verified = f"{row['verified_patches']:.0f}" if "verified_patches" in row else ""
        yield kind, f"search {label}", f"{row['median_ms']:.2f}", f"{row['of_exact']:.3f}", "exact", verified
    for label, row in content["end_to_end"].items():
        if label != "samples_ms":
            ratio = f"{row['of_bare_embedder']:.3f}"
            yield kind, f"end to end {label}", f"{row['median_ms']:.2f}", ratio, "the bare embedder", ""
