"""ONNX files are read from their bytes alone, and refused when they reach outside themselves."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcrun.bundle.onnx_file import OnnxFacts, TensorFacts, check_onnx, inspect_onnx
from pcrun.errors import BundleError

onnx = pytest.importorskip("onnx", reason="onnx is not installed: the examples are built with it")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

NAME = "embedder.onnx"


def tensor(name: str = "w", size: int = 4) -> TensorProto:
    return numpy_helper.from_array(np.arange(size, dtype=np.float32), name)


def outside(name: str = "w", location: str = "../../etc/weights.bin") -> TensorProto:
    """A tensor whose data lies in another file."""
    made = tensor(name)
    made.ClearField("raw_data")
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value=location)
    return made


def value(name: str, dims: list | None = None, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, dims)


def model(nodes: list | None = None, initializers: list | None = None, **graph_parts: list):
    nodes = nodes or [helper.make_node("Add", ["x", "w"], ["y"])]
    inputs = [value("x", ["batch", 4]), value("w", [4])]
    graph = helper.make_graph(
        nodes, "g", inputs, [value("y", ["batch", 4])], initializers or [tensor()], **graph_parts
    )
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])


def constant(attribute_tensor: TensorProto):
    return helper.make_node("Constant", [], ["c"], value=attribute_tensor)


def branch(node, deeper: int = 0):
    """An If node around `node`, `deeper` more levels down."""
    inner = node if deeper == 0 else branch(node, deeper - 1)
    graph = helper.make_graph([inner], "b", [], [value("c")])
    return helper.make_node("If", ["x"], ["c"], then_branch=graph, else_branch=graph)


def function(node, domain: str = ""):
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_function(domain, "F", ["x"], ["c"], [node], opsets)


@cache
def rich() -> bytes:
    """A model with most kinds of parts in it."""
    sparse = helper.make_sparse_tensor(tensor("s", 2), numpy_helper.from_array(np.array([0, 3]), "i"), [4])
    nodes = [
        helper.make_node("Add", ["x", "w"], ["y"]),
        helper.make_node("FusedConv", ["y", "w"], ["z"], domain="com.microsoft", pads=[1, 1, 1, 1]),
        branch(constant(tensor("deep"))),
        helper.make_node("Constant", [], ["k"], sparse_value=sparse),
    ]
    made = model(nodes, [tensor("w", 64)], sparse_initializer=[sparse], doc_string="text")
    made.functions.append(function(helper.make_node("Relu", ["x"], ["c"])))
    made.graph.input.append(value("image", ["batch", 32, None, 3], TensorProto.UINT8))
    made.graph.output.append(value("half", [], TensorProto.FLOAT16))
    made.graph.output.append(value("open", None, TensorProto.INT64))
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made.training_info.add().algorithm.node.append(helper.make_node("Mul", ["x", "x"], ["t"]))
    made.metadata_props.add(key="k", value="v")
    return made.SerializeToString()


def facts_of_onnx(made) -> OnnxFacts:
    """The same facts, from onnx's own parser."""
    known = {item.name for item in made.graph.initializer}
    known |= {item.values.name for item in made.graph.sparse_initializer}
    return OnnxFacts(
        made.ir_version,
        {item.domain: item.version for item in made.opset_import},
        tuple(tensor_facts(item) for item in made.graph.input if item.name not in known),
        tuple(tensor_facts(item) for item in made.graph.output),
        tuple(
            sorted({(part.domain, part.op_type) for part in parts(made) if isinstance(part, onnx.NodeProto)})
        ),
        tuple(sorted({place(part) for part in parts(made) if is_outside(part)})),
        tuple(sorted({item.domain for item in made.functions})),
    )


def parts(message) -> Iterator:
    """Every message inside `message`, found by reflection: nothing about ONNX is repeated here."""
    yield message
    for field, content in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in content if hasattr(content, "add") else [content]:
                yield from parts(part)


def is_outside(part) -> bool:
    return isinstance(part, TensorProto) and (
        part.data_location == TensorProto.EXTERNAL or len(part.external_data) > 0
    )


