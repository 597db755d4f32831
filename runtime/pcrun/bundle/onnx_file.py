"""Facts of an ONNX file, read from its bytes before onnxruntime's native loader sees them.

An ONNX file can name other files, or raw memory addresses, as the place of its weights, and can ask for
operators that a plug-in library defines. A bundle may do neither. The file is protobuf, and the runtime
carries no protobuf package, so this reads just the wire format and the few messages that matter, with
the field numbers of `onnx/onnx-ml.proto` (onnx 1.23). Weights are skipped by their length: the time
depends on the number of nodes only.

Where protobuf would guess or merge (a single message given twice, a known field with another wire type) this
reader refuses: it must never see less than the native parser does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from pcrun.errors import BundleError

Buffer: TypeAlias = bytes | memoryview
Span: TypeAlias = tuple[int, int]

ALLOWED_DOMAINS = ("", "ai.onnx", "com.microsoft")

# Operators of an allowed domain that hold or name a compiled engine; onnxruntime would hand it to a driver.
_REFUSED_OPS = frozenset({("com.microsoft", "EPContext")})

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100  # nested messages; protobuf's own default limit
_MAX_FIELDS = 2_000_000  # a ResNet export has about 10,000; bounds the time a hostile file can take
_MAX_NAME_BYTES = 4096

# Message -> field number -> message, along every path that leads to a node or a tensor.
_CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}

_OTHER_VALUES = {4: "sequence", 5: "map", 7: "opaque", 8: "sparse_tensor", 9: "optional"}  # TypeProto's oneof

# TensorProto.DataType, with numpy's names where numpy has the type.
_ELEM_TYPES = (
    *("undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool"),
    *("float16", "float64", "uint32", "uint64", "complex64", "complex128", "bfloat16", "float8e4m3fn"),
    *("float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "uint4", "int4", "float4e2m1", "float8e8m0", "uint2"),
    *("int2", "float6e2m3", "float6e3m2"),
)


@dataclass(frozen=True)
class TensorFacts:
    """One graph input or output.

    Attributes:
        name: its name in the graph.
        elem_type: such as "uint8" or "float32"; "sequence", "map", ... where the value is no tensor.
        dims: sizes; a string is a symbolic size, "?" a size left open; ("...",) means that no shape is given.
    """

    name: str
    elem_type: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxFacts:
    """What an ONNX file says about itself.

    Attributes:
        ir_version: version of the file format, 0 where it is not given.
        opset: operator domain -> version, as written in the file ("" and "ai.onnx" mean the same).
        inputs: graph inputs in order, without those that are initializers.
        outputs: graph outputs in order.
        op_types: sorted (domain, operator) pairs of every node, also those in subgraphs, functions and
            training graphs.
        external_files: sorted places outside the file that tensors point at; empty where a bundle may use it.
        function_domains: sorted domains of the functions that the model defines itself.
    """

    ir_version: int
    opset: dict[str, int]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    op_types: tuple[tuple[str, str], ...]
    external_files: tuple[str, ...]
    function_domains: tuple[str, ...] = ()


def inspect_onnx(data: Buffer, *, name: str) -> OnnxFacts:
    """Read the facts of an ONNX model without judging them.

    Args:
        data: the bytes of the file; weights are neither read nor copied.
        name: the file's name, for messages.

    Returns:
        The facts.

    Raises:
        BundleError: the bytes are no ONNX model, or hold no graph.
    """
    reader = _Reader(data, name)
    _refuse_other_formats(reader)
    ir_version, opset, graphs = 0, {}, []
    for number, wire, start, end in reader.fields((0, len(data))):
        if number == 1:
            ir_version = reader.integer(wire, start)
        elif number == 8:
            domain, version = _opset_entry(reader, reader.message(wire, start, end))
            opset[domain] = version
        elif number == 7:
            graphs.append(reader.message(wire, start, end))
    if len(graphs) != 1:
        reader.fail("holds no graph" if not graphs else f"holds {len(graphs)} graphs where a model has one")
    inputs, outputs = _graph_values(reader, graphs[0])
    seen = _walk(reader)
    return OnnxFacts(
        ir_version,
        opset,
        inputs,
        outputs,
        op_types=tuple(sorted(seen.ops)),
        external_files=tuple(sorted(seen.external)),
        function_domains=tuple(sorted(seen.function_domains)),
    )


def check_onnx(data: Buffer, *, name: str) -> OnnxFacts:
    """Refuse an ONNX model that is not self-contained or asks for operators from elsewhere.

    Args:
        data: the bytes of the file.
        name: the file's name, for messages.

    Returns:
        The facts of the accepted model.

    Raises:
        BundleError: the bytes are no ONNX model, hold no graph, keep tensor data outside the file (anywhere:
            initializers, attributes, subgraphs, functions, training graphs), or use an operator that is not
            allowed.
    """
    facts = inspect_onnx(data, name=name)
    if facts.external_files:
        files = ", ".join(_shown(file) for file in facts.external_files[:3])
        raise BundleError(
            f"{name} keeps weights outside itself ({files}). A bundle's model must hold all its weights. "
            "Save the model as one file without external data and run `pcexport build` again."
        )
    domains = {domain for domain, _ in facts.op_types} | set(facts.function_domains)
    foreign = sorted(domains - set(ALLOWED_DOMAINS))
    if foreign:
        raise BundleError(
            f"{name} uses the operator domain {_shown(foreign[0])}. Expected only the standard ONNX "
            "operators and com.microsoft. Export the model without custom operators and run "
            "`pcexport build` again."
        )
    refused = sorted(_REFUSED_OPS.intersection(facts.op_types))
    if refused:
        raise BundleError(
            f"{name} uses the operator {refused[0][1]}, a compiled engine of one device. Expected a portable "
            "graph. Export the model without it and run `pcexport build` again."
        )
    return facts


class _Reader:
    """Bounds-checked protobuf wire format over one buffer; everything is a position in it."""

    def __init__(self, data: Buffer, name: str) -> None:
        self.data = data
        self.name = name
        self.fields_left = _MAX_FIELDS

    def fail(self, fact: str) -> NoReturn:
        raise BundleError(
            f"{self.name} {fact}. Expected an ONNX model as `pcexport build` writes it. "
            "The file is damaged or of another kind: copy the bundle again, or rebuild it with "
            "`pcexport build`."
        )

    def varint(self, pos: int, end: int) -> Span:
        """Return (value as uint64, position after it)."""
        data = self.data
        value = 0
        for shift in range(0, 70, 7):
            if pos >= end:
                self.fail(f"ends inside a number at byte {pos}")
            byte = data[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, pos
        self.fail(f"has a number of more than 10 bytes before byte {pos}")

    def fields(self, span: Span) -> Iterator[tuple[int, int, int, int]]:
        """Yield (field number, wire type, start, end of the value) for each field of the message in `span`.

        For a varint `start` is its value, not a position.
        """
        pos, end = span
        while pos < end:
            self.fields_left -= 1
            if self.fields_left < 0:
                self.fail(f"has more than {_MAX_FIELDS} fields")
            tag, pos = self.varint(pos, end)
            number, wire = tag >> 3, tag & 7
            if number == 0 or tag >> 32:
                self.fail(f"has an impossible field number before byte {pos}")
            if wire == _VARINT:
                value, pos = self.varint(pos, end)
                yield number, wire, value, pos
                continue
            start, stop = self._payload(wire, pos, end)
            yield number, wire, start, stop
            pos = stop

    def _payload(self, wire: int, pos: int, end: int) -> Span:
        if wire == _LENGTH:
            size, pos = self.varint(pos, end)
        elif wire == _FIXED64:
            size = 8
        elif wire == _FIXED32:
            size = 4
        else:
            self.fail(f"has a field of wire type {wire}, which ONNX does not use, at byte {pos}")
        if size > end - pos:
            self.fail(f"ends too early: {size} bytes are announced at byte {pos} and {end - pos} are there")
        return pos, pos + size

    def message(self, wire: int, start: int, end: int) -> Span:
        if wire != _LENGTH:
            self.fail(f"has a value of wire type {wire} where a message or text belongs, near byte {end}")
        return start, end

    def integer(self, wire: int, value: int) -> int:
        if wire != _VARINT:
            self.fail(f"has a value of wire type {wire} where a whole number belongs, near byte {value}")
        return value - (1 << 64) if value >> 63 else value

    def text(self, wire: int, start: int, end: int) -> str:
        self.message(wire, start, end)
        if end - start > _MAX_NAME_BYTES:
            self.fail(f"has a name of {end - start} bytes at byte {start}, more than {_MAX_NAME_BYTES}")
        try:
            return bytes(self.data[start:end]).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"has a name that is not UTF-8 at byte {start}")

    def texts(self, span: Span, *numbers: int) -> list[str]:
        """Return text fields of a message, "" where absent; of several the last, as protobuf does."""
        found = dict.fromkeys(numbers, "")
        for number, wire, start, end in self.fields(span):
            if number in found:
                found[number] = self.text(wire, start, end)
        return [found[number] for number in numbers]

    def only(self, span: Span, wanted: int) -> Span | None:
        """Return the one message with field number `wanted`, or None; several are refused, not merged."""
        found = None
        for number, wire, start, end in self.fields(span):
            if number == wanted:
                if found is not None:
                    self.fail(f"gives a single value twice, at byte {start}")
                found = self.message(wire, start, end)
        return found


class _Seen:
    """What the walk over all nodes and tensors collects."""

    def __init__(self) -> None:
        self.ops: set[tuple[str, str]] = set()
        self.external: set[str] = set()
        self.function_domains: set[str] = set()


def _refuse_other_formats(reader: _Reader) -> None:
    data = reader.data
    if len(data) == 0:
        reader.fail("is empty")
    # onnxruntime takes any buffer with this mark for its own flatbuffer format, whatever it is as protobuf.
    if bytes(data[4:8]) == b"ORTM":
        reader.fail("is in onnxruntime's ORT format")


def _walk(reader: _Reader) -> _Seen:
    """Visit every message that can lead to a node or a tensor, on a stack of its own, not on Python's."""
    seen = _Seen()
    stack: list[tuple[str, Span, int]] = [("ModelProto", (0, len(reader.data)), 1)]
    while stack:
        kind, span, depth = stack.pop()
        if depth > _MAX_DEPTH:
            reader.fail(f"nests more than {_MAX_DEPTH} messages")
        children = _CHILDREN[kind]
        for number, wire, start, end in reader.fields(span):
            if number in children:
                stack.append((children[number], reader.message(wire, start, end), depth + 1))
        if kind == "NodeProto":
            op_type, domain = reader.texts(span, 4, 7)
            seen.ops.add((domain, op_type))
        elif kind == "FunctionProto":
            seen.function_domains.update(reader.texts(span, 10))
        elif kind == "TensorProto":
            _visit_tensor(reader, span, seen)
    return seen


