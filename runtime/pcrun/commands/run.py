"""The job behind `pcrun`: frames in, one result per frame out."""

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pcrun.backends.session import GPU_PROVIDERS
from pcrun.bundle.bundle import Bundle
from pcrun.commands.support import EXIT_ANOMALY, EXIT_ERROR, EXIT_OK
from pcrun.detector import AnomalyDetector
from pcrun.errors import BundleError
from pcrun.pipeline.debounce import Debounce
from pcrun.pipeline.drift import DEFAULT_WINDOW, SMALLEST_WINDOW, DriftWatch
from pcrun.pipeline.pipeline import Line, Pipeline
from pcrun.pipeline.service import Reloader, Supervisor
from pcrun.pipeline.thresholds import ThresholdChanges
from pcrun.sinks.open import open_sinks
from pcrun.sinks.progress import counted
from pcrun.sinks.sink_set import SinkSet
from pcrun.sources import Source
from pcrun.sources.files import ImageFiles
from pcrun.sources.spec import SourceOptions, open_source
from pcrun.sources.view import FrameView, Roi

BUNDLE_VARIABLE = "PCRUN_BUNDLE"


@dataclass(frozen=True)
class DetectorOptions:
    """How frames are judged, as given; None where left out. `pcrun --help` explains each."""

    threshold: float | None = None
    pixel_threshold: float | None = None
    provider: str = "auto"
    precision: str | None = None
    threads: int = 0
    exactness: str = "mask"
    search: str = "auto"
    ef: int | None = None
    no_profile: bool = False
    engine: Path | None = None


@dataclass(frozen=True)
class SinkOptions:
    """Where results go, as given."""

    output_format: str | None = None
    output: Path | None = None
    rotate_mb: float | None = None
    keep: int = 5
    save_overlays: Path | None = None
    save_maps: Path | None = None
    map_format: str = "npy"
    save_video: Path | None = None
    video_fps: float = 25.0
    show: bool = False
    evidence: Path | None = None
    evidence_mb: float = 500.0
    webhook: tuple[str, ...] = ()
    webhook_all: bool = False
    mqtt: tuple[str, ...] = ()
    mqtt_qos: int = 1
    mqtt_retain: bool = False
    metrics: tuple[str, int] | None = None
    serve: tuple[str, int] | None = None


@dataclass(frozen=True)
class RunOptions:
    """The options of one run.

    Attributes:
        bundles: none, one for all sources, or one per source.
        images: image files, folders and patterns, together one source.
        sources: as `pcrun.sources.spec.open_source` takes them.
        properties: of cameras.
        debounce: k and n of an alarm.
        drift_window: verdicts that are compared with the bundle's baseline at once; 0 for none, None where
            left out.
    """

    bundles: tuple[Path, ...] = ()
    images: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    fps: float | None = None
    stall_timeout_s: float = 5.0
    properties: Mapping[str, float] = field(default_factory=dict)
    rotate_deg: int = 0
    roi: Roi | None = None
    debounce: tuple[int, int] | None = None
    drift_window: int | None = None
    max_frames: int | None = None
    duration_s: float | None = None
    fail_on_anomaly: bool = False
    detector: DetectorOptions = field(default_factory=DetectorOptions)
    sinks: SinkOptions = field(default_factory=SinkOptions)


def run(options: RunOptions) -> int:
    """Judge every frame of the sources; returns the exit code."""
    bundles = [Bundle.load(path) for path in bundle_paths(options)]
    sources = open_sources(options, bundles)
    detectors = load_detectors(bundles, options.detector)
    lines = make_lines(options, sources, detectors)
    say_what_is_not_watched(options, bundles)
    live = any(source.live for source in sources)
    supervisor = Supervisor()
    thresholds = ThresholdChanges(lines, pixel_threshold=options.detector.pixel_threshold)
    closed = threading.Event()

    def close_window() -> None:
        closed.set()
        pipeline.stop()

    sinks = open_sinks(options.sinks, lines, live=live, thresholds=thresholds, say=say, stop=close_window)
    receiver = SinkSet(
        sinks,
        strict=not live,
        say=say,
        name_bundles=len(detectors) > 1,
        on_idle=(supervisor.alive, thresholds.apply),
    )
    with closing(receiver):
        pipeline = Pipeline(
            lines,
            receiver,
            max_frames=options.max_frames,
            duration_s=options.duration_s,
            overlap=all(detector.provider in GPU_PROVIDERS for detector in detectors),
        )
        reloader = Reloader(lines, lambda: reloaded_detectors(options, len(lines)), pipeline.post, supervisor)
        with stopped_by_signals(pipeline, supervisor, reloader) as stopped:
            supervisor.ready(f"running {', '.join(bundle.manifest.name for bundle in bundles)}")
            pipeline.run()
    if (stopped() or closed.is_set()) and not live:
        raise KeyboardInterrupt  # not all of a batch was done
    if options.sinks.output is not None and not live:
        say(counted(receiver.counts))
    say_what_was_not_judged(options, lines)
    if receiver.counts["error"] or receiver.failed_sources:
        return EXIT_ERROR
    alarms = receiver.alarms if options.debounce else receiver.counts["anomalous"]
    return EXIT_ANOMALY if alarms and options.fail_on_anomaly else EXIT_OK


