"""The job behind `pcrun`: frames in, one result per frame out."""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pcrun.bundle import Bundle
from pcrun.cli_support import EXIT_ANOMALY, EXIT_ERROR, EXIT_OK
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.errors import BundleError
from pcrun.outputs import PictureWriter, ResultWriter, make_writer, open_output, result_record
from pcrun.records import to_jsonable
from pcrun.selftest import SelftestReport, run_selftest
from pcrun.sources import Camera, Frame, ImageFiles, Source, VideoFile

BUNDLE_VARIABLE = "PCRUN_BUNDLE"
EXIT_SELFTEST_FAILED = 1


@dataclass(frozen=True)
class RunOptions:
    """The options of one run, as given; None where left out. `pcrun --help` explains each."""

    bundle: Path | None
    images: tuple[str, ...]
    video: Path | None
    camera: int | None
    max_frames: int | None
    threshold: float | None
    pixel_threshold: float | None
    provider: str
    precision: str | None
    threads: int
    exactness: str
    search: str
    ef: int | None
    no_profile: bool
    output_format: str | None
    output: Path | None
    save_overlays: Path | None
    save_maps: Path | None
    map_format: str
    fail_on_anomaly: bool


def run(options: RunOptions) -> int:
    """Score every frame of the source; returns the exit code."""
    bundle = Bundle.load(find_bundle(options.bundle))
    source = _open_source(options, bundle)
    detector = load_detector(bundle, options)
    pictures = PictureWriter(detector, options.save_overlays, options.save_maps, options.map_format)
    errors = anomalies = 0
    with _open_stream(options) as stream:
        writer = make_writer(_format(options, stream), stream)
        for frame in _limited(source, options.max_frames):
            verdict = _score(frame, detector, writer, pictures)
            errors += verdict is None
            anomalies += bool(verdict)
    if errors:
        return EXIT_ERROR
    return EXIT_ANOMALY if anomalies and options.fail_on_anomaly else EXIT_OK


def selftest(
    bundle_path: Path | None,
    *,
    provider: str,
    precision: str | None,
    threads: int,
    no_profile: bool,
    as_json: bool,
) -> int:
    """Replay the golden samples and print what came out; returns the exit code."""
    bundle = Bundle.load(find_bundle(bundle_path))
    # A bundle without thresholds was recorded with an unreachable one.
    limit = None if bundle.manifest.scoring.threshold else NO_THRESHOLD
    with warnings_on_stderr():
        detector = AnomalyDetector.load(
            bundle,
            provider=provider,
            precision=precision,
            threads=threads,
            threshold=limit,
            pixel_threshold=limit,
            profile=not no_profile,
        )
    report = run_selftest(detector)
    if as_json:
        facts = {"passed": report.passed, "provider": detector.provider, "precision": detector.precision}
        facts["search"] = detector.search
        facts["profile"] = detector.profile is not None
        print(json.dumps({**facts, "digest": bundle.digest, **to_jsonable(report)}, indent=2))
    else:
        _print_selftest(report, detector)
    return EXIT_OK if report.passed else EXIT_SELFTEST_FAILED


def find_bundle(given: Path | None) -> Path:
    """The bundle to use: the one given, else $PCRUN_BUNDLE, else the only *.pcbundle in the current folder.

    Raises:
        BundleError: none, or several to choose from.
    """
    if given is not None:
        return given
    from_environment = os.environ.get(BUNDLE_VARIABLE)
    if from_environment:
        return Path(from_environment)
    found = sorted(Path().glob("*.pcbundle"))
    if len(found) == 1:
        return found[0]
    listed = f"{len(found)} ({', '.join(map(str, found))})" if found else "none"
    raise BundleError(
        f"No bundle was named, and the current folder holds {listed}. "
        f"Pass --bundle PATH or set ${BUNDLE_VARIABLE}."
    )


def load_detector(bundle: Bundle, options: RunOptions) -> AnomalyDetector:
    """The detector for a run; says on standard error what it really uses when that was left open."""
    with warnings_on_stderr():
        detector = AnomalyDetector.load(
            bundle,
            provider=options.provider,
            precision=options.precision,
            threads=options.threads,
            threshold=options.threshold,
            pixel_threshold=options.pixel_threshold,
            exactness=options.exactness,
            search=options.search,
            ef=options.ef,
            profile=not options.no_profile,
        )
    if options.provider == "auto" or detector.profile:
        say(described_settings(detector))
    return detector


def described_settings(detector: AnomalyDetector) -> str:
    """One line: what a detector really runs on, and where the choice came from."""
    settings = detector.settings
    assert settings is not None  # loaded from a bundle
    ef = f" (ef {settings.ef})" if settings.ef else ""
    source = "device profile" if detector.profile else "no device profile (`pcrun tune` makes one)"
    return (
        f"provider {detector.provider} {detector.precision}, search {detector.search}{ef}, "
        f"exactness {detector.exactness}, threads {settings.threads}, {source}"
    )


def _score(
    frame: Frame, detector: AnomalyDetector, writer: ResultWriter, pictures: PictureWriter
) -> bool | None:
    """Score one frame and write everything about it; gives the verdict, None for an unreadable frame."""
    if frame.image is None:
        writer.write(result_record(frame, None))
        return None
    result = detector(frame.image)
    writer.write(result_record(frame, result))
    pictures.write(frame, frame.image, result)
    return result.is_anomalous


def _open_source(options: RunOptions, bundle: Bundle) -> Source:
    if options.video is not None:
        return VideoFile(options.video)
    if options.camera is not None:
        return Camera(options.camera)
    return ImageFiles(options.images, white_level_16bit=bundle.manifest.preprocess.white_level_16bit)


def _limited(source: Source, max_frames: int | None) -> Iterator[Frame]:
    for count, frame in enumerate(source, start=1):
        yield frame
        # Checked after the frame: a camera must not be asked for one more.
        if count == max_frames:
            return


@contextlib.contextmanager
def _open_stream(options: RunOptions) -> Iterator[TextIO]:
    if options.output is None:
        yield sys.stdout
        return
    with open_output(options.output) as stream:
        yield stream


def _format(options: RunOptions, stream: TextIO) -> str:
    if options.output_format:
        return options.output_format
    if options.output is not None and options.output.suffix == ".csv":
        return "csv"
    return "table" if stream.isatty() else "jsonl"


def _print_selftest(report: SelftestReport, detector: AnomalyDetector) -> None:
    print(f"{'sample':<18} {'label':<10} {'built':>10} {'here':>10} {'difference':>11}  result")
    for check in report.checks:
        result = "ok" if check.passed else "DIFFERS"
        print(
            f"{check.sample.file:<18} {check.sample.label:<10} {check.sample.image_score:>10.5f} "
            f"{check.image_score:>10.5f} {check.relative_difference:>11.1e}  {result}"
        )
    passed = sum(check.passed for check in report.checks)
    print(
        f"{passed} of {len(report.checks)} golden samples agree within {report.tolerance_relative:g} "
        f"(provider {detector.provider}, search {detector.search})"
    )


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show library warnings as one plain line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        say(f"warning: {warning.message}")


def say(text: str) -> None:
    """Tell a person, on standard error."""
    print(f"pcrun: {text}", file=sys.stderr)