def place(part: TensorProto) -> str:
    places = [entry.value for entry in part.external_data if entry.key == "location"]
    return places[-1] if places else f"tensor {part.name}, no location given"


def tensor_facts(item) -> TensorFacts:
    if item.type.WhichOneof("value") != "tensor_type":
        return TensorFacts(
            item.name, (item.type.WhichOneof("value") or "undefined").removesuffix("_type"), ("...",)
        )
    content = item.type.tensor_type
    dims: tuple = ("...",)
    if content.HasField("shape"):
        dims = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in content.shape.dim
        )
    names = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}
    if content.elem_type not in TensorProto.DataType.values():
        return TensorFacts(item.name, f"type {content.elem_type}", dims)
    name = TensorProto.DataType.Name(content.elem_type).lower()
    return TensorFacts(item.name, names.get(content.elem_type, name), dims)


def refused(data: bytes, match: str | None = None) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        check_onnx(data, name=NAME)
    message = str(caught.value)
    assert message.startswith(NAME)
    assert "pcexport build" in message
    assert len(message) < 1000


def test_the_facts_are_written_out() -> None:
    facts = check_onnx(rich(), name=NAME)
    assert (facts.ir_version, facts.opset) == (9, {"": 17, "com.microsoft": 1})
    assert facts.inputs == (
        TensorFacts("x", "float32", ("batch", 4)),
        TensorFacts("image", "uint8", ("batch", 32, "?", 3)),
    )
    assert facts.outputs[1:] == (TensorFacts("half", "float16", ()), TensorFacts("open", "int64", ("...",)))
    operators = ["Add", "Constant", "If", "Mul", "Relu"]
    assert facts.op_types == (*(("", name) for name in operators), ("com.microsoft", "FusedConv"))
    assert facts.external_files == ()


@pytest.mark.parametrize("make", [rich, lambda: model().SerializeToString()])
def test_the_facts_are_those_of_onnx(make: Callable[[], bytes]) -> None:
    assert inspect_onnx(make(), name=NAME) == facts_of_onnx(onnx.load_from_string(make()))


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values())))
def test_each_element_type_has_its_name(kind: int) -> None:
    made = model()
    made.graph.input.append(value("t", [1], kind))
    assert inspect_onnx(made.SerializeToString(), name=NAME) == facts_of_onnx(made)


def test_values_that_are_no_tensors_are_named() -> None:
    made = model()
    made.graph.input.append(helper.make_tensor_sequence_value_info("several", TensorProto.FLOAT, [2]))
    made.graph.input.add().name = "untyped"
    facts = inspect_onnx(made.SerializeToString(), name=NAME)
    assert facts == facts_of_onnx(made)
    assert facts.inputs[-2:] == (
        TensorFacts("several", "sequence", ("...",)),
        TensorFacts("untyped", "undefined", ("...",)),
    )


def with_training(made):
    made.training_info.add().initialization.initializer.append(outside())
    return made


def with_function(made, node):
    made.functions.append(function(node))
    return made


def with_function_attribute(made):
    made.functions.append(function(helper.make_node("Relu", ["x"], ["c"])))
    made.functions[0].attribute_proto.append(helper.make_attribute("t", outside()))
    return made


def sparse_outside(part: str):
    index = numpy_helper.from_array(np.array([0, 3]), "i")
    sparse = helper.make_sparse_tensor(tensor("s", 2), index, [4])
    getattr(sparse, part).CopyFrom(outside())
    return sparse


def sparse_constant(part: str):
    return helper.make_node("Constant", [], ["c"], sparse_value=sparse_outside(part))