def bundle_paths(options: RunOptions) -> list[Path]:
    """One bundle for all sources, or one for each.

    Raises:
        BundleError: another number of them.
    """
    if not options.bundles:
        return [find_bundle(None)]
    wanted = max(1, len(options.sources))
    if len(options.bundles) not in (1, wanted):
        raise BundleError(
            f"{len(options.bundles)} bundles were given for {wanted} sources. Expected one for all, or one "
            "for each in the order of the sources."
        )
    return list(options.bundles)


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


def open_sources(options: RunOptions, bundles: list[Bundle]) -> list[Source]:
    """The sources of a run, in the order given.

    Raises:
        SourceError: one of them is not there, or cannot be understood.
    """
    common = SourceOptions(options.fps, options.stall_timeout_s, options.properties)
    white_levels = [bundle.manifest.preprocess.white_level_16bit for bundle in bundles]
    if options.images:
        return [ImageFiles(options.images, white_level_16bit=white_levels[0])]
    return [
        open_source(text, common, white_level_16bit=white_level)
        for text, white_level in zip(
            options.sources, _one_each(white_levels, len(options.sources)), strict=True
        )
    ]


def make_lines(
    options: RunOptions, sources: Sequence[Source], detectors: list[AnomalyDetector]
) -> list[Line]:
    """A line per source; debounce and drift are counted in each for itself."""
    return [
        Line(
            source,
            detector,
            FrameView(options.rotate_deg, options.roi),
            Debounce(*options.debounce) if options.debounce else None,
            drift_watch(options),
        )
        for source, detector in zip(sources, _one_each(detectors, len(sources)), strict=True)
    ]


def load_detectors(bundles: list[Bundle], options: DetectorOptions) -> list[AnomalyDetector]:
    """A detector per bundle; those with the same embedder share its session.

    Says on standard error what each really uses, when that was left open.
    """
    detectors: list[AnomalyDetector] = []
    for bundle in bundles:
        detector = load_detector(bundle, options, share_with=detectors)
        detectors.append(detector)
        if options.provider == "auto" or detector.profile:
            name = f"{bundle.manifest.name}: " if len(bundles) > 1 else ""
            say(name + described_settings(detector))
    return detectors


def load_detector(
    bundle: Bundle, options: DetectorOptions, *, share_with: Sequence[AnomalyDetector]
) -> AnomalyDetector:
    """The detector of one bundle; warnings go to standard error."""
    with warnings_on_stderr():
        return AnomalyDetector.load(
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
            engine=options.engine,
            share_with=share_with,
        )


def drift_watch(options: RunOptions) -> DriftWatch | None:
    """What watches one line; None where it was switched off."""
    window = DEFAULT_WINDOW if options.drift_window is None else options.drift_window
    return DriftWatch(window) if window else None


def say_what_is_not_watched(options: RunOptions, bundles: list[Bundle]) -> None:
    """Tell whoever asked for it of bundles that have nothing to compare with."""
    for bundle in bundles if options.drift_window else ():
        if bundle.manifest.scoring.baseline is None:
            say(
                f"{bundle.manifest.name}: the bundle holds no scores of normal images, so drift is not "
                "reported; `pcexport calibrate` adds them"
            )


def say_what_was_not_judged(options: RunOptions, lines: Sequence[Line]) -> None:
    """Tell at the end that silence about drift meant too few verdicts; not after a handful of images."""
    fewest = 1 if options.drift_window else SMALLEST_WINDOW
    short = [
        (line, line.drift)
        for line in lines
        if line.drift and not line.drift.judged and line.drift.verdicts >= fewest
    ]
    if short:
        had = ", ".join(f"{line.source.name} had {watch.verdicts:,}" for line, watch in short)
        say(f"drift was not judged: {had} verdicts, {short[0][1].needed:,} are needed (--drift-window twice)")


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


def reloaded_detectors(options: RunOptions, lines: int) -> list[AnomalyDetector]:
    """The bundles of a run opened again: a detector per line."""
    bundles = [Bundle.load(path) for path in bundle_paths(options)]
    return _one_each(load_detectors(bundles, options.detector), lines)


@contextlib.contextmanager
def closing(receiver: SinkSet) -> Iterator[None]:
    """Close the sinks at the end, whatever happens."""
    try:
        yield
    except BaseException:
        receiver.close(quiet=True)
        raise
    receiver.close()


@contextlib.contextmanager
def stopped_by_signals(
    pipeline: Pipeline, supervisor: Supervisor, reloader: Reloader
) -> Iterator[Callable[[], bool]]:
    """The first signal to stop lets frames on their way end well; a second one ends at once.

    SIGHUP changes the bundle, unless there is a terminal: then it is the word of one that was closed.

    Gives a function that says whether there was a signal to stop.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        supervisor.stopping()
        pipeline.stop()

    def reload(number: int, frame: FrameType | None) -> None:
        reloader.request()

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # What is ignored stays so: `nohup` asked for it.
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        hang_up = number == getattr(signal, "SIGHUP", None)
        signal.signal(number, reload if hang_up and not _has_terminal() else stop)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show library warnings as one plain line each."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        # At once: some of them say that minutes of waiting begin.
        warnings.showwarning = show
        yield


def say(text: str) -> None:
    """Tell a person, on standard error."""
    print(f"pcrun: {text}", file=sys.stderr, flush=True)


def _has_terminal() -> bool:
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return any(stream is not None and not stream.closed and stream.isatty() for stream in streams)


def _one_each(items: list[Any], count: int) -> list[Any]:
    return items * count if len(items) == 1 else items
