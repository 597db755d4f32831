"""Graphs written by hand are what onnx's own parser and checker take them for."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrun.bundle.onnx_file import TensorFacts, check_onnx
from pcrun.search import onnx_write
from pcrun.search.onnx_write import MAX_MODEL_BYTES, Node, Tensor, onnx_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed: its parser and checker are the judges")
from onnx import numpy_helper  # noqa: E402

DTYPES = ("float32", "uint8", "int8", "int32", "int64")


def parsed(data: bytes) -> Any:
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    return model


def product(rows: np.ndarray, **changes: Any) -> bytes:
    """A graph that is complete: queries times rows, then one axis reduced."""
    parts = {
        "nodes": [
            Node("MatMul", ["queries", "rows"], ["products"]),
            Node("ReduceMax", ["products"], ["best"], {"keepdims": 0}),
        ],
        "initializers": {"rows": rows},
        "inputs": [Tensor("queries", "float32", ("patches", rows.shape[0]))],
        "outputs": [Tensor("best", "float32", ())],
    }
    return onnx_model(**(parts | changes))


def identity(array: np.ndarray) -> bytes:
    return onnx_model(
        [Node("Identity", ["value"], ["copy"])],
        {"value": array},
        [],
        [Tensor("copy", array.dtype.name, array.shape)],
    )


class TestModel:
    def test_every_part_is_read_back(self) -> None:
        rows = np.arange(12, dtype=np.float32).reshape(4, 3)
        model = parsed(product(rows))
        assert model.ir_version == 8
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        assert model.graph.name
        assert [(n.op_type, list(n.input), list(n.output)) for n in model.graph.node] == [
            ("MatMul", ["queries", "rows"], ["products"]),
            ("ReduceMax", ["products"], ["best"]),
        ]
        (initializer,) = model.graph.initializer
        np.testing.assert_array_equal(numpy_helper.to_array(initializer), rows)
        (attribute,) = model.graph.node[1].attribute
        assert (attribute.name, onnx.helper.get_attribute_value(attribute)) == ("keepdims", 0)

    def test_the_device_accepts_it_too(self) -> None:
        facts = check_onnx(product(np.ones((4, 3), np.float32)), name="made.onnx")
        assert facts.inputs == (TensorFacts("queries", "float32", ("patches", 4)),)
        assert facts.outputs == (TensorFacts("best", "float32", ()),)
        assert facts.op_types == (("", "MatMul"), ("", "ReduceMax")) and facts.external_files == ()

    def test_it_computes(self) -> None:
        onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        session = onnxruntime.InferenceSession(
            product(np.eye(3, dtype=np.float32)), providers=["CPUExecutionProvider"]
        )
        (best,) = session.run(None, {"queries": np.array([[1, 2, 3], [7, 5, 6]], np.float32)})
        assert best == 7

    @pytest.mark.parametrize("value", [0, 1, 127, 128, 2**31, 2**62, -1, -128, -(2**31), -(2**63)])
    def test_whole_number_attributes(self, value: int) -> None:
        node = Node("ReduceMax", ["products"], ["best"], {"keepdims": value})
        model = onnx.load_from_string(
            product(
                np.ones((4, 3), np.float32), nodes=[Node("MatMul", ["queries", "rows"], ["products"]), node]
            )
        )
        (attribute,) = model.graph.node[1].attribute
        assert attribute.type == onnx.AttributeProto.INT and attribute.i == value

    def test_a_negative_axis_is_understood(self) -> None:
        model = onnx_model(
            [Node("ArgMax", ["x"], ["y"], {"axis": -1, "keepdims": 0})],
            {},
            [Tensor("x", "float32", ("n", 3))],
            [Tensor("y", "int64", ("n",))],
        )
        assert parsed(model).graph.node[0].attribute[0].i == -1

    def test_an_empty_name_leaves_an_optional_input_out(self) -> None:
        model = onnx_model(
            [Node("Clip", ["x", "", "most"], ["y"])],
            {"most": np.array(2, np.float32)},
            [Tensor("x", "float32", ("n",))],
            [Tensor("y", "float32", ("n",))],
        )
        assert list(parsed(model).graph.node[0].input) == ["x", "", "most"]
        onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": np.array([-5, 5], np.float32)})[0].tolist() == [-5, 2]

    def test_names_of_any_language_and_length(self) -> None:
        name = "größe-" * 50
        model = onnx_model(
            [Node("Relu", [name], ["y"])],
            {},
            [Tensor(name, "float32", ("n",))],
            [Tensor("y", "float32", ("n",))],
        )
        assert parsed(model).graph.input[0].name == name


class TestTensors:
    @settings(max_examples=80, deadline=None)
    @given(
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
        st.integers(0, 2**32 - 1),
    )
    def test_any_initializer_is_read_back(self, dtype: str, shape: tuple[int, ...], seed: int) -> None:
        array = np.frombuffer(np.random.default_rng(seed).bytes(8 * int(np.prod(shape))), np.uint8)
        array = array.view(dtype)[: int(np.prod(shape))].reshape(shape)
        model = parsed(identity(array))
        (initializer,) = model.graph.initializer
        read = numpy_helper.to_array(initializer)
        assert read.dtype == np.dtype(dtype) and read.shape == shape and read.tobytes() == array.tobytes()
        (output,) = model.graph.output
        dims = tuple(d.dim_value for d in output.type.tensor_type.shape.dim)
        assert dims == shape and output.type.tensor_type.HasField("shape")

    @pytest.mark.parametrize("layout", ["transposed", "strided", "read-only"])
    def test_any_memory_layout(self, layout: str) -> None:
        array = np.arange(12, dtype=np.int8).reshape(3, 4)
        if layout == "transposed":
            array = array.T
        elif layout == "strided":
            array = array[:, ::2]
        else:
            array.flags.writeable = False
        (initializer,) = parsed(identity(array)).graph.initializer
        np.testing.assert_array_equal(numpy_helper.to_array(initializer), array)

    def test_a_type_it_does_not_know_is_refused(self) -> None:
        with pytest.raises(KeyError, match="float16"):
            identity(np.zeros(2, np.float16))


class TestSize:
    def test_more_than_a_file_can_hold_is_refused_before_anything_is_copied(self) -> None:
        # No bank of that size: whatever looks at more than its size fails.
        half: Any = SimpleNamespace(nbytes=MAX_MODEL_BYTES // 2 + 1)
        with pytest.raises(ValueError, match=rf"{2 * half.nbytes} bytes do not fit into one ONNX file"):
            onnx_model([], {"a": half, "b": half}, [], [])

    def test_the_limit_is_protobufs_with_room_for_the_rest(self) -> None:
        assert 2**31 - 2**21 < MAX_MODEL_BYTES < 2**31

    def test_the_limit_itself_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_write, "MAX_MODEL_BYTES", 48)
        parsed(product(np.ones((4, 3), np.float32)))
        with pytest.raises(ValueError, match="52 bytes"):
            identity(np.ones(13, np.float32))
