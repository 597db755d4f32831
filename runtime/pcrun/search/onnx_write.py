"""Some ONNX graphs are made on the device, from the memory bank: this writes them without the `onnx` package.

Only what those graphs need of the protobuf format of `onnx.proto3`: nodes with integer attributes,
initializers as raw data, tensors with one free dimension.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pcrun.types import AnyArray

_IR_VERSION = 8
_OPSET = 17
_VARINT, _BYTES = 0, 2
_INT_ATTRIBUTE = 2
_ELEM_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}
# A protobuf message ends at 2^31 - 1 bytes; some room for everything but the initializers.
MAX_MODEL_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class Node:
    """One operator of the default domain, with whole-number attributes."""

    op_type: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Tensor:
    """An input or output of a graph; a dimension given by name is free."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def onnx_model(
    nodes: Sequence[Node],
    initializers: Mapping[str, AnyArray],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
) -> bytes:
    """Serialise a graph as an ONNX model.

    Raises:
        ValueError: the model would exceed what protobuf can hold.
    """
    size = sum(array.nbytes for array in initializers.values())
    if size > MAX_MODEL_BYTES:
        raise ValueError(f"initializers of {size} bytes do not fit into one ONNX file ({MAX_MODEL_BYTES})")
    graph: list[_Part] = [_message(1, _node(node)) for node in nodes]
    graph.append(_text(2, "graph"))
    graph += [_message(5, _initializer(name, array)) for name, array in initializers.items()]
    graph += [_message(11, _value_info(tensor)) for tensor in inputs]
    graph += [_message(12, _value_info(tensor)) for tensor in outputs]
    opset = _message(8, [_integer(2, _OPSET)])
    return b"".join(_flatten([_integer(1, _IR_VERSION), opset, _message(7, graph)]))


# Messages are nested lists of byte strings until the end: a bank is copied once, not once per level.
_Part = bytes | memoryview | list["_Part"]


def _flatten(parts: Sequence[_Part]) -> list[bytes | memoryview]:
    flat: list[bytes | memoryview] = []
    for part in parts:
        if isinstance(part, list):
            flat += _flatten(part)
        else:
            flat.append(part)
    return flat


def _size(parts: Sequence[_Part]) -> int:
    return sum(_size(part) if isinstance(part, list) else len(part) for part in parts)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are their two's complement
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _text(number: int, value: str) -> bytes:
    data = value.encode()
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _message(number: int, parts: Sequence[_Part]) -> list[_Part]:
    return [_varint(number << 3 | _BYTES) + _varint(_size(parts)), *parts]


def _node(node: Node) -> list[_Part]:
    parts: list[_Part] = [_text(1, name) for name in node.inputs]
    parts += [_text(2, name) for name in node.outputs]
    parts.append(_text(4, node.op_type))
    for name, value in node.attributes.items():
        attribute: list[_Part] = [_text(1, name), _integer(3, value), _integer(20, _INT_ATTRIBUTE)]
        parts.append(_message(5, attribute))
    return parts


def _initializer(name: str, array: AnyArray) -> list[_Part]:
    raw = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
    parts: list[_Part] = [_integer(1, size) for size in array.shape]
    parts += [_integer(2, _ELEM_TYPES[array.dtype.name]), _text(8, name), _message(9, [raw])]
    return parts


def _value_info(tensor: Tensor) -> list[_Part]:
    dims: list[_Part] = [
        _message(1, [_text(2, size) if isinstance(size, str) else _integer(1, size)]) for size in tensor.shape
    ]
    tensor_type = _message(1, [_integer(1, _ELEM_TYPES[tensor.dtype]), _message(2, dims)])
    return [_text(1, tensor.name), _message(2, [tensor_type])]