EXTERNAL = {
    "initializer": lambda: model(initializers=[tensor(), outside()]),
    "sparse initializer values": lambda: model(sparse_initializer=[sparse_outside("values")]),
    "sparse initializer indices": lambda: model(sparse_initializer=[sparse_outside("indices")]),
    "attribute": lambda: model([constant(outside())]),
    "tensor list attribute": lambda: model([helper.make_node("Op", [], ["y"], many=[tensor(), outside()])]),
    "sparse attribute": lambda: model([sparse_constant("values")]),
    "sparse list attribute": lambda: model(
        [helper.make_node("Op", [], ["y"], many=[sparse_outside("indices")])]
    ),
    "subgraph": lambda: model([branch(constant(outside()))]),
    "subgraph five levels down": lambda: model([branch(constant(outside()), 5)]),
    "graph list attribute": lambda: model(
        [helper.make_node("Op", [], ["y"], many=[helper.make_graph([constant(outside())], "g", [], [])])]
    ),
    "function": lambda: with_function(model(), constant(outside())),
    "subgraph of a function": lambda: with_function(model(), branch(constant(outside()))),
    "attribute default of a function": lambda: with_function_attribute(model()),
    "training graph": lambda: with_training(model()),
}


@pytest.mark.parametrize("where", EXTERNAL)
def test_external_data_is_found_everywhere(where: str) -> None:
    made = EXTERNAL[where]()
    data = made.SerializeToString()
    facts = inspect_onnx(data, name=NAME)
    assert facts.external_files == ("../../etc/weights.bin",)
    assert facts == facts_of_onnx(made)
    refused(data, "outside itself.*weights.bin")


def test_either_sign_of_external_data_is_enough() -> None:
    only_entries, only_location = outside(), outside()
    only_entries.ClearField("data_location")
    only_location.ClearField("external_data")
    refused(model(initializers=[only_entries]).SerializeToString(), "outside itself")
    refused(model(initializers=[only_location]).SerializeToString(), "tensor w, no location given")


def test_a_memory_address_as_location_is_refused() -> None:
    made = model(initializers=[outside(location="*/_ORT_MEM_ADDR_/*")])
    refused(made.SerializeToString(), "_ORT_MEM_ADDR_")


@pytest.mark.parametrize(
    "domain", ["ai.onnx.ml", "ai.onnx.contrib", "my.ops", "com.microsoft.nchwc", "COM.MICROSOFT"]
)
def test_foreign_domains_are_refused_everywhere(domain: str) -> None:
    node = helper.make_node("Op", ["x"], ["c"], domain=domain)
    refused(model([node]).SerializeToString(), f"operator domain '{domain}'")
    refused(model([branch(node)]).SerializeToString(), domain)
    refused(with_function(model(), node).SerializeToString(), domain)
    made = model()
    made.functions.append(function(helper.make_node("Relu", ["x"], ["c"]), domain))
    refused(made.SerializeToString(), domain)


@pytest.mark.parametrize("domain", ["", "ai.onnx", "com.microsoft"])
def test_known_domains_are_accepted(domain: str) -> None:
    made = model([helper.make_node("Gelu", ["x"], ["y"], domain=domain)])
    assert check_onnx(made.SerializeToString(), name=NAME).op_types == ((domain, "Gelu"),)


def test_a_compiled_engine_in_the_graph_is_refused() -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="engine.bin")
    refused(model([node]).SerializeToString(), "EPContext")


def test_empty_garbage_and_other_formats_are_refused() -> None:
    refused(b"", "is empty")
    refused(onnx.ModelProto(ir_version=9).SerializeToString(), "no graph")
    rng = np.random.default_rng(0)
    for size in (1, 7, 100, 10_000):
        refused(rng.integers(0, 256, size, dtype=np.uint8).tobytes())
        refused(bytes(size), "field number")
    refused(b"PK\x03\x04" + bytes(100))


def test_onnxruntimes_own_format_is_refused_even_when_it_parses() -> None:
    data = b"\x12\x06\x20\x20ORTM" + model().SerializeToString()  # as protobuf: producer_name "  ORTM"
    assert onnx.load_from_string(data).producer_name.endswith("ORTM")
    refused(data, "ORT format")


def test_two_graphs_are_refused_rather_than_merged() -> None:
    data = model().SerializeToString()
    refused(data + data, "2 graphs")


def test_a_type_given_twice_is_refused_rather_than_merged() -> None:
    made = model().graph.input[0].SerializeToString()
    twice = made + made[made.index(b"\x12") :]  # ValueInfoProto.type once more
    graph = b"\x5a" + varint(len(twice)) + twice
    refused(b"\x3a" + varint(len(graph)) + graph, "twice")


