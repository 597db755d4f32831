"""`pcexport calibrate`: new thresholds for a finished bundle, from normal images that it has not seen."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcexport.bundle_writer import check_output, list_files, publish, staging_folder, write_zip
from pcexport.calibration.false_alarm_rate import choose_threshold, images_needed, shortage_warning
from pcexport.calibration.seen import SeenImages
from pcexport.calibration.thresholds import NormalScores, baseline_of
from pcexport.datasets import ImageRef, find_dataset
from pcexport.datasets.reader import ImageReader
from pcexport.errors import BuildError
from pcexport.golden import judge_again, samples_to_json
from pcexport.progress import Steps
from pcexport.report.write import write_report
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import (
    REPORT_NAME,
    SAMPLES_NAME,
    SCHEMA_VERSION,
    CalibrationSource,
    Manifest,
    PastThresholds,
    ScoringSpec,
    ThresholdSpec,
    write_manifest,
)
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.records import to_jsonable
from pcrun.selftest import run_selftest
from pcrun.tuning.profile import find_profile
from pcrun.words import plural

# Medians of image scores of the same parts under another camera or lamp lie within this factor.
_SAME_PARTS = 1.25
DEFAULT_RATE = 0.01


@dataclass(frozen=True)
class CalibrateOptions:
    """How a bundle is calibrated.

    Attributes:
        rate: false-alarm rate, above 0 and below 1; None is that of the bundle's threshold.
        provider: what the embedder runs on, "auto" or a name.
        precision: None is that of this machine's device profile, else the bundle's.
        no_profile: leave the device profile aside.
        force: replace an existing bundle, after the new one is complete.
        allow_shortage: take the largest score where there are too few images for the rate.
    """

    rate: float | None = None
    provider: str = "auto"
    precision: str | None = None
    no_profile: bool = False
    force: bool = False
    allow_shortage: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < 1:  # NaN too
            raise BuildError(f"The false-alarm rate is {self.rate}. Expected a number above 0 and below 1.")


@dataclass(frozen=True)
class CalibrateSummary:
    """What a calibration made.

    Attributes:
        output: the new bundle, a directory or a zip, as the old one was.
        before: scoring of the old one.
        digest: identity of the new one.
        scored_with: provider and precision of the embedder, and whether the device profile chose them.
        had_profile: whether this machine has a device profile for the old one, which does not hold any more.
    """

    output: Path
    before: ScoringSpec
    manifest: Manifest
    digest: str
    scored_with: dict[str, Any]
    had_profile: bool
    seconds: dict[str, float]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types for `--json`."""
        return {
            "bundle": str(self.output),
            "digest": self.digest,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "warnings": list(self.warnings),
            "scored_with": self.scored_with,
            "had_profile": self.had_profile,
            "before": to_jsonable(self.before),
            "manifest": to_jsonable(self.manifest),
        }


def calibrate_bundle(
    path: Path, data: str, output: Path | None, options: CalibrateOptions, steps: Steps
) -> CalibrateSummary:
    """Score unseen normal images with the bundle as it is deployed, and write it with new thresholds.

    Args:
        path: a bundle directory or zip.
        data: folder or glob of normal images; of a labelled layout its normal test images are taken.
        output: the new bundle; None replaces the old one.
        options: rate and permissions.
        steps: progress and warnings.

    Raises:
        BuildError: too few images, images that the bundle was built from, or nowhere to write to. The old
            bundle is untouched then.
        BundleError: the bundle is not sound.
    """
    try:
        with steps.own_warnings():
            return _calibrate(path, data, output, options, steps)
    except OSError as error:
        raise BuildError(
            f"The calibration cannot read or write a file ({error}). Expected enough space and the rights to "
            "use it. The old bundle is unchanged."
        ) from error


def _calibrate(
    path: Path, data: str, output: Path | None, options: CalibrateOptions, steps: Steps
) -> CalibrateSummary:
    target = _target(path, output, force=options.force)
    bundle = Bundle.load(path)
    rate = options.rate or _rate_of(bundle.manifest)
    name, root, images = _normal_images(data)
    _require_enough(len(images), rate, allow_shortage=options.allow_shortage)
    detector = _open(bundle, options)
    scored_with = _scored_with(detector)
    steps.say(_told(scored_with))
    reader = ImageReader(
        root, white_level_16bit=bundle.manifest.preprocess.white_level_16bit, strict=False, warn=steps.warn
    )
    scores = _score(detector, images, reader, steps)
    _require_enough(len(scores.image_scores), rate, allow_shortage=options.allow_shortage)
    _warn_of_other_parts(bundle.manifest, scores, steps)
    source = CalibrationSource(name, reader.skipped, reader.content_sha256)
    manifest = _with_thresholds(bundle.manifest, scores, rate, source, steps)
    with staging_folder(target) as staging:
        with steps.step("golden samples and report"):
            folder = staging / "bundle"
            manifest = _write(folder, bundle, manifest, scores, detector)
        with steps.step("verify"):
            staged = write_zip(folder, staging / target.name, manifest) if path.is_file() else folder
            digest = _verify(staged, scored_with)
        had_profile = find_profile(bundle, provider=options.provider) is not None
        publish(staged, target)
    return CalibrateSummary(
        target,
        bundle.manifest.scoring,
        manifest,
        digest,
        scored_with,
        had_profile,
        dict(steps.seconds),
        tuple(steps.warnings),
    )


