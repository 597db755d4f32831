"""`pcexport eval`: the whole job."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcexport.datasets import Dataset, TestImage, find_dataset
from pcexport.datasets.reader import ImageReader
from pcexport.evaluation.metrics import Metrics, evaluate
from pcexport.evaluation.scored import ScoredImage, score_images
from pcexport.progress import Steps
from pcrun.bundle.bundle import Bundle, file_label
from pcrun.bundle.manifest import Manifest
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.machine.facts import machine_facts, versions
from pcrun.percentiles import percentiles
from pcrun.records import to_jsonable
from pcrun.tuning.in_force import settings_in_force


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate, as given; the options of the runtime are those of `pcrun`.

    Attributes:
        layout: of the data, or "auto".
        strict: stop at the first unreadable image.
    """

    layout: str = "auto"
    provider: str = "auto"
    precision: str | None = None
    threads: int = 0
    exactness: str = "mask"
    threshold: float | None = None
    pixel_threshold: float | None = None
    no_profile: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What a bundle did on some images.

    Attributes:
        bundle: path as given.
        manifest, digest, bytes: of the bundle.
        data: name and layout of the data.
        threshold, pixel_threshold: in force, L2 units.
        scored: every image that could be read.
        skipped: images that could not.
        metrics: None where nothing is labelled.
        runs_on: provider, precision, search and so on, as they really were.
        latency_ms: per stage p50, p90 and p99; decoding is not part of it.
        machine, versions: what the latencies were taken on.
        warnings: everything a person should know.
    """

    bundle: str
    manifest: Manifest
    digest: str
    bytes: int
    data: dict[str, str]
    threshold: float
    pixel_threshold: float
    scored: tuple[ScoredImage, ...]
    skipped: int
    metrics: Metrics | None
    runs_on: dict[str, Any]
    latency_ms: dict[str, dict[str, float]]
    machine: dict[str, Any]
    versions: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def file(self) -> str:
        """The bundle's file name without suffix: what a person typed, whatever name is inside."""
        return file_label(Path(self.bundle))

    @property
    def labelled(self) -> bool:
        """Whether the images are known to be normal or defective."""
        return self.metrics is not None

    def of_label(self, label: str) -> list[ScoredImage]:
        """Images that are "normal", "defective" or "unlabelled"."""
        return [image for image in self.scored if image.label == label]


def evaluate_bundle(
    bundle: Path, data: str, options: EvaluationOptions, steps: Steps
) -> tuple[Evaluation, AnomalyDetector, Dataset]:
    """Score a data set with a bundle through the runtime, and sum up.

    Gives the detector and the data too, for pictures.

    Raises:
        BuildError: there is nothing to evaluate on, or labels and masks contradict each other.
        BundleError, BackendError: the bundle cannot be run as asked.
    """
    dataset = find_dataset(data, options.layout, to_build=False)
    opened = Bundle.load(bundle)
    detector = open_detector(opened, options, steps)
    for remark in dataset.remarks:
        steps.warn(remark)
    images, labelled = images_of(dataset)
    if not labelled:
        steps.warn(
            f"{data} (layout {dataset.layout}) has no labelled images: scores are shown, accuracy cannot be"
        )
    _warn_of_images_to_build_from(dataset, steps)
    reader = ImageReader(
        dataset.root,
        white_level_16bit=opened.manifest.preprocess.white_level_16bit,
        strict=options.strict,
        warn=steps.warn,
    )
    with steps.step(f"score {file_label(bundle)}", len(images)) as step:
        scored, seen = score_images(images, reader, detector, step, labelled=labelled)
    if seen:
        steps.warn(
            f"{len(seen)} of the images are in the memory bank, the first {seen[0].name}: they score lower "
            "than new ones, so figures with them are too good"
        )
    metrics = None
    if labelled:
        with steps.step("metrics"):
            metrics = evaluate(scored)
        _warn_of_missing_masks(scored, steps)
    evaluation = Evaluation(
        bundle=str(bundle),
        manifest=opened.manifest,
        digest=opened.digest,
        bytes=sum(entry.bytes for entry in opened.manifest.files.values()),
        data={"name": dataset.name, "layout": dataset.layout},
        threshold=detector.threshold,
        pixel_threshold=detector.pixel_threshold,
        scored=tuple(scored),
        skipped=reader.skipped,
        metrics=metrics,
        runs_on=settings_in_force(detector),
        latency_ms=_latencies(scored),
        machine=machine_facts(),
        versions=versions(),
        warnings=tuple(steps.warnings),
    )
    return evaluation, detector, dataset


