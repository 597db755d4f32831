"""The backbone in float16, for GPUs: input, normalisation, aggregation and output stay as they are."""

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from pcexport.errors import BuildError
from pcexport.graph.rewrite import finished, in_backbone, replace_initializers

_LARGEST = float(np.finfo(np.float16).max)
# Inputs that the standard keeps in float32 whatever the data's type: region of interest and scales.
_ALWAYS_FLOAT32 = {"Resize": (1, 2)}


def to_float16(model: bytes) -> bytes:
    """Convert the backbone's operators to float16, with conversions around it.

    Args:
        model: float32 graph with marked backbone (`pcexport.graph.rewrite`).

    Returns:
        A checked graph with the same input and output.

    Raises:
        BuildError: no backbone is marked, or a weight does not fit.
    """
    proto = onnx.load_from_string(model)
    if not any(map(in_backbone, proto.graph.node)):
        raise BuildError(
            "The exporter did not mark the backbone in the graph. Expected a newer torch for float16; use "
            "--precision fp32."
        )
    conversion = _Conversion(proto)
    for node in proto.graph.node:
        if in_backbone(node):
            conversion.add_half(node)
        else:
            conversion.add(node)
    del proto.graph.node[:]
    proto.graph.node.extend(conversion.nodes)
    replace_initializers(proto.graph, conversion.weights.values())
    return finished(proto)


class _Conversion:
    """The nodes of the converted graph, as they are added one by one."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._halves: set[str] = set()  # computed tensors that are float16 now
        self._casts: set[str] = set()
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}

    def add(self, node: onnx.NodeProto) -> None:
        """Add a float32 node; what it reads from the backbone is converted back."""
        for number, name in enumerate(node.input):
            if name in self._halves:
                node.input[number] = self._cast(name, TensorProto.FLOAT)
        self.nodes.append(node)

    def add_half(self, node: onnx.NodeProto) -> None:
        """Add a node of the backbone, in float16."""
        kept = _ALWAYS_FLOAT32.get(node.op_type, ())
        for number, name in enumerate(node.input):
            if number in kept:
                continue
            if name in self._stored and self._stored[name].data_type == TensorProto.FLOAT:
                node.input[number] = self._half_weight(name)
            elif name in self._floats and name not in self._halves:
                node.input[number] = self._cast(name, TensorProto.FLOAT16)
        _convert_attributes(node)
        self._halves.update(name for name in node.output if name in self._floats)
        self.nodes.append(node)

    def _half_weight(self, name: str) -> str:
        half = f"{name}/float16"
        if half not in self.weights:
            self.weights[half] = numpy_helper.from_array(_half(self._stored[name]), half)
        return half

    def _cast(self, name: str, to: int) -> str:
        converted = f"{name}/{'float32' if to == TensorProto.FLOAT else 'float16'}"
        if converted not in self._casts:
            self._casts.add(converted)
            self.nodes.append(helper.make_node("Cast", [name], [converted], f"cast/{converted}", to=to))
        return converted


def _half(tensor: TensorProto) -> "np.ndarray[tuple[int, ...], np.dtype[np.float16]]":
    values = numpy_helper.to_array(tensor)
    largest = float(np.abs(values).max(initial=0))
    if not largest <= _LARGEST:
        raise BuildError(
            f"The backbone's {tensor.name} reaches {largest:.3g}, float16 ends at {_LARGEST:g}. Expected "
            "smaller weights; use --precision fp32 or bf16."
        )
    half: np.ndarray[tuple[int, ...], np.dtype[np.float16]] = values.astype(np.float16)
    return half


def _convert_attributes(node: onnx.NodeProto) -> None:
    """Constants in attributes, and conversions to float32, become float16."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(_half(attribute.t), attribute.t.name))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
