"""Choosing how a detector runs on this device: asked for, measured before, or a good start."""

import dataclasses
import warnings

from pcrun.backends.session import ENGINE_PROVIDER, resolve_precision, resolve_provider, search_provider
from pcrun.bundle.bundle import Bundle
from pcrun.errors import BackendError
from pcrun.machine.threads import available_cores
from pcrun.search import EXACT_SEARCH_NAMES, SEARCH_NAMES
from pcrun.search.eight_bit import quantised_problem
from pcrun.search.hnsw import hnswlib_problem
from pcrun.tuning.profile import DeviceProfile, RunSettings, find_profile

# Up to this many bytes of quantised rows, products with all of them beat the walk through an HNSW graph
# (docs/architecture.md holds the measurement); `pcrun tune` measures it on the device.
_QUANTISED_BYTES = 5 << 19


def choose_settings(
    bundle: Bundle,
    *,
    provider: str,
    precision: str | None = None,
    threads: int,
    exactness: str,
    search: str,
    ef: int | None,
    use_profile: bool,
    engine_precision: str | None = None,
) -> tuple[RunSettings, DeviceProfile | None]:
    """Settings for a run: what was asked for, else the device profile's, else a good start.

    Args:
        bundle: what will run.
        provider: "auto" or a name.
        precision: None is the profile's, else the bundle's.
        threads: 0 leaves them open.
        exactness: "full" needs an exact engine.
        search: "auto" or a name.
        ef: None leaves it open; a number asks for "hnsw".
        use_profile: whether a stored profile may be used.
        engine_precision: of the native engine that runs the embedder; None without one.

    Returns:
        The settings, and the profile if there was one.

    Raises:
        BackendError: the provider, its precision or the engine cannot be used here.
        ValueError: an unknown engine, or one that does not fit the exactness.
    """
    if threads < 0:
        raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
    search = _asked_search(search, ef, exactness)
    profile = None
    if engine_precision is not None:
        settings = _engine_settings(bundle, provider, precision, engine_precision, search)
    else:
        profile = find_profile(bundle, provider=provider) if use_profile else None
        if profile:
            settings = profile.settings
        else:
            settings = default_settings(bundle, provider=resolve_provider(provider), search=search)
        stored = bundle.manifest.embedding.precision
        precision = resolve_precision(stored, settings.provider, precision or settings.precision)
        settings = dataclasses.replace(settings, precision=precision)
    if exactness == "full" and search == "auto" and settings.search not in EXACT_SEARCH_NAMES:
        search = "exact"
    if search not in ("auto", settings.search):
        settings = dataclasses.replace(settings, search=search, ef=None)
    if threads:
        settings = dataclasses.replace(settings, threads=threads, search_threads=threads)
    if settings.search == "hnsw":
        settings = dataclasses.replace(settings, ef=ef or settings.ef or bundle.manifest.search.ef)
    return settings, profile


def _asked_search(search: str, ef: int | None, exactness: str) -> str:
    """The engine asked for: a search width asks for HNSW.

    Raises:
        ValueError: there is no such engine, or it does not fit the width or the exactness.
    """
    if search not in ("auto", *SEARCH_NAMES):
        raise ValueError(f"search must be auto or one of {', '.join(SEARCH_NAMES)}, got {search!r}")
    if ef is not None and ef < 1:
        raise ValueError(f"ef must be at least 1, got {ef}")
    if ef is not None and search == "auto":
        search = "hnsw"
    if ef is not None and search != "hnsw":
        raise ValueError(f"ef is the search width of 'hnsw', got search {search!r}")
    if exactness == "full" and search not in ("auto", *EXACT_SEARCH_NAMES):
        raise ValueError(f"exactness 'full' needs an exact search, got search {search!r}")
    return search


def _engine_settings(
    bundle: Bundle, provider: str, wanted: str | None, precision: str, search: str
) -> RunSettings:
    """Settings around a native engine, which has its provider and its precision in it."""
    if provider not in ("auto", "tensorrt"):
        raise BackendError(
            f"An engine runs in TensorRT, provider {provider!r} was asked for. Expected tensorrt or none; "
            "leave --engine or --provider out."
        )
    if wanted not in (None, precision):
        raise BackendError(
            f"The engine computes in {precision}, {wanted} was asked for. Expected its own precision; leave "
            "--precision out, or compile another engine."
        )
    settings = default_settings(bundle, provider=ENGINE_PROVIDER, search=search)
    return dataclasses.replace(settings, precision=precision)


def default_settings(bundle: Bundle, *, provider: str, threads: int = 0, search: str = "auto") -> RunSettings:
    """What is a good start on a machine that was never measured; 0 threads is one per available core."""
    cores = threads or available_cores()
    if search == "auto":
        search = default_search(bundle, provider=provider)
    ef = bundle.manifest.search.ef if search == "hnsw" else None
    return RunSettings(provider, bundle.manifest.embedding.precision, search, ef, cores, cores)


def default_search(bundle: Bundle, *, provider: str) -> str:
    """The engine to use where nothing was measured or asked for.

    Warns where the bundle's index cannot be used here.
    """
    if search_provider(provider) == "cuda":
        return "exact_graph"
    spec = bundle.manifest
    if spec.memory_bank.index is not None and hnswlib_problem():
        warnings.warn(
            f"{hnswlib_problem()}: another search is used, with the same verdicts; large banks are slower.",
            stacklevel=2,
        )
    possible = possible_searches(bundle)
    size = spec.memory_bank.count * (spec.search.dim or spec.memory_bank.dim)
    if "quantised" in possible and (size <= _QUANTISED_BYTES or "hnsw" not in possible):
        return "quantised"
    return "hnsw" if "hnsw" in possible else "exact"


def possible_searches(bundle: Bundle) -> list[str]:
    """Engines that this bundle and this machine allow, in the order of `SEARCH_NAMES`."""
    possible = {"exact", "exact_graph"}
    if quantised_problem(bundle.memory_bank) is None:
        possible.add("quantised")
    if bundle.manifest.memory_bank.index is not None and hnswlib_problem() is None:
        possible.add("hnsw")
    return [name for name in SEARCH_NAMES if name in possible]
