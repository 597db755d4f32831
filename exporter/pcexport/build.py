"""`pcexport build`: from a folder of normal images to a bundle. The whole job, step by step."""

import dataclasses
import importlib.metadata
import itertools
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcexport.bank import choose_memory_bank, measure_bank_search, write_memory_bank
from pcexport.bundle_writer import check_output, list_files, publish, staging_folder
from pcexport.calibration import CalibrationPlan, plan_calibration
from pcexport.config import BuildConfig
from pcexport.coreset import coreset_size
from pcexport.datasets import Dataset, find_dataset
from pcexport.embed import EmbeddedImages, embed_images
from pcexport.errors import BuildError
from pcexport.evaluate import TestScore, accuracy_of, score_test_images
from pcexport.golden import choose_samples, write_samples
from pcexport.images import ImageReader
from pcexport.network import TracedNetwork, open_embedder, trace_network
from pcexport.progress import Steps
from pcexport.report import write_report
from pcexport.thresholds import choose_thresholds, score_normals
from pcrun.bundle import Bundle
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.manifest import (
    EMBEDDER_NAME,
    REPORT_NAME,
    Manifest,
    ScoringSpec,
    SourceSpec,
    write_manifest,
)
from pcrun.preprocess import PreprocessSpec, preprocess
from pcrun.records import to_jsonable
from pcrun.selftest import run_selftest
from pcrun.threads import available_cores
from pcrun.types import UInt8Array

_VERSIONED = ("numpy", "hnswlib", "onnx", "onnxscript", "torch", "torchvision", "timm", "scipy")
_VERSIONED_ALTERNATIVES = (
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    ("onnxruntime", "onnxruntime-gpu"),
)
# Resident memory besides the memory bank, measured: torch, onnxruntime and the coreset's working set.
_BASE_MEMORY_BYTES = 1_000_000_000


