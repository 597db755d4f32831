"""Running `embedder.onnx`.

One class per backend, providers in one table, nothing chosen or dropped in silence.
"""

import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcrun.backends.embedder import Embedder, GraphEmbedder, first_line
from pcrun.bundle.manifest import EmbeddingSpec
from pcrun.errors import BackendError
from pcrun.types import FloatArray, UInt8Array


@dataclass(frozen=True)
class ProviderSpec:
    """One choice of `--provider`.

    Attributes:
        name: what people say.
        onnxruntime_name: what onnxruntime calls it; None for OpenVINO's own runtime.
        extra: of the installation that brings it.
    """

    name: str
    onnxruntime_name: str | None
    extra: str


PROVIDERS = {
    spec.name: spec
    for spec in (
        ProviderSpec("cpu", "CPUExecutionProvider", "cpu"),
        ProviderSpec("cuda", "CUDAExecutionProvider", "gpu"),
        ProviderSpec("tensorrt", "TensorrtExecutionProvider", "gpu"),
        ProviderSpec("openvino", None, "openvino"),
    )
}
# A native engine (`--engine`), which TensorRT runs without onnxruntime.
ENGINE_PROVIDER = "tensorrt-engine"
GPU_PROVIDERS = ("cuda", "tensorrt", ENGINE_PROVIDER)
# What `auto` tries, in this order, among the providers this onnxruntime was built with.
_AUTO_ORDER = ("cuda", "cpu")
_ONNXRUNTIME_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
)
_INSTALL_LINES = "  pip install 'patchcore-edge[cpu]'\n  pip install 'patchcore-edge[gpu]'"


def open_embedder(
    model: bytes,
    spec: EmbeddingSpec,
    *,
    provider: str = "auto",
    threads: int = 0,
    precision: str | None = None,
    spinning: bool = True,
    beside: Path | None = None,
) -> Embedder:
    """Open `embedder.onnx` on a provider.

    Args:
        model: the checked bytes of the graph.
        spec: its input, output, batch and precision.
        provider: "auto" or a name of `PROVIDERS`.
        threads: threads within an operator; 0 is one per available core.
        precision: "bf16" computes an fp32 graph in bfloat16; None is the bundle's own precision.
        spinning: see `open_graph`; OpenVINO's threads have a way of their own.
        beside: the bundle; TensorRT's engines are kept beside it.

    Raises:
        BackendError: the provider is missing, does not work here, or does not compute in that precision.
    """
    provider = resolve_provider(provider)
    precision = resolve_precision(spec.precision, provider, precision)
    if provider == "openvino":
        from pcrun.backends.openvino_session import OpenVinoEmbedder

        return OpenVinoEmbedder(model, spec, threads=threads, precision=precision)
    if precision == "fp16" and provider == "cpu":
        warnings.warn(
            "the embedder is float16, for which onnxruntime has no operators on the CPU: it converts around "
            "each one, which is slower than float32. Expected a GPU; build with --precision fp32 or int8.",
            stacklevel=2,
        )
    if provider in GPU_PROVIDERS:
        from pcrun.backends.device_session import DeviceEmbedder

        options = _engine_options(model, precision, beside) if provider == "tensorrt" else None
        return DeviceEmbedder(
            model, spec, provider=provider, threads=threads, spinning=spinning, options=options
        )
    return OnnxEmbedder(model, spec, provider=provider, threads=threads, spinning=spinning)


def _engine_options(model: bytes, precision: str, beside: Path | None) -> dict[str, str]:
    from pcrun.backends.tensorrt_cache import tensorrt_options

    version = str(import_onnxruntime().__version__)
    return tensorrt_options(model, precision=precision, onnxruntime=version, beside=beside)


def search_provider(provider: str) -> str:
    """What onnxruntime runs the exact search on, beside an embedder on some provider.

    TensorRT's embedder is beside CUDA's search: an engine that holds the memory bank would be built anew for
    each bank, and might round its products. An embedder outside onnxruntime may be beside an onnxruntime
    without CUDA.
    """
    if provider in ("cuda", "tensorrt"):
        return "cuda"
    if provider == ENGINE_PROVIDER and PROVIDERS["cuda"].onnxruntime_name in _available(import_onnxruntime()):
        return "cuda"
    return "cpu"


def resolve_precision(stored: str, provider: str, wanted: str | None = None) -> str:
    """The precision in which a provider runs a bundle.

    Args:
        stored: the bundle's.
        provider: a name of `PROVIDERS`.
        wanted: another one, or None for the bundle's.

    Raises:
        BackendError: the bundle or the provider does not allow it.
    """
    precision = wanted or stored
    if precision != stored and (stored, precision) != ("fp32", "bf16"):
        raise BackendError(
            f"The bundle's embedder computes in {stored}, {precision} was asked for. Expected {stored}; only "
            "an fp32 bundle can also run in bf16. Leave --precision out, or build the bundle with "
            f"`pcexport build --precision {precision}`."
        )
    if precision == "bf16" and provider != "openvino":
        raise BackendError(
            f"Provider {provider!r} does not compute in bf16. Expected `--provider openvino`, the only one "
            "that does; or use a bundle built with `pcexport build --precision fp32`."
        )
    return precision