def _warn_of_other_parts(manifest: Manifest, scores: NormalScores, steps: Steps) -> None:
    """Images of another product are normal images too, and nothing else would tell."""
    baseline = manifest.scoring.baseline
    if baseline is None:
        return
    before, now = float(np.median(baseline.image_scores)), float(np.median(scores.image_scores))
    if before > 0 and not 1 / _SAME_PARTS <= now / before <= _SAME_PARTS:
        steps.warn(
            f"the images score {now:.4g} (median), those the bundle was calibrated with {before:.4g}: are "
            "these the same parts under the same light? A threshold from other parts finds nothing"
        )


def _target(path: Path, output: Path | None, *, force: bool) -> Path:
    """Where the new bundle goes: `output`, else the place of the old one, whatever link leads there."""
    target = path.resolve() if output is None else output
    if output is None and not force:
        raise BuildError(
            f"{path} would be replaced. Expected a name for the new bundle (-o), or --force to replace the "
            "old one when the new one is complete."
        )
    check_output(target, force=force)
    return target


def _rate_of(manifest: Manifest) -> float:
    threshold = manifest.scoring.threshold
    return threshold.false_alarm_rate_requested if threshold else DEFAULT_RATE


def _normal_images(data: str) -> tuple[str, Path, tuple[ImageRef, ...]]:
    """Name and root of the data, and its normal images: all of a plain folder, the test ones of others.

    Raises:
        BuildError: there are none.
    """
    dataset = find_dataset(data, to_build=False)
    if dataset.layout == "flat":
        return dataset.name, dataset.root, dataset.normal
    images = tuple(image.ref for image in dataset.test if not image.is_defective)
    if not images:
        raise BuildError(
            f"{data} has the layout {dataset.layout} and no normal test images; its other normal images are "
            "those that bundles are built from. Expected new ones; give their folder or a quoted glob."
        )
    return dataset.name, dataset.root, images


def _require_enough(images: int, rate: float, *, allow_shortage: bool) -> None:
    """Refuse what cannot support the rate at all."""
    needed, _ = images_needed(rate)
    if images < 2:
        raise BuildError(
            f"{images} readable normal {plural(images, 'image')} cannot give a threshold: at least 2 "
            f"are needed, {needed} for a false-alarm rate of {rate:.2%}. Add images."
        )
    if images < needed and not allow_shortage:
        supported = math.ceil(1e4 / (images + 1)) / 1e4
        raise BuildError(
            f"{images} normal images cannot support a false-alarm rate of {rate:.2%}: {needed} are needed, "
            f"{needed - images} more. Add images, pass --false-alarm-rate {supported:g} or "
            "more, or pass --allow-shortage to take their largest score as it is."
        )


def _open(bundle: Bundle, options: CalibrateOptions) -> AnomalyDetector:
    """The deployed bundle with every patch measured exactly: the search for seen images needs all of them.

    Verdicts on the device are certified to equal these, whatever its search. Provider and precision are those
    of the device profile, where this machine has one: they move scores, the rest of a profile does not.
    """
    return AnomalyDetector.load(
        bundle,
        provider=options.provider,
        precision=options.precision,
        threshold=NO_THRESHOLD,
        pixel_threshold=NO_THRESHOLD,
        exactness="full",
        profile=not options.no_profile,
    )


def _scored_with(detector: AnomalyDetector) -> dict[str, Any]:
    return {
        "provider": detector.provider,
        "precision": detector.precision,
        "device_profile": detector.profile is not None,
    }


def _told(scored_with: dict[str, Any]) -> str:
    source = "this machine's device profile" if scored_with["device_profile"] else "no device profile here"
    return (
        f"scores are those of {scored_with['provider']} {scored_with['precision']} ({source}); calibrate on "
        "the device, or give --provider and --precision as it runs"
    )


