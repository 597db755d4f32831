"""`pcexport build`: from a folder of normal images to a bundle. The whole job, step by step."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcexport.backbones.at_hand import require_backbone
from pcexport.bundle_writer import check_output, list_files, publish, staging_folder
from pcexport.calibration.false_alarm_rate import CalibrationPlan, plan_calibration
from pcexport.calibration.thresholds import NormalScores, baseline_of, choose_thresholds, score_normals
from pcexport.comparison import Reference, compare_precision, embed_reference, has_threshold
from pcexport.config import BuildConfig
from pcexport.datasets import Dataset, find_dataset
from pcexport.datasets.reader import ImageReader
from pcexport.datasets.samples import ImageSamples
from pcexport.errors import BuildError
from pcexport.estimate import announce_needs
from pcexport.evaluation.accuracy import TestScore, accuracy_of, score_test_images
from pcexport.golden import choose_samples, write_samples
from pcexport.graph.network import TracedNetwork, open_embedder, trace_network
from pcexport.graph.precision import (
    REFERENCE,
    changes_embeddings,
    deployed_network,
    measure_latency,
    require_precision,
)
from pcexport.memory_bank.bank import (
    MemoryBank,
    bank_size,
    choose_memory_bank,
    measure_bank_search,
    write_memory_bank,
)
from pcexport.memory_bank.embed import EmbeddedImages, embed_images
from pcexport.progress import Steps
from pcexport.report.write import write_report
from pcexport.tuning import tune_here
from pcexport.versions import TRACING, installed_versions
from pcrun.backends.embedder import Embedder
from pcrun.backends.session import resolve_provider
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import (
    EMBEDDER_NAME,
    REPORT_NAME,
    Manifest,
    ParitySpec,
    ScoringSpec,
    SearchSpec,
    SourceSpec,
    write_manifest,
)
from pcrun.detector import NO_THRESHOLD, AnomalyDetector, missing_limit
from pcrun.machine.threads import available_cores
from pcrun.preprocess import PreprocessSpec
from pcrun.records import to_jsonable
from pcrun.selftest import run_selftest
from pcrun.tuning.profile import DeviceProfile

_LATENCY_IMAGES = 8


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
        profile: the fastest settings found for this machine, where it was tuned.
        embed_ms: median milliseconds per image of the deployed graph and of the float32 one, where they
            differ.
    """

    output: Path
    digest: str
    manifest: Manifest
    bytes: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    profile: DeviceProfile | None = None
    embed_ms: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain types for `--json`."""
        return {
            "bundle": str(self.output),
            "digest": self.digest,
            "bytes": self.bytes,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "warnings": list(self.warnings),
            "profile": to_jsonable(self.profile),
            "embed_ms": self.embed_ms,
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
    try:
        with steps.own_warnings():
            return _build(data, output, config, steps, force=force)
    except OSError as error:
        raise BuildError(
            f"The build cannot read or write a file ({error}). Expected enough space and the rights to use "
            "it. Nothing was written."
        ) from error


def _build(data: str, output: Path, config: BuildConfig, steps: Steps, *, force: bool) -> BuildSummary:
    check_output(output, force=force)
    require_precision(config)
    require_backbone(config.backbone, config.weights)
    dataset = find_dataset(data, config.layout)
    # Whether there are enough images to choose a threshold from; of those that can be read it is asked again.
    plan_calibration(len(dataset.normal), config)
    steps.say(
        f"{data}: layout {dataset.layout}, {len(dataset.normal)} normal and {len(dataset.test)} test images"
    )
    for remark in dataset.remarks:
        steps.warn(remark)
    with staging_folder(output) as staging:
        job = _Job.start(dataset, config, steps, staging)
        traced = job.trace()
        announce_needs(len(dataset.normal), traced, config, staging, steps)
        embedder, parity = job.compare_with_torch(traced)
        network, deployed, embed_ms = job.convert(traced, embedder)
        embedded = job.embed(network, deployed)
        source, plan = job.source(embedded), plan_calibration(len(embedded.refs), config)
        embedded = job.project(embedded, plan)
        bank = job.select_bank(embedded, plan)
        search = job.write_bank(bank, embedded, plan)
        draft = job.draft(output, source, network, bank, search, parity, plan)
        detector, calibrated, scores = job.calibrate(draft, embedded, plan)
        if changes_embeddings(config) and has_threshold(calibrated, steps):
            folder = job.scratch / REFERENCE
            rows = embed_reference(traced, embedder, embedded.refs, job.samples, folder, steps)
            basis = detector.bundle.search_basis if detector.bundle else None
            reference = Reference(embedder, rows, bank.ids, calibrated, basis, config)
            calibrated = compare_precision(reference, scores, plan, job.samples, steps)
        test_scores = job.evaluate(detector, calibrated)
        manifest = job.finish(detector, calibrated, embedded, scores, test_scores)
        bundle, size = job.verify(manifest)
        publish(job.folder, output)
        # Last, because the bundle is complete without.
        profile = tune_here(output, config, steps) if config.tune else None
    return BuildSummary(
        output, bundle.digest, manifest, size, dict(steps.seconds), tuple(steps.warnings), profile, embed_ms
    )


@dataclass(frozen=True)
class _Job:
    """What all steps of one build share, and the steps themselves.

    Attributes:
        folder: the bundle under construction.
        scratch: embeddings, removed with the staging folder.
    """

    dataset: Dataset
    config: BuildConfig
    steps: Steps
    reader: ImageReader
    samples: ImageSamples
    preprocessing: PreprocessSpec
    folder: Path
    scratch: Path

    @classmethod
    def start(cls, dataset: Dataset, config: BuildConfig, steps: Steps, staging: Path) -> "_Job":
        folder, scratch = staging / "bundle", staging / "scratch"
        folder.mkdir()
        scratch.mkdir()
        reader = ImageReader(
            dataset.root, white_level_16bit=config.white_level_16bit, strict=config.strict, warn=steps.warn
        )
        preprocessing = _preprocessing(config)
        samples = ImageSamples(dataset, preprocessing, config.white_level_16bit)
        return cls(dataset, config, steps, reader, samples, preprocessing, folder, scratch)

    def trace(self) -> TracedNetwork:
        """Write embedder.onnx."""
        with self.steps.step("trace"):
            network = trace_network(self.config, self.preprocessing)
            (self.folder / EMBEDDER_NAME).write_bytes(network.onnx)
        if self.config.weights == "untrained":
            self.steps.warn("the backbone is untrained: for demonstration only, its verdicts mean little")
        return network

    def compare_with_torch(self, network: TracedNetwork) -> tuple[Embedder, ParitySpec]:
        """Parity on the first readable normal images, and what embeds all of them."""
        with self.steps.step("parity"):
            return open_embedder(network, self.config, self.samples.first(self.config.parity_images))

    def convert(
        self, traced: TracedNetwork, embedder: Embedder
    ) -> tuple[TracedNetwork, Embedder, dict[str, float] | None]:
        """The graph as it is deployed, what runs it, and the latencies of both, where they differ."""
        if not changes_embeddings(self.config):
            return traced, embedder, None
        with self.steps.step("convert"):
            network, deployed = deployed_network(traced, self.config, self.samples.spread)
            (self.folder / EMBEDDER_NAME).write_bytes(network.onnx)
            images = list(self.samples.spread(_LATENCY_IMAGES))
            latency = measure_latency({REFERENCE: embedder, "deployed": deployed}, images)
        return network, deployed, latency

    def embed(self, network: TracedNetwork, embedder: Embedder) -> EmbeddedImages:
        """Embed the normal images into the scratch folder."""
        with self.steps.step("embed", len(self.dataset.normal)) as step:
            return embed_images(
                self.dataset,
                self.reader,
                embedder,
                spec=network.spec,
                preprocessing=self.preprocessing,
                folder=self.scratch,
                step=step,
            )

    def source(self, embedded: EmbeddedImages) -> SourceSpec:
        """What was read; before anything is read a second time, so that the digest covers it once."""
        return SourceSpec(
            name=self.dataset.name,
            layout=self.dataset.layout,
            images_bank=len(embedded.refs),
            images_held_out=0,
            images_skipped=self.reader.skipped,
            content_sha256=self.reader.content_sha256,
            config=self.config.facts(),
        )

    def project(self, embedded: EmbeddedImages, plan: CalibrationPlan) -> EmbeddedImages:
        """Project all rows for coreset selection."""
        with self.steps.step("project", len(embedded.full)) as step:
            return embedded.with_projection(self.config, plan.bank, self.scratch, step)

    def select_bank(self, embedded: EmbeddedImages, plan: CalibrationPlan) -> MemoryBank:
        """Coreset of the planned images."""
        with self.steps.step("coreset", bank_size(embedded, plan.bank, self.config)) as step:
            return choose_memory_bank(embedded, plan.bank, self.config, step.advance_to)

    def write_bank(self, bank: MemoryBank, embedded: EmbeddedImages, plan: CalibrationPlan) -> SearchSpec:
        """Write the bank and its index, and measure the index."""
        with self.steps.step("index", len(bank.rows)) as step:
            index = write_memory_bank(bank, self.config, self.folder, step)
        with self.steps.step("measure search"):
            unseen = plan.folds[0] if plan.held_out else plan.bank
            threads = self.config.threads or available_cores()
            return measure_bank_search(index, bank, embedded, unseen, self.config, threads)

    def draft(
        self,
        output: Path,
        source: SourceSpec,
        network: TracedNetwork,
        bank: MemoryBank,
        search: SearchSpec,
        parity: ParitySpec,
        plan: CalibrationPlan,
    ) -> Manifest:
        """The manifest of a bundle that can score, but has no thresholds yet."""
        config = self.config
        neighbours = config.neighbours if config.image_score == "reweighted" else 0
        provider = resolve_provider(config.provider)
        tools = (*(TRACING if network.needs_torch else ()), *(["openvino"] if provider == "openvino" else []))
        manifest = Manifest(
            name=output.name.removesuffix(".pcbundle"),
            files=list_files(self.folder, [path.name for path in self.folder.iterdir()]),
            created_by=installed_versions(*tools),
            source=dataclasses.replace(source, images_held_out=plan.held_out, images_bank=len(plan.bank)),
            preprocess=self.preprocessing,
            embedding=dataclasses.replace(network.spec, provider=provider),
            memory_bank=bank.spec,
            search=search,
            scoring=ScoringSpec(config.image_score, neighbours, config.map_sigma_px),
            parity=parity,
        )
        write_manifest(self.folder, manifest)
        return manifest

    def calibrate(
        self, manifest: Manifest, embedded: EmbeddedImages, plan: CalibrationPlan
    ) -> tuple[AnomalyDetector, Manifest, NormalScores]:
        """Open the draft as a device would, and choose its thresholds."""
        config = self.config
        detector = AnomalyDetector.load(
            self.folder,
            provider=config.provider,
            threads=config.threads,
            threshold=NO_THRESHOLD,
            pixel_threshold=NO_THRESHOLD,
            profile=False,
        )
        scores = score_normals(plan, embedded, detector, self.reader, config, self.steps)
        chosen = choose_thresholds(scores, plan, config, self.steps)
        if chosen:
            detector.threshold, detector.pixel_threshold = (spec.value for spec in chosen)
            scoring = dataclasses.replace(
                manifest.scoring,
                threshold=chosen[0],
                pixel_threshold=chosen[1],
                baseline=baseline_of(scores, plan.method),
            )
            manifest = dataclasses.replace(manifest, scoring=scoring)
        return detector, manifest, scores

    def evaluate(self, detector: AnomalyDetector, manifest: Manifest) -> list[TestScore]:
        """Score the labelled test images, where there are any and a threshold to judge them by."""
        if not (self.config.evaluate and self.dataset.test and manifest.scoring.threshold):
            return []
        with self.steps.step("evaluate", len(self.dataset.test)) as step:
            return score_test_images(self.dataset.test, self.reader, detector, step)

    def finish(
        self,
        detector: AnomalyDetector,
        manifest: Manifest,
        embedded: EmbeddedImages,
        scores: NormalScores,
        test_scores: list[TestScore],
    ) -> Manifest:
        """Golden samples, report and the final manifest, which is written last."""
        manifest = dataclasses.replace(manifest, accuracy=accuracy_of(test_scores))
        with self.steps.step("golden samples and report"):
            samples = choose_samples(self.dataset, embedded.refs, self.config.golden_samples, self.reader)
            names = write_samples(self.folder, samples, self.reader, detector)
            report = self.folder / REPORT_NAME
            write_report(report, manifest, scores, test_scores, samples, self.reader, detector)
            files = {**manifest.files, **list_files(self.folder, [*names, REPORT_NAME])}
        manifest = dataclasses.replace(manifest, files=files)
        write_manifest(self.folder, manifest)
        return manifest

    def verify(self, manifest: Manifest) -> tuple[Bundle, int]:
        """Open the bundle as a device would and replay its golden samples; gives it and its size."""
        with self.steps.step("verify"):
            bundle = Bundle.load(self.folder)
            # A bundle without thresholds was recorded with unreachable ones.
            limit = missing_limit(manifest)
            detector = AnomalyDetector.load(
                bundle,
                provider=self.config.provider,
                threads=self.config.threads,
                threshold=limit,
                pixel_threshold=limit,
                profile=False,
            )
            report = run_selftest(detector)
            if not report.passed:
                worst = max(check.relative_difference for check in report.checks)
                raise BuildError(
                    "The finished bundle does not repeat its own golden samples "
                    f"(relative difference {worst:.2g}). Expected the same scores; "
                    "report this with the versions in use. Nothing was written."
                )
            size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return bundle, size


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