def test_an_enum_that_protobuf_would_truncate_counts_as_external() -> None:
    made = tensor().SerializeToString() + b"\x70" + b"\x81\x80\x80\x80\x10"  # data_location = 2**32 + 1
    graph = b"\x2a" + bytes([len(made)]) + made
    refused(b"\x08\x09\x3a" + bytes([len(graph)]) + graph, "outside itself")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "announced"),
        (b"\x3a" + b"\xff" * 11, "more than 10 bytes"),
        (b"\x38\x01", "wire type 0"),
        (b"\x08", "ends inside a number"),
        (b"\x0d\x01", "announced"),
        (b"\x0b\x0c\x3a\x00", "wire type 3"),
        (b"\x80\x80\x80\x80\x80\x01\x00\x3a\x00", "field number"),
        (b"\x3a\x05\x0a\x03\x22\x01\xff", "UTF-8"),
        (b"\x0d\x01\x02\x03\x04\x3a\x00", "wire type 5"),
    ],
)
def test_broken_wire_data_is_refused_with_its_reason(data: bytes, match: str) -> None:
    refused(data, match)


def test_endless_names_are_neither_kept_nor_shown() -> None:
    refused(
        model([helper.make_node("Op", ["x"], ["y"], domain="d" * 5000)]).SerializeToString(), "5000 bytes"
    )
    refused(
        model([helper.make_node("Op", ["x"], ["y"], domain="\x1b[31m" * 400)]).SerializeToString(), r"\\x1b"
    )


def test_deep_nesting_is_refused_without_recursion() -> None:
    data = constant(tensor()).SerializeToString()
    for _ in range(3000):  # If nodes inside each other; onnx' own helpers cannot build it
        for tag in (0x0A, 0x32, 0x2A):  # graph.node, attribute.g, node.attribute
            data = bytes([tag]) + varint(len(data)) + data
    refused(
        b"\x3a" + varint(len(data) + 1 + len(varint(len(data)))) + b"\x0a" + varint(len(data)) + data, "nests"
    )


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def test_a_flood_of_fields_is_refused_in_time() -> None:
    start = time.perf_counter()
    refused(b"\x08\x01" * 2_500_000, "fields")
    assert time.perf_counter() - start < 20


def test_every_truncation_is_refused_or_still_a_model() -> None:
    data = rich()
    refusals = 0
    for cut in range(len(data)):
        try:
            facts = check_onnx(data[:cut], name=NAME)
        except BundleError:
            refusals += 1
            continue
        assert facts == facts_of_onnx(
            onnx.load_from_string(data[:cut])
        )  # cut between two fields of the model
    assert refusals > 0.9 * len(data)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(rich()) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_random_byte_flips_are_refused_or_seen_as_onnx_sees_them(changes: list[tuple[int, int]]) -> None:
    data = bytearray(rich())
    for position, mask in changes:
        data[position] ^= mask
    try:
        facts = check_onnx(bytes(data), name=NAME)
    except BundleError:
        return
    try:
        expected = facts_of_onnx(onnx.load_from_string(bytes(data)))
    except Exception:  # this build of protobuf refuses what we accept: nothing to compare
        return
    assert facts == expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_bundle_errors(data: bytes) -> None:
    for head in (b"", b"\x08\x09\x3a\x7f"):
        with suppress(BundleError):
            check_onnx(head + data, name=NAME)


def test_a_memoryview_is_read_like_bytes() -> None:
    assert inspect_onnx(memoryview(rich()), name=NAME) == inspect_onnx(rich(), name=NAME)


def test_weights_are_skipped_not_read() -> None:
    data = model(initializers=[tensor("w", 11_000_000)]).SerializeToString()
    assert len(data) > 40e6
    best = min(timed(data) for _ in range(3))
    assert best < 0.05  # measured: 0.1 ms; one pass over the weights in Python would take seconds


def timed(data: bytes) -> float:
    start = time.perf_counter()
    check_onnx(data, name=NAME)
    return time.perf_counter() - start