def _score(
    detector: AnomalyDetector, images: tuple[ImageRef, ...], reader: ImageReader, steps: Steps
) -> NormalScores:
    """Scores of the readable images.

    Raises:
        BuildError: some of them are in the memory bank.
    """
    scores = NormalScores([], [])
    seen = SeenImages(detector)
    with steps.step("score", len(images)) as step:
        for done, (image, pixels) in enumerate(reader.read_all(images), start=1):
            if pixels is not None:
                embedded = detector.embed(pixels)
                result = detector.score(embedded)
                seen.look(image, embedded.embeddings, result.patch_scores)
                median = float(np.median(result.patch_scores))
                scores.add(result.image_score, float(result.anomaly_map.max()), median)
            step.advance_to(done)
    seen.require_none()
    return scores


def _with_thresholds(
    manifest: Manifest, scores: NormalScores, rate: float, source: CalibrationSource, steps: Steps
) -> Manifest:
    """The manifest with both thresholds chosen anew, and the old ones in the history."""
    image, pixel = (
        choose_threshold(values, rate=rate, method="holdout")
        for values in (scores.image_scores, scores.map_maxima)
    )
    shortage = shortage_warning(image)
    if shortage:
        missing = [n - image.images for n in images_needed(rate)]
        steps.warn(f"{shortage} That is {' or '.join(f'{n}' for n in missing if n > 0)} more.")
    old = manifest.scoring
    history = old.history
    if old.threshold or old.pixel_threshold:
        history = (*history, PastThresholds(old.threshold, old.pixel_threshold, old.calibrated_on))
    scoring = dataclasses.replace(
        old,
        threshold=image,
        pixel_threshold=pixel,
        calibrated_on=source,
        history=history,
        baseline=baseline_of(scores, "holdout"),
    )
    accuracy = manifest.accuracy
    if accuracy is not None:
        # Counted at the old threshold; the AUROC depends on none.
        accuracy = dataclasses.replace(accuracy, false_alarms=None, misses=None)
    return dataclasses.replace(manifest, scoring=scoring, accuracy=accuracy, schema_version=SCHEMA_VERSION)


def _write(
    folder: Path, bundle: Bundle, manifest: Manifest, scores: NormalScores, detector: AnomalyDetector
) -> Manifest:
    """All files of the new bundle; gives its manifest, which is written last."""
    image, pixel = _limits(manifest)
    detector.threshold, detector.pixel_threshold = image.value, pixel.value
    for name in bundle.manifest.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bundle.read(name))
    samples = []
    if SAMPLES_NAME in bundle.manifest.files:
        golden = judge_again(bundle.golden_samples(), image.value)
        (folder / SAMPLES_NAME).write_bytes(samples_to_json(golden))
        samples = [(ImageRef(folder / sample.file), sample.label) for sample in golden.samples]
    # The report lists all files but itself and the golden samples, as that of a build does.
    listed = {
        name: entry
        for name, entry in bundle.manifest.files.items()
        if name != REPORT_NAME and not name.startswith("samples/")
    }
    reader = ImageReader(folder, white_level_16bit=65535, strict=True, warn=lambda text: None)
    write_report(
        folder / REPORT_NAME,
        dataclasses.replace(manifest, files=listed),
        scores,
        [],
        samples,
        reader,
        detector,
    )
    changed = list_files(folder, [REPORT_NAME, *([SAMPLES_NAME] if samples else [])])
    manifest = dataclasses.replace(manifest, files={**bundle.manifest.files, **changed})
    write_manifest(folder, manifest)
    return manifest


def _limits(manifest: Manifest) -> tuple[ThresholdSpec, ThresholdSpec]:
    scoring = manifest.scoring
    assert scoring.threshold and scoring.pixel_threshold  # just chosen
    return scoring.threshold, scoring.pixel_threshold


def _verify(path: Path, scored_with: dict[str, Any]) -> str:
    """Open the new bundle as a device would and replay its golden samples; gives its digest.

    Raises:
        BuildError: it does not repeat them.
    """
    bundle = Bundle.load(path)
    if SAMPLES_NAME in bundle.manifest.files:
        provider, precision = scored_with["provider"], scored_with["precision"]
        report = run_selftest(
            AnomalyDetector.load(bundle, provider=provider, precision=precision, profile=False)
        )
        if not report.passed:
            worst = max(check.relative_difference for check in report.checks)
            raise BuildError(
                "This machine does not repeat the bundle's golden samples (relative difference "
                f"{worst:.2g}), so it cannot calibrate it. Expected the same scores; run `pcrun doctor` "
                "here, or calibrate on the machine that built it. The old bundle is unchanged."
            )
    return bundle.digest
