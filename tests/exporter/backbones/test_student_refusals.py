"""Student files that are refused, and with which words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pcexport.backbones.student_facts import FORMAT, METADATA_KEY, StudentFacts
from pcexport.backbones.student_file import read_student
from pcexport.errors import BuildError
from tests.exporter.student_graphs import write_student


@pytest.fixture
def student(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-s.onnx"
    write_student(path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(BuildError) as error:
        read_student(path)
    message = str(error.value)
    assert "\n" not in message and "Expected" in message
    return message


def edited(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def with_facts(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    def put(model: onnx.ModelProto) -> None:
        data = json.loads(model.metadata_props[0].value)
        change(data)
        model.metadata_props[0].value = json.dumps(data)

    return edited(path, put)


@pytest.mark.parametrize("content", [b"", b"not onnx", b"<!doctype html><title>404</title>", b"\x00" * 64])
def test_bytes_that_are_no_onnx_file_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    assert "a.onnx is not an ONNX file" in refused(tmp_path / "a.onnx")


def test_a_file_that_was_cut_short_is_refused(student: Path) -> None:
    student.write_bytes(student.read_bytes()[:-100])
    assert "is not an ONNX file" in refused(student)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "cannot be read (No such file" in refused(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "cannot be read (Is a directory" in refused(tmp_path / "folder.onnx")


def test_a_network_that_is_no_student_is_refused(student: Path) -> None:
    message = refused(edited(student, lambda model: model.metadata_props.pop()))
    assert f"an ONNX file without {METADATA_KEY} in its metadata: it is not a student" in message


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "format 1, got format None"),
        ("{}", "format 1, got format None"),
    ],
)
def test_metadata_that_is_no_json_object_is_refused(student: Path, text: str, words: str) -> None:
    def put(model: onnx.ModelProto) -> None:
        model.metadata_props[0].value = text

    assert words in refused(edited(student, put))


def test_a_newer_format_is_refused_before_its_keys_are_looked_at(student: Path) -> None:
    newer = with_facts(student, lambda data: data.update(format=FORMAT + 1, unheard_of=1))
    assert f"has format {FORMAT + 1}, this pcexport reads formats up to {FORMAT}: upgrade" in refused(newer)


@pytest.mark.parametrize("number", [0, -1, "1", True, 1.5, None])
def test_a_format_that_never_was_is_refused(student: Path, number: object) -> None:
    assert "must be a mapping with format 1" in refused(
        with_facts(student, lambda data: data.update(format=number))
    )


FACTS = [field.name for field in dataclasses.fields(StudentFacts) if field.name != "format"]


@pytest.mark.parametrize("key", FACTS)
def test_a_missing_fact_is_named(student: Path, key: str) -> None:
    message = refused(with_facts(student, lambda data: data.pop(key)))
    assert f"{METADATA_KEY}: missing {key}." in message


@pytest.mark.parametrize("key", ["height", "width", "positions", "values", "scale"])
def test_a_missing_part_of_the_check_is_named(student: Path, key: str) -> None:
    message = refused(with_facts(student, lambda data: data["check"].pop(key)))
    assert f"{METADATA_KEY}.check: missing {key}." in message


def test_a_misspelt_fact_is_named_with_the_nearest_one(student: Path) -> None:
    message = refused(with_facts(student, lambda data: data.update(strid=8)))
    assert "unknown key 'strid'. Did you mean 'stride'?" in message


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"student": "Edge S"}, "student must be a short name"),
        ({"student": "../edge"}, "student must be a short name"),
        ({"layers": []}, "layers must name at least one"),
        ({"dim": 0}, "dim must be 1..65536"),
        ({"dim": "40"}, "dim: expected a whole number"),
        ({"stride": 0}, "stride must be 1..256"),
        ({"image_multiple": 12}, "a multiple of the stride 8, got 12"),
        ({"neighbourhood": 2}, "neighbourhood must be odd"),
        ({"mean_rgb": [0.5, 0.5]}, "hold 3 values"),
        ({"std_rgb": [0.1, 0, 0.1]}, "std_rgb must be above 0"),
        ({"loss": float("nan")}, "loss: expected a finite number"),
        ({"steps": 1.5}, "steps: expected a whole number"),
    ],
)
def test_a_fact_out_of_range_is_refused(student: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(with_facts(student, lambda data: data.update(changes)))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"positions": [], "values": []}, "at least one"),
        ({"positions": [[0, 0]]}, "1 positions do not go with 8 values"),
        ({"positions": [[0, 0, 0]] * 8}, "must be (patch, channel) pairs"),
        ({"positions": [[24, 0]] * 8}, "(24, 0) outside of 24 patches of 40 channels"),
        ({"positions": [[0, 40]] * 8}, "(0, 40) outside of 24 patches"),
        ({"positions": [[-1, 0]] * 8}, "(-1, 0) outside of 24 patches"),
        ({"height": 40}, "check.height must be a multiple of 16"),
        ({"width": 0}, "check.width must be a multiple of 16"),
        ({"scale": 0}, "scale must be above 0"),
    ],
)
def test_a_check_that_cannot_be_made_is_refused(student: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(with_facts(student, lambda data: data["check"].update(changes)))


def test_weights_in_another_file_are_refused(student: Path) -> None:
    def outside(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")

    assert "keeps weights outside itself ('weights.bin')" in refused(edited(student, outside))


def as_float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def as_channels_first(model: onnx.ModelProto) -> None:
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[1].Clear()
    shape.dim[1].dim_value = 3
    shape.dim[3].Clear()
    shape.dim[3].dim_param = "width"


def with_two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("maps", TensorProto.FLOAT, None))


def without_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


@pytest.mark.parametrize("change", [as_float_input, as_channels_first, with_two_outputs, without_shape])
def test_another_input_or_output_is_refused(student: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    assert "has the inputs and outputs" in refused(edited(student, change))


def test_facts_that_promise_another_length_of_embedding_are_refused(student: Path) -> None:
    assert "(batch, patches, 41)" in refused(with_facts(student, lambda data: data.update(dim=41)))


def test_facts_that_promise_another_grid_are_refused_when_the_size_is_fixed(student: Path) -> None:
    with_facts(student, lambda data: data.update(stride=16))
    data = json.loads(onnx.load(student).metadata_props[0].value)["check"]["positions"]
    assert max(patch for patch, _ in data) >= 6, "positions lie outside of the coarser grid"
    with_facts(student, lambda facts: facts["check"].update(positions=[[0, 0]] * 8))
    with pytest.raises(BuildError, match=r"does not work at 32x48 px .* Expected 6 patches of 40 values"):
        read_student(student).graph((32, 48), 1)


def test_an_invalid_graph_is_one_line(student: Path) -> None:
    def broken(model: onnx.ModelProto) -> None:
        model.graph.node[1].input[0] = "nowhere"

    with pytest.raises(BuildError, match="does not work at 32x48 px") as error:
        read_student(edited(student, broken)).graph((32, 48), 1)
    assert "\n" not in str(error.value)


def test_an_operator_off_the_list_is_refused_by_name(student: Path) -> None:
    def unsafe(model: onnx.ModelProto) -> None:
        relu = next(node for node in model.graph.node if node.op_type == "Relu")
        relu.op_type = "Softsign"

    with pytest.raises(BuildError, match="uses Softsign, which TensorRT cannot run"):
        read_student(edited(student, unsafe)).graph((32, 48), 1)


def test_a_graph_that_marks_no_backbone_is_refused(student: Path) -> None:
    def unmarked(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.name = node.name.removeprefix("backbone/")

    assert "marks no node as the backbone's" in refused(edited(student, unmarked))


def test_float16_arithmetic_is_refused(student: Path) -> None:
    def half(model: onnx.ModelProto) -> None:
        cast = next(node for node in model.graph.node if "widen" in node.name)
        cast.attribute[0].i = TensorProto.DOUBLE

    assert "computes with the float16 weight stem.weight/float16" in refused(edited(student, half))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(student: Path, value: float) -> None:
    def spoiled(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "layer2.bias/float16")
        values = numpy_helper.to_array(tensor).copy()
        values[3] = value
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    assert "holds values in layer2.bias that are not finite" in refused(edited(student, spoiled))
