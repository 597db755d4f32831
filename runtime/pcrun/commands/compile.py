"""The job behind `pcrun compile`: a native engine for this machine, measured before it is written."""

import dataclasses
import time
from pathlib import Path

from pcrun.backends.engine_file import Engine, engine_facts, measured, write_engine
from pcrun.backends.session import ENGINE_PROVIDER
from pcrun.backends.tensorrt_build import build_engine, engine_precision
from pcrun.bundle.bundle import Bundle
from pcrun.commands.run import find_bundle, say, warnings_on_stderr
from pcrun.commands.support import EXIT_OK, print_json
from pcrun.detector import NO_THRESHOLD, AnomalyDetector
from pcrun.files import make_folder
from pcrun.machine.gpu import find_gpu, import_tensorrt
from pcrun.machine.threads import available_cores
from pcrun.records import to_jsonable
from pcrun.tuning.profile import RunSettings


def compile_here(
    bundle: Path | None, *, precision: str | None, output: Path, allow_flips: bool, as_json: bool
) -> int:
    """Build an engine, score the golden samples with it, and write it; returns the exit code."""
    opened = Bundle.load(find_bundle(bundle))
    # Everything that can be known beforehand, before minutes of building.
    tensorrt, gpu = import_tensorrt(), find_gpu()
    chosen = engine_precision(opened.manifest.embedding.precision, precision, tensorrt)
    make_folder(output.parent)
    say(f"TensorRT {tensorrt.__version__} builds an engine in {chosen} for {gpu.name}; this takes minutes")
    started = time.perf_counter()
    data, most_images = build_engine(opened, chosen)
    seconds = time.perf_counter() - started
    facts = engine_facts(opened, data, precision=chosen, most_images=most_images)
    facts = dataclasses.replace(facts, flips_allowed=allow_flips)
    with warnings_on_stderr():
        engine = measured_engine(Engine(output, data, facts), opened)
    header = write_engine(engine)
    if as_json:
        print_json({"seconds": round(seconds, 1), **to_jsonable(engine.facts)})
    else:
        _print_engine(engine, header, seconds)
    return EXIT_OK


def measured_engine(engine: Engine, bundle: Bundle) -> Engine:
    """The engine with its effect on the golden samples in its header.

    Raises:
        BackendError: a verdict changes or a score moves too far, and that is not allowed.
        BundleError: the bundle holds no golden samples.
    """
    cores = available_cores()
    detector = AnomalyDetector.with_settings(
        bundle,
        RunSettings(ENGINE_PROVIDER, engine.facts.precision, "exact", None, cores, cores),
        limits=(NO_THRESHOLD, NO_THRESHOLD),
        exactness="full",
        engine=engine,
    )
    change = detector.change
    assert change is not None  # no bundle is built with an engine
    return measured(
        engine,
        samples=change.samples,
        largest_difference=change.largest_difference,
        flips=change.flips,
    )


def _print_engine(engine: Engine, header: Path, seconds: float) -> None:
    facts = engine.facts
    print(f"{engine.path}: {facts.bytes / 1e6:.1f} MB in {facts.precision}, built in {seconds:.0f} s")
    print(f"for {facts.gpu} (compute capability {facts.compute_capability}), TensorRT {facts.tensorrt}")
    verdicts = f"{len(facts.flips)} verdicts change" if facts.flips else "all verdicts are the same"
    print(
        f"image scores of the {facts.golden_samples} golden samples differ by at most "
        f"{facts.largest_difference:.2g} (relative), {verdicts}"
    )
    for flip in facts.flips:
        print(f"  {flip}")
    print(f"its header is {header}; keep both together")