def open_detector(bundle: Bundle, options: EvaluationOptions, steps: Steps) -> AnomalyDetector:
    """The detector as `pcrun` would open it; a bundle without threshold calls nothing anomalous."""
    threshold, pixel_threshold = options.threshold, options.pixel_threshold
    if bundle.manifest.scoring.threshold is None and threshold is None:
        steps.warn("the bundle has no threshold: nothing is called anomalous; give one with --threshold")
        threshold, pixel_threshold = NO_THRESHOLD, pixel_threshold or NO_THRESHOLD
    with steps.own_warnings():
        return AnomalyDetector.load(
            bundle,
            provider=options.provider,
            precision=options.precision,
            threads=options.threads,
            threshold=threshold,
            pixel_threshold=pixel_threshold,
            exactness=options.exactness,
            profile=not options.no_profile,
        )


def images_of(dataset: Dataset) -> tuple[tuple[TestImage, ...], bool]:
    """The labelled test images; where there are none, all images as unlabelled ones."""
    if dataset.test:
        return dataset.test, True
    return tuple(TestImage(ref.path, None, tile=ref.tile, frame=ref.frame) for ref in dataset.normal), False


def _warn_of_images_to_build_from(dataset: Dataset, steps: Steps) -> None:
    if dataset.test and dataset.normal and all(image.is_defective for image in dataset.test):
        steps.warn(
            f"the {len(dataset.normal)} normal images of {dataset.name} are those that bundles are built "
            "from, and are not scored: without normal test images there are no false alarms to count"
        )


def _warn_of_missing_masks(scored: Sequence[ScoredImage], steps: Steps) -> None:
    without = [image for image in scored if image.pixels is None]
    if without:
        first = without[0].image.name
        which = (
            f"{len(without)} defective images have no mask, the first {first}: they are"
            if len(without) != 1
            else f"1 defective image has no mask, {first}: it is"
        )
        steps.warn(f"{which} left out of the pixel figures")


def _latencies(scored: Sequence[ScoredImage]) -> dict[str, dict[str, float]]:
    return {
        stage: percentiles([image.timings_ms[stage] for image in scored], digits=3)
        for stage in scored[0].timings_ms
    }


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but single images, as plain types."""
    manifest = evaluation.manifest
    return {
        "bundle": {
            "name": manifest.name,
            "file": evaluation.file,
            "digest": evaluation.digest,
            "bytes": evaluation.bytes,
            "backbone": manifest.embedding.backbone,
            "precision": manifest.embedding.precision,
            "memory_bank": manifest.memory_bank.count,
        },
        "data": evaluation.data,
        "images": {
            **{label: len(evaluation.of_label(label)) for label in ("normal", "defective", "unlabelled")},
            "skipped": evaluation.skipped,
            "anomalous": sum(image.is_anomalous for image in evaluation.scored),
        },
        "threshold": evaluation.threshold,
        "pixel_threshold": evaluation.pixel_threshold,
        "metrics": evaluation.metrics.to_json() if evaluation.metrics else None,
        "false_alarm_rate": to_jsonable(manifest.scoring.threshold),
        "runs_on": evaluation.runs_on,
        "latency_ms": evaluation.latency_ms,
        "machine": evaluation.machine,
        "versions": evaluation.versions,
        "warnings": list(evaluation.warnings),
    }
