"""What TensorRT asks of a graph beyond its operators: static shapes, types, modes.

Sources: the restrictions in the operator matrix of the onnx-tensorrt parser (docs/operators.md of
onnx/onnx-tensorrt, TensorRT 10.15), `tensorrt.DataType` ("uint8 ... use the IdentityLayer to convert") and
"Working with Dynamic Shapes" in NVIDIA's documentation: a shape may be computed from other shapes and from
constants, not from an image's content, and tensors have at most 8 dimensions. No limit of kernel sizes or
padding is documented there for GPUs (there are some for the DLA of Jetson boards, which this project does not
use); pooling is two- or three-dimensional and never dilated.

Rounding to 8 bits is looked at apart: an int8 bundle for processors has unsigned activations, which TensorRT
does not take, and is not wrong for that.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MOST_DIMS = 8
_OPSETS = range(9, 25)
_RESIZE_ATTRIBUTES = {
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": (
        *("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"),
    ),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "keep_aspect_ratio_policy": ("stretch",),
    "antialias": (0,),
}
# What is said by leaving an attribute out; only these matter to the rules.
_RESIZE_DEFAULTS = {"mode": "nearest"}
# Operator -> its inputs that are shapes: constants, or computed from shapes alone.
_SHAPE_INPUTS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
}
# Operator -> its inputs that must be constants.
_CONSTANT_INPUTS = {
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    **{f"Reduce{name}": (1,) for name in ("L1", "L2", "Max", "Mean", "Min", "Sum")},
}
_POOLING = ("AveragePool", "MaxPool")


def tensorrt_problems(model: onnx.ModelProto) -> list[str]:
    """What keeps TensorRT from running a graph of known operators, one sentence each, in the graph's order.

    The first dimension (the batch) may be open, where it is open in input and output.

    Args:
        model: a checked graph.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = _Graph(inferred.graph)
    problems = [*_opset_problems(model), *graph.value_problems()]
    for node in inferred.graph.node:
        problems += graph.node_problems(node)
    return list(dict.fromkeys(problems))


def quantisation_problems(model: onnx.ModelProto) -> list[str]:
    """What keeps TensorRT from running a graph's 8-bit arithmetic: it knows int8 with zero point 0 alone."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    problems = []
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero_point is None:
            problems.append(f"{node.op_type} {node.name} has no stored zero point, which means uint8")
        elif zero_point.data_type != TensorProto.INT8:
            kind = TensorProto.DataType.Name(zero_point.data_type).lower()
            problems.append(f"{node.op_type} {node.name} is {kind}, not int8")
        elif np.any(numpy_helper.to_array(zero_point)):
            problems.append(f"{node.op_type} {node.name} has a zero point other than 0")
    return problems


def _opset_problems(model: onnx.ModelProto) -> list[str]:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return [f"opset {v} is not one of {_OPSETS[0]}..{_OPSETS[-1]}" for v in versions if v not in _OPSETS]


class _Graph:
    """A graph with inferred shapes, and which of its tensors do not depend on the image's content."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._inputs = {value.name for value in graph.input}
        self._ends = self._inputs | {value.name for value in graph.output}
        self._values = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
        self._constants = {tensor.name for tensor in graph.initializer}
        # What int8 arithmetic rounds to is judged apart.
        self._rounded = {
            name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.output
        }
        self._open_batch = any(not d.HasField("dim_value") for d in _dims(graph.input[0])[:1])
        self._shapes = set(self._constants)
        for node in graph.node:
            if node.op_type == "Constant":
                self._constants.update(node.output)
            if node.op_type in ("Constant", "Shape") or (node.input and self._only_shapes(node.input)):
                self._shapes.update(node.output)

    def _only_shapes(self, names: Any) -> bool:
        return all(name in self._shapes for name in names if name)

    def value_problems(self) -> Iterator[str]:
        """Tensors whose shape or type TensorRT cannot have."""
        for name, value in self._values.items():
            if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
                yield f"the shape of {name} is not known before the graph runs"
                continue
            dims = _dims(value)
            if len(dims) > _MOST_DIMS:
                yield f"{name} has {len(dims)} dimensions, more than {_MOST_DIMS}"
            if name not in self._shapes and not self._only_batch_open(name, dims):
                yield f"{name} has an open dimension other than the batch"
            kind = value.type.tensor_type.elem_type
            stray = kind == TensorProto.UINT8 and name not in self._inputs | self._rounded
            if kind == TensorProto.DOUBLE or stray:
                yield f"{name} is {TensorProto.DataType.Name(kind).lower()}, which no operator there takes"

    def _only_batch_open(self, name: str, dims: list[Any]) -> bool:
        places = [place for place, dim in enumerate(dims) if not dim.HasField("dim_value")]
        # Inside the graph the batch may stand elsewhere, as between the heads of attention.
        return not places or (
            self._open_batch and len(places) == 1 and (places == [0] or name not in self._ends)
        )

    def node_problems(self, node: onnx.NodeProto) -> Iterator[str]:
        """What a node's inputs and attributes break."""
        for number in _SHAPE_INPUTS.get(node.op_type, ()):
            if number < len(node.input) and not self._only_shapes([node.input[number]]):
                yield f"{_called(node)} takes a shape that depends on the image's content"
        for number in _CONSTANT_INPUTS.get(node.op_type, ()):
            if number < len(node.input) and node.input[number] not in {"", *self._constants}:
                yield f"{_called(node)} takes axes that are not constant"
        if node.op_type != "Cast" and any(map(self._is_uint8_input, node.input)):
            yield f"{_called(node)} reads the uint8 image, which only Cast can"
        yield from _attribute_problems(node)
        pooled = self._values.get(node.input[0]) if node.op_type in _POOLING else None
        if pooled is not None and len(_dims(pooled)) not in (4, 5):
            yield f"{_called(node)} is neither two- nor three-dimensional"

    def _is_uint8_input(self, name: str) -> bool:
        value = self._values.get(name)
        return (
            name in self._inputs
            and value is not None
            and value.type.tensor_type.elem_type == TensorProto.UINT8
        )


def _attribute_problems(node: onnx.NodeProto) -> Iterator[str]:
    values = {attribute.name: _plain(helper.get_attribute_value(attribute)) for attribute in node.attribute}
    if node.op_type == "Resize":
        stated = {**_RESIZE_DEFAULTS, **values}
        for name, allowed in _RESIZE_ATTRIBUTES.items():
            # How the nearest pixel is found says nothing about other modes.
            if name == "nearest_mode" and stated["mode"] != "nearest":
                continue
            if name in stated and stated[name] not in allowed:
                known = ", ".join(map(str, allowed))
                yield f"{_called(node)} has {name} {stated[name]!r}, not one of {known}"
        if "axes" in values and len(node.input) > 2 and node.input[2]:
            yield f"{_called(node)} has scales for some axes alone"
    if node.op_type in _POOLING:
        if any(size != 1 for size in values.get("dilations", ())):
            yield f"{_called(node)} is dilated"
        if len(node.output) > 1 and node.output[1]:
            yield f"{_called(node)} gives the places of the largest values"
    if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
        yield f"{_called(node)} gives more than its first output"
    if node.op_type == "Constant" and {"sparse_value", "value_string", "value_strings"} & values.keys():
        yield f"{_called(node)} is sparse or text"
    if node.op_type == "Cast" and values.get("to") == TensorProto.UINT8:
        yield f"{_called(node)} converts to uint8"


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def _dims(value: onnx.ValueInfoProto) -> list[Any]:
    return list(value.type.tensor_type.shape.dim)
