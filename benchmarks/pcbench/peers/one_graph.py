"""The plain way to deploy PatchCore, for comparison: one ONNX graph from the image to score and map.

Behind the embedder stand exact search, image score, and the map: what an exporter of the whole model would
put there, as few operators as we know how. The distance is sqrt(|q|^2 + min(|r|^2 - 2 q.r)), so that one
product with the bank and one pass over it are all that grows with the bank.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pcrun.backends.session import open_graph
from pcrun.bundle.bundle import Bundle
from pcrun.errors import PcError
from pcrun.scoring.heatmap import MapGeometry, gaussian_radius
from pcrun.scoring.open import map_geometry
from pcrun.search.onnx_write import MAX_MODEL_BYTES
from pcrun.types import AnyArray, FloatArray, Int64Array, UInt8Array

DISTANCES, IMAGE_SCORE, ANOMALY_MAP = "distances", "image_score", "anomaly_map"
# From here on the axes of ReduceMin are an input; before, an attribute.
_AXES_ARE_INPUTS = 18


def open_one_graph(bundle: Bundle, *, threads: int) -> Callable[[UInt8Array], FloatArray] | None:
    """A function from (1, height, width, 3) uint8 to (patches,) distances, by one onnxruntime session.

    Returns:
        None where the `onnx` package is not installed: it is what graphs are put together with.
    """
    try:
        import onnx  # noqa: F401
    except ImportError:
        return None
    session = open_graph(one_graph(bundle, whole=False), provider="cpu", threads=threads)
    name = bundle.manifest.embedding.input_name

    def distances(image: UInt8Array) -> FloatArray:
        (result,) = session.run([DISTANCES], {name: image})
        found: FloatArray = result
        return found

    return distances


def write_one_graph(bundle: Bundle, path: Path) -> None:
    """Write the whole graph: (1, height, width, 3) uint8 to `IMAGE_SCORE` and `ANOMALY_MAP`.

    Raises:
        ImportError: the `onnx` package is not installed.
        PcError: the bundle takes several images at a time, or is too large for one file.
    """
    path.write_bytes(one_graph(bundle, whole=True))


def one_graph(bundle: Bundle, *, whole: bool) -> bytes:
    """The embedder with what `whole` asks for behind it: score and map, or only `DISTANCES` (patches,)."""
    import onnx

    batch = bundle.manifest.embedding.batch
    if batch not in (None, 1):
        raise PcError(
            f"The bundle's graph takes {batch} images at a time. Expected one, as a camera gives them; build "
            "it with `--batch 1`."
        )
    if bundle.memory_bank.nbytes + len(bundle.embedder) > MAX_MODEL_BYTES:
        raise PcError("The memory bank is too large for one ONNX file. Expected less than 2 GiB together.")
    graph = _Graph(onnx.load_from_string(bundle.embedder))
    _append_search(graph, bundle)
    if not whole:
        return graph.finished({DISTANCES: [bundle.manifest.embedding.patches]})
    if bundle.neighbours is None:
        graph.add("ReduceMax", [DISTANCES], [IMAGE_SCORE], keepdims=0)
    else:
        _append_reweighting(graph, bundle.neighbours)
    geometry = map_geometry(bundle.manifest)
    _append_map(graph, geometry)
    return graph.finished({IMAGE_SCORE: [], ANOMALY_MAP: list(geometry.output_hw)})


class _Graph:
    """A model that is appended to; names begin with "whole_", so that none is taken twice."""

    def __init__(self, model: Any) -> None:
        self._model = model
        (self.opset,) = (found.version for found in model.opset_import if found.domain in ("", "ai.onnx"))

    def constant(self, name: str, value: AnyArray) -> str:
        """Add an initializer; gives its name."""
        from onnx import numpy_helper

        self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"whole_{name}"))
        return f"whole_{name}"

    def add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Add a node."""
        from onnx import helper

        self._model.graph.node.append(helper.make_node(operator, inputs, outputs, **attributes))

    def finished(self, outputs: dict[str, list[int]]) -> bytes:
        """The model with these float32 outputs in place of its own."""
        from onnx import TensorProto, helper

        del self._model.graph.output[:]
        for name, shape in outputs.items():
            self._model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        data: bytes = self._model.SerializeToString()
        return data


def _append_search(graph: _Graph, bundle: Bundle) -> None:
    """From patch embeddings to `DISTANCES` (patches,)."""
    rows, spec = bundle.memory_bank, bundle.manifest.embedding
    shape = graph.constant("shape", np.array([-1, spec.dim], np.int64))
    bank = graph.constant("bank", np.ascontiguousarray(-2 * rows.T))
    norms = graph.constant("norms", np.einsum("ij,ij->i", rows, rows)[None])
    last = graph.constant("last", np.array([1], np.int64))
    zero = graph.constant("zero", np.array(0, np.float32))
    graph.add("Reshape", [spec.output_name, shape], ["whole_queries"])
    graph.add("Gemm", ["whole_queries", bank, norms], ["whole_parts"])
    if graph.opset >= _AXES_ARE_INPUTS:
        graph.add("ReduceMin", ["whole_parts", last], ["whole_best"], keepdims=0)
    else:
        graph.add("ReduceMin", ["whole_parts"], ["whole_best"], axes=[1], keepdims=0)
    graph.add("Mul", ["whole_queries", "whole_queries"], ["whole_squares"])
    graph.add("ReduceSum", ["whole_squares", last], ["whole_query_norms"], keepdims=0)
    graph.add("Add", ["whole_best", "whole_query_norms"], ["whole_squared"])
    graph.add("Max", ["whole_squared", zero], ["whole_clipped"])
    graph.add("Sqrt", ["whole_clipped"], [DISTANCES])


