"""`pcrun tune`: which settings give this bundle's certified verdict fastest on this machine.

Everything is measured end to end, from the decoded image to verdict, map and regions: search engines and the
embedder share cores and caches, and what is fastest alone need not be fastest together.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pcrun.backends.session import resolve_precision, resolve_provider
from pcrun.bundle.bundle import Bundle
from pcrun.detector import AnomalyDetector, choose_thresholds, missing_limit
from pcrun.errors import BackendError, SourceError
from pcrun.images.image_io import decode_image
from pcrun.search import EXACT_SEARCH_NAMES
from pcrun.tuning.profile import DeviceProfile, ProfileKey, RunSettings, Trial
from pcrun.tuning.settings import default_settings, possible_searches
from pcrun.types import UInt8Array

EF_CANDIDATES = (1, 2, 4, 8, 16)
GOLDEN = "golden samples"
_WARM_UP_IMAGES = 3
# A setting is given up when its first images take this many times as long as the best so far.
_HOPELESS = 3.0
_FINALISTS = 3
_FINAL_ROUNDS = 3
# Another arithmetic than the build's must be faster by this factor.
_WORTH_A_CHANGE = 1.1

Say = Callable[[Trial], None]


@dataclass(frozen=True)
class TuneContent:
    """What is scored: decoded images, and what to call them in reports."""

    images: tuple[UInt8Array, ...]
    name: str


def golden_content(bundle: Bundle) -> TuneContent:
    """The bundle's own golden samples, normal ones only: those a line sees nearly always.

    Raises:
        BundleError: the bundle holds none.
        SourceError: none of them is normal.
    """
    samples = [sample for sample in bundle.golden_samples().samples if sample.label == "normal"]
    if not samples:
        raise SourceError("The bundle holds no normal golden sample. Give images to measure with --images.")
    return TuneContent(tuple(decode_image(bundle.read(sample.file)) for sample in samples), GOLDEN)


def tune(
    bundle: Bundle,
    content: TuneContent,
    *,
    provider: str = "auto",
    precision: str | None = None,
    threads: int = 0,
    images: int = 40,
    say: Say = lambda _: None,
) -> DeviceProfile:
    """Measure settings and choose the fastest; all of them give the same verdicts.

    Args:
        bundle: what will run.
        content: what to score; shown again and again until there are enough.
        provider: "auto" or a name; the profile is valid for the same request.
        precision: None is the bundle's.
        threads: at most so many; 0 is one per available core.
        images: scored per trial.
        say: called with each trial when it is done.

    Raises:
        BackendError: the provider does not work here.
    """
    bench = _Bench(bundle, content, images, say)
    start = default_settings(bundle, provider=resolve_provider(provider), threads=threads)
    chosen = resolve_precision(start.precision, start.provider, precision)
    start = dataclasses.replace(start, precision=chosen)
    for settings in _engines(bundle, start):
        bench.measure(settings)
    for settings in _threads(bench.best().settings):
        bench.measure(settings)
    # Embedder threads that sleep between operators, whether one or several search threads are best with that.
    for trial in bench.ranked()[:2]:
        bench.measure(dataclasses.replace(trial.settings, spinning=False))
    for settings in _embedders(bench.best().settings, provider):
        bench.measure(settings)
    best = bench.final(start)
    return DeviceProfile(
        key=ProfileKey.here(bundle, provider=provider),
        settings=best.settings,
        median_ms=best.median_ms,
        p90_ms=best.p90_ms,
        images=images,
        content=content.name,
        trials=tuple(bench.trials),
    )


def _engines(bundle: Bundle, start: RunSettings) -> Iterator[RunSettings]:
    """The default first: what comes later is given up early against it."""
    yield start
    for search in possible_searches(bundle):
        for ef in EF_CANDIDATES if search == "hnsw" else (None,):
            settings = dataclasses.replace(start, search=search, ef=ef)
            if settings != start:
                yield settings


def _threads(best: RunSettings) -> Iterator[RunSettings]:
    """Other numbers of threads, in pairs: what the embedder leaves free is the search's."""
    for threads in _fewer(best.threads)[:2]:
        for search_threads in _fewer(best.search_threads):
            settings = dataclasses.replace(best, threads=threads, search_threads=search_threads)
            if settings != best:
                yield settings


