"""Running `embedder.onnx` in OpenVINO's own runtime, for Intel (and compatible) processors."""

import sys
import threading
from typing import Any

from pcrun.backends.embedder import GraphEmbedder, first_line
from pcrun.bundle.manifest import EmbeddingSpec
from pcrun.errors import BackendError
from pcrun.types import FloatArray, UInt8Array

_DEVICE = "CPU"
_INSTALL_LINE = "pip install 'patchcore-edge[openvino]'"
# Importing this part of openvino, which converts models, reports the import over the network, unasked.
_REPORTING_MODULE = "openvino.tools.ovc"


class OpenVinoEmbedder(GraphEmbedder):
    """`embedder.onnx` on the processor, by OpenVINO."""

    provider = "openvino"

    def __init__(
        self, model: bytes, spec: EmbeddingSpec, *, threads: int = 0, precision: str = "fp32"
    ) -> None:
        """Compile the graph.

        Args:
            model: the checked bytes of the graph.
            spec: its input, output and batch.
            threads: 0 is one per available core.
            precision: "bf16" computes a float32 graph in bfloat16; all others compute as the graph says.

        Raises:
            BackendError: openvino is missing or cannot run the graph, or this processor has no bfloat16.
        """
        super().__init__(spec, threads=threads)
        self.precision = precision
        openvino = import_openvino()
        # Always said: by itself OpenVINO takes bfloat16 for a float32 graph where the processor has it.
        hint = "bf16" if precision == "bf16" else "f32"
        self._request = _compile(openvino, model, hint, self.threads).create_infer_request()
        # A request holds one inference; the detector may be called from several threads.
        self._lock = threading.Lock()

    def _compute(self, images: UInt8Array) -> FloatArray:
        try:
            with self._lock:
                # Outputs are copied: the next inference writes where these lie.
                results = self._request.infer({self._spec.input_name: images}, share_inputs=True)
        except Exception as error:  # OpenVINO raises RuntimeError, TypeError and others
            raise BackendError(f"openvino failed on the embedder: {first_line(error)}") from error
        output: FloatArray = results[self._spec.output_name]
        return output


def import_openvino() -> Any:
    """Import openvino, without the part of it that reports home.

    Raises:
        BackendError: it is not installed, or does not work here.
    """
    if "openvino" not in sys.modules:
        # None makes the import of that part fail, which openvino expects and passes over.
        sys.modules[_REPORTING_MODULE] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise BackendError(
            f"openvino cannot be imported ({error}). It runs the embedder for `--provider openvino`; "
            f"install it with `{_INSTALL_LINE}`, or choose another provider."
        ) from error
    finally:
        # Whoever wants that part may import it.
        if sys.modules.get(_REPORTING_MODULE, ...) is None:
            del sys.modules[_REPORTING_MODULE]
    return openvino


def _compile(openvino: Any, model: bytes, hint: str, threads: int) -> Any:
    core = openvino.Core()
    if hint == "bf16" and "BF16" not in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            "This processor has no bfloat16. Expected one with AVX512_BF16 or AMX for precision bf16; use "
            "another machine, or a bundle built with `pcexport build --precision fp32`."
        )
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # The cores are shared with the search, which runs while the embedder waits.
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": "",
    }
    try:
        compiled = core.compile_model(core.read_model(model), _DEVICE, options)
        actual = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    except Exception as error:  # OpenVINO raises RuntimeError and others
        raise BackendError(
            f"openvino {openvino.__version__} cannot open the embedder: {first_line(error)}. "
            "Expected a graph it supports; upgrade openvino or choose another provider."
        ) from error
    if actual != hint:
        raise BackendError(
            f"Precision {hint} was asked for, but openvino computes in {actual}. Expected what was asked "
            "for; upgrade openvino, or choose another --precision."
        )
    return compiled