class OnnxEmbedder(GraphEmbedder):
    """`embedder.onnx` in onnxruntime."""

    def __init__(
        self,
        model: bytes,
        spec: EmbeddingSpec,
        *,
        provider: str = "auto",
        threads: int = 0,
        spinning: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Create the session.

        Args:
            model: the checked bytes of the graph.
            spec: its input, output and batch.
            provider: "cpu", "cuda", "tensorrt" or "auto" (CUDA where the installed onnxruntime has it, else
                the CPU).
            threads: threads within an operator; 0 is one per available core.
            spinning: see `open_graph`.
            options: of the provider.

        Raises:
            BackendError: onnxruntime or the provider is missing or does not work here.
        """
        super().__init__(spec, threads=threads)
        self.provider = resolve_provider(provider)
        self.precision = resolve_precision(spec.precision, self.provider)
        self._session = open_graph(
            model, provider=self.provider, threads=self.threads, spinning=spinning, options=options
        )

    def _compute(self, images: UInt8Array) -> FloatArray:
        try:
            outputs = self._session.run([self._spec.output_name], {self._spec.input_name: images})
        except Exception as error:  # onnxruntime raises its own unexported types
            raise BackendError(f"onnxruntime failed on {self.provider}: {first_line(error)}") from error
        output: FloatArray = outputs[0]
        return output


def import_onnxruntime() -> Any:
    """Import onnxruntime, silenced: since 1.31 it reports each process over the network unless told not to.

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
    # Read while it is imported; the function that turns reports off comes after the first report.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported ({error}). It runs the embedder; install one of the two:\n"
            + _INSTALL_LINES
        ) from error
    return onnxruntime


def resolve_provider(provider: str) -> str:
    """The name of a provider that is installed; "auto" is the first of CUDA and the CPU.

    Raises:
        BackendError: there is no such provider, or it is not installed.
    """
    if provider == "openvino":
        return _resolve_openvino()
    onnxruntime = import_onnxruntime()
    available = [name for name, spec in PROVIDERS.items() if spec.onnxruntime_name in _available(onnxruntime)]
    if provider == "auto":
        return next(name for name in _AUTO_ORDER if name in available)
    if provider not in PROVIDERS:
        raise BackendError(f"Unknown provider {provider!r}. Expected one of: auto, {', '.join(PROVIDERS)}.")
    if provider not in available:
        raise BackendError(
            f"Provider {provider!r} is not in the installed onnxruntime {onnxruntime.__version__}, which "
            f"has: {', '.join(available)}. Install it with "
            f"`pip install 'patchcore-edge[{PROVIDERS[provider].extra}]'` in "
            "place of the other, or choose one of those."
        )
    return provider


def _resolve_openvino() -> str:
    # Looked for, not imported: that takes a fifth of a second and is left to the session.
    if importlib.util.find_spec("openvino") is None:
        raise BackendError(
            "Provider 'openvino' is not installed. Expected the package openvino; install it with "
            "`pip install 'patchcore-edge[openvino]'`, or choose another provider."
        )
    return "openvino"


def open_graph(
    model: bytes,
    *,
    provider: str,
    threads: int,
    spinning: bool = True,
    options: Mapping[str, str] | None = None,
) -> Any:
    """A session that runs a graph on the provider asked for and on no other.

    Args:
        model: a graph that was checked, or made here.
        provider: a resolved name of `PROVIDERS`.
        threads: within an operator.
        spinning: whether idle threads wait for work busily while the graph runs: quicker from one operator
            to the next. They never do so between runs, where search needs the cores.
        options: of the provider, beside those that are always set.

    Raises:
        BackendError: the provider does not work here, or cannot run the graph.
    """
    onnxruntime = import_onnxruntime()
    spec = PROVIDERS[provider]
    if spec.onnxruntime_name is None:
        raise ValueError(f"provider {provider!r} is not one of onnxruntime's")
    session = _open(onnxruntime, model, spec, _session_options(onnxruntime, threads, spinning), options or {})
    # onnxruntime goes on with the CPU when a GPU provider fails to start, with no more than a log line.
    if session.get_providers()[0] != spec.onnxruntime_name:
        raise BackendError(
            f"Provider {provider!r} was asked for, but onnxruntime started on {session.get_providers()[0]}. "
            "Expected a working driver and its libraries; repair them, or say `--provider cpu`."
        )
    return session


def _session_options(onnxruntime: Any, threads: int, spinning: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # Left alone they would spin on for milliseconds after a run.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Warnings about a provider that cannot start become the BackendError of `open_graph`.
    options.log_severity_level = 3
    return options


def _open(
    onnxruntime: Any, model: bytes, spec: ProviderSpec, session: Any, options: Mapping[str, str]
) -> Any:
    providers: list[Any] = [_with_options(spec, options)]
    if spec.name == "tensorrt":
        # The one way to keep this provider from TF32, which rounds to 10 bits (onnxruntime issue 26029).
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        providers.append(_with_options(PROVIDERS["cuda"], {}))
    if spec.name != "cpu":
        providers.append(PROVIDERS["cpu"].onnxruntime_name)
    try:
        # Without this onnxruntime goes on with another provider when one fails, with a print to stdout.
        return onnxruntime.InferenceSession(
            model, sess_options=session, providers=providers, enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises its own unexported types
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} cannot open the graph on {spec.name}: "
            f"{first_line(error)}. "
            "Expected a graph it supports; upgrade onnxruntime or build the bundle again."
        ) from error


def _with_options(spec: ProviderSpec, options: Mapping[str, str]) -> Any:
    # TF32 would round the products of distances to 10 bits without a word.
    always = {"use_tf32": "0"} if spec.name == "cuda" else {}
    chosen = {**always, **options}
    return (spec.onnxruntime_name, chosen) if chosen else spec.onnxruntime_name


def _available(onnxruntime: Any) -> list[str]:
    names: list[str] = onnxruntime.get_available_providers()
    return names


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
