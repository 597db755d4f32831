"""The plain way to deploy PatchCore, for comparison: one ONNX graph holding embedder and exact kNN."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pcrun.bundle import Bundle
from pcrun.session import open_graph
from pcrun.types import FloatArray, UInt8Array


def open_one_graph(bundle: Bundle, *, threads: int) -> Callable[[UInt8Array], FloatArray] | None:
    """A function from (1, height, width, 3) uint8 to (patches,) distances, by one onnxruntime session.

    Returns:
        None where the `onnx` package is not installed: it is what graphs are put together with.
    """
    try:
        import onnx
    except ImportError:
        return None
    model = onnx.load_from_string(bundle.embedder)
    _append_knn(model, bundle)
    session = open_graph(model.SerializeToString(), provider="cpu", threads=threads)
    name = bundle.manifest.embedding.input_name

    def distances(image: UInt8Array) -> FloatArray:
        (result,) = session.run(["distances"], {name: image})
        found: FloatArray = result
        return found

    return distances


def _append_knn(model: Any, bundle: Bundle) -> None:
    """sqrt(|q|^2 - 2 q.r + |r|^2), the smallest per patch: what exporters put behind the embedder."""
    from onnx import TensorProto, helper, numpy_helper

    rows, spec = bundle.memory_bank, bundle.manifest.embedding
    constants = {
        "knn_bank": np.ascontiguousarray(rows.T),
        "knn_norms": np.einsum("ij,ij->i", rows, rows)[None],
        "knn_minus_two": np.array(-2, np.float32),
        "knn_zero": np.array(0, np.float32),
        "knn_last": np.array([1], np.int64),
        "knn_one": np.array([1], np.int64),
        "knn_shape": np.array([-1, spec.dim], np.int64),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Reshape", [spec.output_name, "knn_shape"], ["knn_q"]),
            helper.make_node("Mul", ["knn_q", "knn_q"], ["knn_squares"]),
            helper.make_node("ReduceSum", ["knn_squares", "knn_last"], ["knn_q_norms"]),
            helper.make_node("MatMul", ["knn_q", "knn_bank"], ["knn_products"]),
            helper.make_node("Mul", ["knn_products", "knn_minus_two"], ["knn_doubled"]),
            helper.make_node("Add", ["knn_doubled", "knn_q_norms"], ["knn_half"]),
            helper.make_node("Add", ["knn_half", "knn_norms"], ["knn_squared"]),
            helper.make_node("Max", ["knn_squared", "knn_zero"], ["knn_clipped"]),
            helper.make_node("Sqrt", ["knn_clipped"], ["knn_distances"]),
            helper.make_node("TopK", ["knn_distances", "knn_one"], ["knn_best", "knn_ids"], largest=0),
            helper.make_node("Squeeze", ["knn_best", "knn_last"], ["distances"]),
        ]
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("distances", TensorProto.FLOAT, [spec.patches]))
