"""Other arithmetic than float32, and shorter embeddings: from the traced graph to the deployed one."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pcexport.config import BuildConfig
from pcexport.errors import BuildError
from pcexport.graph.float16 import to_float16
from pcexport.graph.network import TracedNetwork
from pcexport.graph.quantise import quantise
from pcexport.graph.reduction import fit_reduction, fold_reduction
from pcrun.backends.embedder import Embedder
from pcrun.backends.session import open_embedder, resolve_precision, resolve_provider
from pcrun.types import UInt8Array

REFERENCE = "fp32"
# Patches of so many images fit the PCA: 50,000 at 224 px.
_PROJECTION_IMAGES = 64
_LATENCY_ROUNDS = 5
_LATENCY_CALLS = 6
_WARM_UP_CALLS = 2

# Gives so many prepared normal images, evenly spread, one after another.
SampleImages = Callable[[int], Iterable[UInt8Array]]


def changes_embeddings(config: BuildConfig) -> bool:
    """Whether the deployed graph gives other embeddings than the traced one."""
    return config.precision != REFERENCE or config.project is not None


def require_precision(config: BuildConfig) -> None:
    """Refuse, before any work, what cannot be built.

    Raises:
        BackendError: the provider does not compute in that precision.
        BuildError: the keys contradict each other.
    """
    resolve_precision(config.precision, resolve_provider(config.provider))
    if changes_embeddings(config) and config.embed_with == "torch":
        raise BuildError(
            "embed_with torch embeds with the float32 network, but --precision or --project change what the "
            "deployed graph gives. Expected one arithmetic for bank and queries; leave --embed-with out."
        )


def deployed_network(
    network: TracedNetwork, config: BuildConfig, sample: SampleImages
) -> tuple[TracedNetwork, Embedder]:
    """The graph in the configured precision, projected where asked for, and the session that runs it.

    Raises:
        BuildError: the graph cannot be converted, or has too few dimensions to project.
        BackendError: the provider cannot run it.
    """
    spec = dataclasses.replace(network.spec, precision=config.precision)
    onnx = network.onnx
    if config.precision == "int8":
        images, signed = sample(config.quantisation_images), config.int8_activations == "signed"
        onnx = quantise(onnx, images, batch=spec.batch, signed=signed)
    elif config.precision == "fp16":
        onnx = to_float16(onnx)
    embedder = open_embedder(onnx, spec, provider=config.provider, threads=config.threads)
    if config.project is not None:
        _require_fewer(config.project, spec.dim)
        onnx = fold_reduction(onnx, *fit_reduction(embedder, sample(_PROJECTION_IMAGES), config.project))
        spec = dataclasses.replace(spec, dim=config.project, projected_from=spec.dim)
        embedder = open_embedder(onnx, spec, provider=config.provider, threads=config.threads)
    return dataclasses.replace(network, onnx=onnx, spec=spec), embedder


def _require_fewer(wanted: int, dim: int) -> None:
    if wanted >= dim:
        raise BuildError(
            f"project {wanted} is not fewer than the {dim} dimensions of a patch embedding. Expected a "
            "smaller number; or leave --project out."
        )


def measure_latency(embedders: dict[str, Embedder], images: Sequence[UInt8Array]) -> dict[str, float]:
    """Median milliseconds per image of each embedder, in turns: a drift of the machine reaches all."""
    samples: dict[str, list[float]] = {name: [] for name in embedders}
    for _ in range(_LATENCY_ROUNDS):
        for name, embedder in embedders.items():
            taken = [_milliseconds(embedder, images[i % len(images)]) for i in range(_LATENCY_CALLS)]
            samples[name] += taken[_WARM_UP_CALLS:]
    return {name: round(float(np.median(taken)), 3) for name, taken in samples.items()}


def _milliseconds(embedder: Embedder, image: UInt8Array) -> float:
    started = time.perf_counter()
    embedder.embed(image[None])
    return (time.perf_counter() - started) * 1e3