def _visit_tensor(reader: _Reader, span: Span, seen: _Seen) -> None:
    external, location = False, ""
    for number, wire, start, end in reader.fields(span):
        if number == 13:
            external = True
            key, value = reader.texts(reader.message(wire, start, end), 1, 2)
            location = value if key == "location" else location
        elif number == 14 and reader.integer(wire, start) != 0:
            external = True
    if external:
        seen.external.add(location or f"tensor {reader.texts(span, 8)[0]}, no location given")


def _opset_entry(reader: _Reader, span: Span) -> tuple[str, int]:
    domain, version = "", 0
    for number, wire, start, end in reader.fields(span):
        if number == 1:
            domain = reader.text(wire, start, end)
        elif number == 2:
            version = reader.integer(wire, start)
    return domain, version


def _graph_values(reader: _Reader, span: Span) -> tuple[tuple[TensorFacts, ...], tuple[TensorFacts, ...]]:
    inputs, outputs, initializers = [], [], set()
    for number, wire, start, end in reader.fields(span):
        if number == 11:
            inputs.append(_value_info(reader, reader.message(wire, start, end)))
        elif number == 12:
            outputs.append(_value_info(reader, reader.message(wire, start, end)))
        elif number == 5:
            initializers.update(reader.texts(reader.message(wire, start, end), 8))
        elif number == 15:
            values = reader.only(reader.message(wire, start, end), 1)
            initializers.update(reader.texts(values, 8) if values else [])
    return tuple(value for value in inputs if value.name not in initializers), tuple(outputs)