@dataclass(frozen=True)
class BuildSummary:
    """What a build made and measured.

    Attributes:
        output: the bundle.
        digest: its identity (SHA-256 of the manifest).
        manifest: its facts.
        bytes: size of all its files.
        seconds: wall time of each step.
        warnings: everything a person should know.
    """

    output: Path
    digest: str
    manifest: Manifest
    bytes: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types for `--json`."""
        return {
            "bundle": str(self.output),
            "digest": self.digest,
            "bytes": self.bytes,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "warnings": list(self.warnings),
            "manifest": to_jsonable(self.manifest),
        }


def build_bundle(
    data: str, output: Path, config: BuildConfig, steps: Steps, *, force: bool = False
) -> BuildSummary:
    """Build, calibrate, verify and write one bundle.

    Args:
        data: folder or glob of normal images (and labelled test images, where the layout has them).
        output: the bundle to write; appears only when everything succeeded.
        config: all choices.
        steps: progress and warnings.
        force: replace an existing bundle, after the new one is complete.

    Raises:
        BuildError: with what to do; nothing half-written is left.
    """
    check_output(output, force=force)
    dataset = find_dataset(data, config.layout)
    steps.say(
        f"{data}: layout {dataset.layout}, {len(dataset.normal)} normal and {len(dataset.test)} test images"
    )
    with staging_folder(output) as staging:
        folder, scratch = staging / "bundle", staging / "scratch"
        folder.mkdir()
        scratch.mkdir()
        reader = _reader(dataset, config, steps)
        preprocessing = _preprocessing(config)
        with steps.step("trace"):
            network = trace_network(config, preprocessing)
            (folder / EMBEDDER_NAME).write_bytes(network.onnx)
        _announce(dataset, network, config, staging, steps)
        with steps.step("parity"):
            embedder, parity = open_embedder(network, config, _parity_images(dataset, preprocessing, config))
        with steps.step("embed", len(dataset.normal)) as step:
            embedded = embed_images(
                dataset,
                reader,
                embedder,
                spec=network.spec,
                preprocessing=preprocessing,
                folder=scratch,
                step=step,
            )
        source = _source(dataset, reader, embedded, config)
        plan = plan_calibration(len(embedded.paths), config)
        with steps.step("project", len(embedded.full)) as step:
            embedded = embedded.with_projection(config, plan.bank, scratch, step)
        with steps.step("coreset", _bank_size(embedded, plan, config)) as step:
            bank = choose_memory_bank(embedded, plan.bank, config, step)
        with steps.step("index", len(bank.rows)) as step:
            index = write_memory_bank(bank, config, folder, step)
            unseen = plan.folds[0] if plan.held_out else plan.bank
            search = measure_bank_search(
                index, bank, embedded, unseen, config, config.threads or available_cores()
            )
        neighbours = config.neighbours if config.image_score == "reweighted" else 0
        manifest = Manifest(
            name=output.name.removesuffix(".pcbundle"),
            files=list_files(folder, [path.name for path in folder.iterdir()]),
            created_by=_versions(),
            source=dataclasses.replace(source, images_held_out=plan.held_out, images_bank=len(plan.bank)),
            preprocess=preprocessing,
            embedding=network.spec,
            memory_bank=bank.spec,
            search=search,
            scoring=ScoringSpec(config.image_score, neighbours, config.map_sigma_px),
            parity=parity,
        )
        manifest = _finish(manifest, folder, dataset, embedded, plan, reader, config, steps)
        digest, size = _verify(folder, manifest, steps)
        publish(folder, output)
    return BuildSummary(output, digest, manifest, size, dict(steps.seconds), tuple(steps.warnings))


def _finish(
    manifest: Manifest,
    folder: Path,
    dataset: Dataset,
    embedded: EmbeddedImages,
    plan: CalibrationPlan,
    reader: ImageReader,
    config: BuildConfig,
    steps: Steps,
) -> Manifest:
    """Everything that is measured with the deployed bundle: thresholds, accuracy, golden samples, report."""
    write_manifest(folder, manifest)
    detector = _deployed(folder, config)
    scores = score_normals(plan, embedded, detector, reader, config, steps)
    thresholds = choose_thresholds(scores, plan, config, steps)
    if thresholds:
        detector.threshold, detector.pixel_threshold = (spec.value for spec in thresholds)
        scoring = dataclasses.replace(
            manifest.scoring, threshold=thresholds[0], pixel_threshold=thresholds[1]
        )
        manifest = dataclasses.replace(manifest, scoring=scoring)
    test_scores = _evaluate(dataset, reader, detector, config, steps) if thresholds else []
    manifest = dataclasses.replace(manifest, accuracy=accuracy_of(test_scores))
    with steps.step("golden samples and report"):
        samples = choose_samples(dataset, embedded.paths, config.golden_samples)
        names = write_samples(folder, samples, reader, detector)
        write_report(folder / REPORT_NAME, manifest, scores, test_scores, samples, reader, detector)
        files = {**manifest.files, **list_files(folder, [*names, REPORT_NAME])}
    return dataclasses.replace(manifest, files=files)


def _verify(folder: Path, manifest: Manifest, steps: Steps) -> tuple[str, int]:
    """Write the final manifest, open the bundle as a device would, and replay its golden samples."""
    with steps.step("verify"):
        write_manifest(folder, manifest)
        bundle = Bundle.load(folder)
        limit = _limit(manifest)
        report = run_selftest(AnomalyDetector.load(bundle, threshold=limit, pixel_threshold=limit))
        if not report.passed:
            worst = max(check.relative_difference for check in report.checks)
            raise BuildError(
                "The finished bundle does not repeat its own golden samples "
                f"(relative difference {worst:.2g}). Expected the same scores; "
                "report this with the versions in use. Nothing was written."
            )
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return bundle.digest, size


def _limit(manifest: Manifest) -> float | None:
    """Both thresholds for a bundle that was built without any: nothing is anomalous. None keeps its own."""
    return None if manifest.scoring.threshold else NO_THRESHOLD


def _deployed(folder: Path, config: BuildConfig) -> AnomalyDetector:
    return AnomalyDetector.load(
        folder,
        provider=config.provider,
        threads=config.threads,
        threshold=NO_THRESHOLD,
        pixel_threshold=NO_THRESHOLD,
    )


def _evaluate(
    dataset: Dataset, reader: ImageReader, detector: AnomalyDetector, config: BuildConfig, steps: Steps
) -> list[TestScore]:
    if not (config.evaluate and dataset.test):
        return []
    with steps.step("evaluate", len(dataset.test)) as step:
        return score_test_images(dataset.test, reader, detector, step)


def _reader(dataset: Dataset, config: BuildConfig, steps: Steps) -> ImageReader:
    return ImageReader(
        dataset.root, white_level_16bit=config.white_level_16bit, strict=config.strict, warn=steps.warn
    )


def _preprocessing(config: BuildConfig) -> PreprocessSpec:
    try:
        return PreprocessSpec(
            *config.image_hw,
            *config.crop_hw,
            keep_aspect=config.resize_mode == "keep_aspect",
            white_level_16bit=config.white_level_16bit,
        )
    except ValueError as error:
        raise BuildError(
            f"image_size {config.image_size} and crop_size {config.crop_size}: {error}."
        ) from error


def _parity_images(dataset: Dataset, preprocessing: PreprocessSpec, config: BuildConfig) -> list[UInt8Array]:
    """The first readable normal images, prepared."""
    reader = ImageReader(
        dataset.root, white_level_16bit=config.white_level_16bit, strict=False, warn=lambda text: None
    )
    readable = (image for _, image in reader.read_all(dataset.normal) if image is not None)
    images = [preprocess(image, preprocessing) for image in itertools.islice(readable, config.parity_images)]
    if not images:
        raise BuildError(
            f"None of the {len(dataset.normal)} normal images could be read. Expected image files."
        )
    return images


def _source(
    dataset: Dataset, reader: ImageReader, embedded: EmbeddedImages, config: BuildConfig
) -> SourceSpec:
    return SourceSpec(
        name=dataset.name,
        layout=dataset.layout,
        images_bank=len(embedded.paths),
        images_held_out=0,
        images_skipped=reader.skipped,
        content_sha256=reader.content_sha256,
        config=config.facts(),
    )


def _bank_size(embedded: EmbeddedImages, plan: CalibrationPlan, config: BuildConfig) -> int:
    return coreset_size(
        len(plan.bank) * embedded.patches, ratio=config.coreset_ratio, size=config.coreset_size
    )


def _announce(
    dataset: Dataset, network: TracedNetwork, config: BuildConfig, staging: Path, steps: Steps
) -> None:
    """Say what the build will take before it starts, and refuse when the disk cannot hold it.

    Raises:
        BuildError: too little free disk space.
    """
    patches = len(dataset.normal) * network.spec.patches
    entries = coreset_size(patches, ratio=config.coreset_ratio, size=config.coreset_size)
    projected = min(config.projection_dim, network.spec.dim) if config.projection != "none" else 0
    bank_bytes = entries * network.spec.dim * 4
    # The bank is written twice: as rows, and inside the index.
    disk = patches * (network.spec.dim + projected) * 4 + 2 * bank_bytes + len(network.onnx)
    # The bank is held as rows, by the index, and once more while either is written.
    memory = _BASE_MEMORY_BYTES + 4 * bank_bytes + 3 * len(network.onnx) + 24 * patches
    steps.say(
        f"{len(dataset.normal)} images x {network.spec.patches} patches x {network.spec.dim} = "
        f"{patches:,} embeddings, memory bank {entries:,}; needs about {disk / 1e9:.2f} GB of disk and "
        f"{memory / 1e9:.1f} GB of memory"
    )
    free = shutil.disk_usage(staging).free
    if disk > free:
        raise BuildError(
            f"The build needs about {disk / 1e9:.1f} GB beside the output, {free / 1e9:.1f} GB are free. "
            "Choose another -o, fewer images, or a smaller image size."
        )


def _versions() -> dict[str, str]:
    """Versions of everything that shapes a bundle's bytes."""
    found = {"patchcore-edge": _version("patchcore-edge"), "python": platform.python_version()}
    for names in (*((name,) for name in _VERSIONED), *_VERSIONED_ALTERNATIVES):
        for name in names:
            found[name] = _version(name)
    return {name: version for name, version in found.items() if version is not None}


def _version(distribution: str) -> Any:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