def _fewer(threads: int) -> list[int]:
    """A number of threads, the half and the quarter of it, and one."""
    return sorted({threads, max(1, threads // 2), max(1, threads // 4), 1}, reverse=True)


def _embedders(best: RunSettings, provider: str) -> Iterator[RunSettings]:
    """Other backends for the embedder, where the choice was left open.

    One that is not installed, or changes a verdict on a golden sample, is no choice: it cannot be opened.
    """
    if provider == "auto" and best.provider == "cpu":
        yield dataclasses.replace(best, provider="openvino")
        if best.precision == "fp32":
            yield dataclasses.replace(best, provider="openvino", precision="bf16")


class _Bench:
    """Measures settings and keeps what came out."""

    def __init__(self, bundle: Bundle, content: TuneContent, images: int, say: Say) -> None:
        self._bundle = bundle
        repeats = -(-images // len(content.images))
        self._images = (content.images * repeats)[:images]
        # Without thresholds in the bundle nothing is above them, as in a run that is given none.
        limit = missing_limit(bundle.manifest)
        self._limits = choose_thresholds(bundle.manifest, limit, limit)
        self._say = say
        self.trials: list[Trial] = []

    def measure(self, settings: RunSettings) -> None:
        """Measure one setting, unless it turns out hopeless or cannot be opened."""
        try:
            detector = self._open(settings)
        except BackendError:
            if not self.trials:  # what was asked for does not work
                raise
            return
        first = _milliseconds(detector, self._images[:_WARM_UP_IMAGES])
        hopeless = self.trials and min(first) > _HOPELESS * self.best().median_ms
        samples = first if hopeless else _milliseconds(detector, self._images)
        trial = Trial(settings, float(np.median(samples)), float(np.percentile(samples, 90)))
        self.trials.append(trial)
        self._say(trial)

    def best(self) -> Trial:
        """The fastest so far."""
        return self.ranked()[0]

    def ranked(self) -> list[Trial]:
        """All measured, the fastest first."""
        return sorted(self.trials, key=lambda trial: trial.median_ms)

    def final(self, start: RunSettings) -> Trial:
        """The fastest of the best few, measured again in turns: a drift of the machine reaches all.

        The build's arithmetic stays unless another is faster by a tenth: it is the one that was calibrated.
        """
        ranked = self.ranked()
        finalists = ranked[:_FINALISTS]
        finalists += [trial for trial in ranked if _same_arithmetic(trial, start)][:1]
        finalists = list(dict.fromkeys(finalists))
        detectors = [self._open(trial.settings) for trial in finalists]
        samples: list[list[float]] = [[] for _ in finalists]
        for _ in range(_FINAL_ROUNDS):
            for detector, taken in zip(detectors, samples, strict=True):
                _milliseconds(detector, self._images[:_WARM_UP_IMAGES])
                taken += _milliseconds(detector, self._images)
        trials = [
            Trial(finalist.settings, float(np.median(taken)), float(np.percentile(taken, 90)))
            for finalist, taken in zip(finalists, samples, strict=True)
        ]
        unchanged = [trial for trial in trials if _same_arithmetic(trial, start)]
        changed = [trial for trial in trials if not _same_arithmetic(trial, start)]
        best = min(unchanged, key=lambda trial: trial.median_ms)
        challenger = min(changed, key=lambda trial: trial.median_ms, default=best)
        return challenger if challenger.median_ms * _WORTH_A_CHANGE < best.median_ms else best

    def _open(self, settings: RunSettings) -> AnomalyDetector:
        exactness = "full" if settings.search in EXACT_SEARCH_NAMES else "mask"
        return AnomalyDetector.with_settings(self._bundle, settings, limits=self._limits, exactness=exactness)


def _same_arithmetic(trial: Trial, start: RunSettings) -> bool:
    settings = trial.settings
    return (settings.provider, settings.precision) == (start.provider, start.precision)


def _milliseconds(detector: AnomalyDetector, images: Sequence[UInt8Array]) -> list[float]:
    samples = []
    for image in images:
        started = time.perf_counter()
        detector(image)
        samples.append((time.perf_counter() - started) * 1e3)
    return samples