def _value_info(reader: _Reader, span: Span) -> TensorFacts:
    name = reader.texts(span, 1)[0]
    value_type = reader.only(span, 2)
    if value_type is None:
        return TensorFacts(name, "undefined", ("...",))
    tensor = reader.only(value_type, 1)
    if tensor is None:
        kinds = [_OTHER_VALUES[field[0]] for field in reader.fields(value_type) if field[0] in _OTHER_VALUES]
        return TensorFacts(name, kinds[-1] if kinds else "undefined", ("...",))
    elem_type = 0
    for number, wire, start, _ in reader.fields(tensor):
        if number == 1:
            elem_type = reader.integer(wire, start)
    shape = reader.only(tensor, 2)
    dims = _dims(reader, shape) if shape is not None else ("...",)
    return TensorFacts(name, _elem_type_name(elem_type), dims)


def _elem_type_name(number: int) -> str:
    return _ELEM_TYPES[number] if 0 <= number < len(_ELEM_TYPES) else f"type {number}"


def _dims(reader: _Reader, span: Span) -> tuple[int | str, ...]:
    dims: list[int | str] = []
    for number, wire, start, end in reader.fields(span):
        if number != 1:
            continue
        size: int | str = "?"
        for part, part_wire, part_start, part_end in reader.fields(reader.message(wire, start, end)):
            if part == 1:
                size = reader.integer(part_wire, part_start)
            elif part == 2:
                size = reader.text(part_wire, part_start, part_end) or "?"
        dims.append(size)
    return tuple(dims)


def _shown(text: str) -> str:
    """Quote text from the file for a message: no control characters, not endless."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