def _append_reweighting(graph: _Graph, neighbours: AnyArray) -> None:
    """From distances to `IMAGE_SCORE` by Eq. 7, see `pcrun.scoring.scorer.reweighted_score`."""
    ids = graph.constant("neighbours", neighbours.astype(np.int64))
    first = graph.constant("first", np.array([0], np.int64))
    half = graph.constant("minus_half", np.array(-0.5, np.float32))
    graph.add("ArgMax", [DISTANCES], ["whole_worst"], axis=0, keepdims=0)
    graph.add("Gather", [DISTANCES, "whole_worst"], ["whole_distance"], axis=0)
    graph.add("Gather", ["whole_parts", "whole_worst"], ["whole_part"], axis=0)
    graph.add("ArgMin", ["whole_part"], ["whole_nearest"], axis=0, keepdims=0)
    graph.add("Gather", [ids, "whole_nearest"], ["whole_support_ids"], axis=0)
    # The bank is there once, times -2 and with an entry a column.
    graph.add("Gather", ["whole_bank", "whole_support_ids"], ["whole_support_doubled"], axis=1)
    graph.add("Mul", ["whole_support_doubled", half], ["whole_support"])
    graph.add("Gather", ["whole_queries", "whole_worst"], ["whole_patch"], axis=0)
    graph.add("Unsqueeze", ["whole_patch", "whole_last"], ["whole_patch_column"])
    graph.add("Sub", ["whole_support", "whole_patch_column"], ["whole_away"])
    graph.add("Mul", ["whole_away", "whole_away"], ["whole_away_squares"])
    graph.add("ReduceSum", ["whole_away_squares", first], ["whole_away_squared"], keepdims=0)
    graph.add("Sqrt", ["whole_away_squared"], ["whole_to_support"])
    graph.add("ReduceMax", ["whole_to_support"], ["whole_farthest"], keepdims=0)
    graph.add("Max", ["whole_farthest", "whole_distance"], ["whole_largest"])
    graph.add("Sub", ["whole_to_support", "whole_largest"], ["whole_to_support_less"])
    graph.add("Exp", ["whole_to_support_less"], ["whole_exponentials"])
    graph.add("ReduceSum", ["whole_exponentials", first], ["whole_sum"], keepdims=0)
    graph.add("Sub", ["whole_distance", "whole_largest"], ["whole_distance_less"])
    graph.add("Exp", ["whole_distance_less"], ["whole_exponential"])
    graph.add("Div", ["whole_exponential", "whole_sum"], ["whole_share"])
    one = graph.constant("one", np.array(1, np.float32))
    graph.add("Sub", [one, "whole_share"], ["whole_rest"])
    graph.add("Max", ["whole_rest", "whole_zero"], ["whole_weight"])
    graph.add("Mul", ["whole_weight", "whole_distance"], [IMAGE_SCORE])


def _append_map(graph: _Graph, geometry: MapGeometry) -> None:
    """From distances to `ANOMALY_MAP`: bilinear, then a Gaussian along each axis, edges reflected."""
    grid = graph.constant("grid", np.array([1, 1, *geometry.grid_hw], np.int64))
    sizes = graph.constant("sizes", np.array([1, 1, *geometry.output_hw], np.int64))
    graph.add("Reshape", [DISTANCES, grid], ["whole_grid_scores"])
    graph.add(
        "Resize",
        ["whole_grid_scores", "", "", sizes],
        ["whole_upsampled"],
        mode="linear",
        coordinate_transformation_mode="half_pixel",
    )
    heat = "whole_upsampled"
    if geometry.sigma_px > 0:
        radius = gaussian_radius(geometry.sigma_px)
        kernel = cv2.getGaussianKernel(2 * radius + 1, geometry.sigma_px).astype(np.float32)
        for axis, size in zip((2, 3), geometry.output_hw, strict=True):
            shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
            weights = graph.constant(f"kernel{axis}", kernel.reshape(shape))
            # ONNX's reflection leaves the edge out; ours, OpenCV's BORDER_REFLECT, repeats it.
            positions = graph.constant(f"reflected{axis}", _reflected(size, radius))
            graph.add("Gather", [heat, positions], [f"whole_padded{axis}"], axis=axis)
            graph.add("Conv", [f"whole_padded{axis}", weights], [f"whole_smoothed{axis}"])
            heat = f"whole_smoothed{axis}"
    graph.add("Reshape", [heat, graph.constant("map", np.array(geometry.output_hw, np.int64))], [ANOMALY_MAP])


def _reflected(size: int, radius: int) -> Int64Array:
    """Where the pixels -radius .. size + radius - 1 of an axis come from."""
    positions = np.arange(-radius, size + radius) % (2 * size)
    return np.minimum(positions, 2 * size - 1 - positions).astype(np.int64)
