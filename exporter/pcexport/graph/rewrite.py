"""What every step that writes or rewrites `embedder.onnx` shares: names of its parts, tidying, checking."""

from collections.abc import Iterable

import onnx

from pcexport.errors import BuildError
from pcexport.graph.operators import unsafe_operators
from pcexport.graph.tensorrt_rules import tensorrt_problems

INPUT_NAME = "image"
OUTPUT_NAME = "patch_embeddings"
# Nodes of the backbone are named so; all others normalise the image or aggregate the feature maps.
BACKBONE = "backbone/"
_SHOWN_PROBLEMS = 3


def in_backbone(node: onnx.NodeProto) -> bool:
    """Whether the node belongs to the backbone."""
    return str(node.name).startswith(BACKBONE)


def consumers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Tensor name -> the nodes that read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def replace_initializers(graph: onnx.GraphProto, tensors: Iterable[onnx.TensorProto]) -> None:
    """Add initializers, and drop those that no node reads any more."""
    kept = {tensor.name: tensor for tensor in (*graph.initializer, *tensors)}
    used = {name for node in graph.node for name in node.input}
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in kept.items() if name in used)


def finished(model: onnx.ModelProto) -> bytes:
    """The bytes of a graph that is tidied, valid, and made as TensorRT can run it.

    Dropped is what differs between machines or runs: stack traces hold local paths.

    Raises:
        BuildError: an operator is not on the list, or used as TensorRT cannot run it.
    """
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    del model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    model.graph.name = "patch_embedder"
    onnx.checker.check_model(model)
    unsafe = unsafe_operators(model)
    if unsafe:
        raise BuildError(
            f"The exported graph uses {', '.join(unsafe)}, which TensorRT cannot run. "
            "Choose other layers or another backbone, or add the operator to the list with its source."
        )
    problems = tensorrt_problems(model)
    if problems:
        raise BuildError(
            f"TensorRT cannot run the exported graph: {'; '.join(problems[:_SHOWN_PROBLEMS])}. Expected what "
            "it documents (pcexport/graph/tensorrt_rules.py); choose other layers or another backbone."
        )
    return bytes(model.SerializeToString(deterministic=True))
