"""Shorter patch embeddings: a PCA inside the graph, as a 1x1 convolution before the patches are laid out."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pcexport.errors import BuildError
from pcexport.graph.rewrite import OUTPUT_NAME, finished, replace_initializers
from pcexport.memory_bank.projection import principal_components
from pcexport.memory_bank.store import ArrayRows
from pcrun.backends.embedder import Embedder
from pcrun.types import FloatArray, UInt8Array

_NAME = "projection"


def fit_reduction(
    embedder: Embedder, images: Iterable[UInt8Array], dim: int
) -> tuple[FloatArray, FloatArray]:
    """Fit a PCA on the patches of some normal images.

    On the patches as they come, not on the memory bank: the coreset takes rare patches as often as common
    ones, and directions fitted to it found fewer defects (docs/architecture.md).

    Args:
        embedder: gives the embeddings to be shortened.
        images: (height, width, 3) uint8 RGB each, prepared.
        dim: wanted dimensions, fewer than the embeddings have.

    Returns:
        (D,) float32 mean and (D, dim) float32 orthonormal columns, those of largest variance.
    """
    rows = np.concatenate([embedder.embed(image[None])[0] for image in images])
    _, components = principal_components(ArrayRows(rows))
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean, np.ascontiguousarray(components[:, :dim], np.float32)


def fold_reduction(model: bytes, mean: FloatArray, components: FloatArray) -> bytes:
    """Let the graph give (embedding - mean) times the components.

    The mean changes no distance; without it the numbers are smaller, and keep their digits.

    Args:
        model: a graph that lays out (batch, D, grid_h, grid_w) features as (batch, patches, D).
        mean: (D,) float32.
        components: (D, dim) float32 orthonormal columns.

    Raises:
        BuildError: the graph ends in another way.
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    flatten = _flattening(graph)
    dims = graph.output[0].type.tensor_type.shape.dim
    dim = components.shape[1]
    weight = np.ascontiguousarray(components.T)[:, :, None, None]
    bias = -(mean.astype(np.float64) @ components).astype(np.float32)
    # In a shape 0 keeps the batch's size, whatever it is.
    shape = np.array([0, dim, dims[1].dim_value], np.int64)
    tensors = [
        numpy_helper.from_array(weight, f"{_NAME}.weight"),
        numpy_helper.from_array(bias, f"{_NAME}.bias"),
        numpy_helper.from_array(shape, f"{_NAME}.shape"),
    ]
    inputs = [flatten.input[0], tensors[0].name, tensors[1].name]
    projection = helper.make_node("Conv", inputs, [_NAME], _NAME, kernel_shape=[1, 1])
    laid_out = helper.make_node("Reshape", [_NAME, tensors[2].name], list(flatten.output), flatten.name)
    nodes = [n for node in graph.node for n in ((projection, laid_out) if node == flatten else (node,))]
    del graph.node[:]
    graph.node.extend(_needed(nodes))
    dims[2].dim_value = dim
    replace_initializers(graph, tensors)
    return finished(proto)


def _flattening(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The Reshape from maps to patches; a Transpose after it gives the output."""
    producer = {name: node for node in graph.node for name in node.output}
    last = producer[OUTPUT_NAME]
    before = producer.get(last.input[0])
    if last.op_type != "Transpose" or before is None or before.op_type != "Reshape":
        raise BuildError(
            "The graph does not end in Reshape and Transpose, so no projection can be put before them. "
            "Expected a graph as this version traces it; leave --project out, or use another torch."
        )
    return before


def _needed(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that the output depends on: a replaced Reshape may leave the computation of its shape."""
    wanted, kept = {OUTPUT_NAME}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
