"""Running `embedder.onnx`.

One class per backend, providers in one table, nothing chosen or dropped in silence.
"""

import importlib.metadata
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pcrun.errors import BackendError, BundleError
from pcrun.manifest import EMBEDDER_NAME, LARGEST_COMPONENT, EmbeddingSpec
from pcrun.threads import available_cores
from pcrun.types import FloatArray, UInt8Array


@dataclass(frozen=True)
class ProviderSpec:
    """One choice of `--provider`: onnxruntime's name for it and the extra that brings it."""

    name: str
    onnxruntime_name: str
    extra: str


PROVIDERS = {
    spec.name: spec
    for spec in (
        ProviderSpec("cpu", "CPUExecutionProvider", "cpu"),
        ProviderSpec("cuda", "CUDAExecutionProvider", "gpu"),
        ProviderSpec("tensorrt", "TensorrtExecutionProvider", "gpu"),
    )
}
# What `auto` tries, in this order, among the providers this onnxruntime was built with.
_AUTO_ORDER = ("cuda", "cpu")
_ONNXRUNTIME_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
)
_INSTALL_LINES = "  pip install 'patchcore-edge[cpu]'\n  pip install 'patchcore-edge[gpu]'"


class Embedder(Protocol):
    """Turns prepared images into patch embeddings."""

    provider: str

    def embed(self, images: UInt8Array) -> FloatArray:
        """Embed (batch, height, width, 3) uint8 RGB images; gives (batch, patches, dim) float32."""


class OnnxEmbedder:
    """`embedder.onnx` in onnxruntime."""

    def __init__(
        self, model: bytes, spec: EmbeddingSpec, *, provider: str = "auto", threads: int = 0
    ) -> None:
        """Create the session.

        Args:
            model: the checked bytes of the graph.
            spec: its input, output and batch.
            provider: "cpu", "cuda", "tensorrt" or "auto" (CUDA where the installed onnxruntime has it, else
                the CPU).
            threads: threads within an operator; 0 is one per available core.

        Raises:
            BackendError: onnxruntime or the provider is missing or does not work here.
        """
        if threads < 0:
            raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
        self._spec = spec
        self.threads = threads or available_cores()
        self._session, self.provider = _create_session(model, provider, self.threads)

    def embed(self, images: UInt8Array) -> FloatArray:
        """See `Embedder.embed`; a graph with a fixed batch is run in chunks, the last one padded."""
        batch = self._spec.batch
        if batch is None or len(images) == batch:
            return self._run(images)
        chunks = [self._run_padded(images[i : i + batch], batch) for i in range(0, len(images), batch)]
        return np.concatenate(chunks)

    def _run_padded(self, images: UInt8Array, batch: int) -> FloatArray:
        missing = batch - len(images)
        if missing == 0:
            return self._run(images)
        padded = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        return self._run(padded)[: len(images)]

    def _run(self, images: UInt8Array) -> FloatArray:
        try:
            outputs = self._session.run([self._spec.output_name], {self._spec.input_name: images})
            output: FloatArray = outputs[0]
        except Exception as error:  # onnxruntime raises its own unexported types
            raise BackendError(f"onnxruntime failed on {self.provider}: {_first_line(error)}") from error
        self._check_output(output, len(images))
        return output

    def _check_output(self, output: FloatArray, images: int) -> None:
        """What the graph announces is not what it must give: a NaN score would read as a normal image."""
        expected = (images, self._spec.patches, self._spec.dim)
        if output.shape != expected or output.dtype != np.float32:
            raise BundleError(
                f"{EMBEDDER_NAME} gives {output.dtype} {list(output.shape)}, the manifest says "
                f"float32 {list(expected)}. The files come from different builds; run `pcexport build` again."
            )
        # False for NaN too; beyond the limit squared distances overflow.
        if not (output.min() >= -LARGEST_COMPONENT and output.max() <= LARGEST_COMPONENT):
            raise BackendError(
                f"{EMBEDDER_NAME} gives values on {self.provider} that are not finite or too large. "
                "Expected patch embeddings; try `--provider cpu`, or build the bundle again."
            )


def import_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises:
        BackendError: none installed (the message holds the two pip lines) or several, which overwrite each
            other.
    """
    installed = [name for name in _ONNXRUNTIME_DISTRIBUTIONS if _is_installed(name)]
    if len(installed) > 1:
        raise BackendError(
            f"Several onnxruntime packages are installed ({', '.join(installed)}) and overwrite each other's "
            f"files. Expected exactly one; run `pip uninstall -y {' '.join(installed)}` and install one "
            "again:\n" + _INSTALL_LINES
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({error}). It runs the embedder; install one of the two:\n"
            + _INSTALL_LINES
        ) from error
    return onnxruntime


def _create_session(model: bytes, provider: str, threads: int) -> tuple[Any, str]:
    onnxruntime = import_onnxruntime()
    available = [name for name, spec in PROVIDERS.items() if spec.onnxruntime_name in _available(onnxruntime)]
    if provider == "auto":
        provider = next(name for name in _AUTO_ORDER if name in available)
    if provider not in PROVIDERS:
        raise BackendError(f"Unknown provider {provider!r}. Expected one of: auto, {', '.join(PROVIDERS)}.")
    spec = PROVIDERS[provider]
    if provider not in available:
        raise BackendError(
            f"Provider {provider!r} is not in the installed onnxruntime {onnxruntime.__version__}, which "
            f"has: {', '.join(available)}. Install it with `pip install 'patchcore-edge[{spec.extra}]'` in "
            "place of the other, or choose one of those."
        )
    session = _open(onnxruntime, model, spec, threads)
    # onnxruntime goes on with the CPU when a GPU provider fails to start, with no more than a log line.
    if session.get_providers()[0] != spec.onnxruntime_name:
        raise BackendError(
            f"Provider {provider!r} was asked for, but onnxruntime started on {session.get_providers()[0]}. "
            "Expected a working driver and its libraries; repair them, or say `--provider cpu`."
        )
    return session, provider


def _open(onnxruntime: Any, model: bytes, spec: ProviderSpec, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Warnings about a provider that cannot start become the BackendError above.
    options.log_severity_level = 3
    providers = [spec.onnxruntime_name]
    if spec.name == "tensorrt":
        providers.append(PROVIDERS["cuda"].onnxruntime_name)
    if spec.name != "cpu":
        providers.append(PROVIDERS["cpu"].onnxruntime_name)
    try:
        # Without this onnxruntime goes on with another provider when one fails, with a print to stdout.
        return onnxruntime.InferenceSession(
            model, sess_options=options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises its own unexported types
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} cannot open the embedder on {spec.name}: "
            f"{_first_line(error)}. "
            "Expected a graph it supports; upgrade onnxruntime or build the bundle again."
        ) from error


def _available(onnxruntime: Any) -> list[str]:
    names: list[str] = onnxruntime.get_available_providers()
    return names


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
