"""Student files: what a sound one gives, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pcexport.backbones import registry
from pcexport.backbones.registry import find_backbone, find_student, list_students
from pcexport.backbones.student_facts import FORMAT, METADATA_KEY, check_picture, parse_facts
from pcexport.backbones.student_file import read_student
from pcexport.errors import BuildError
from pcexport.parity import compare_with_record
from pcrun.session import open_graph
from tests.exporter.student_graphs import (
    CHECK_HW,
    DEEP,
    SHALLOW,
    numpy_embedding,
    random_weights,
    write_student,
)

SHIPPED_BYTES = 4_000_000


@pytest.fixture
def student(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-s.onnx"
    write_student(path)
    return path


def run(graph: bytes, images: np.ndarray) -> np.ndarray:
    session = open_graph(graph, provider="cpu", threads=1)
    embeddings: np.ndarray = session.run(None, {"image": images})[0]
    return embeddings


# ---- the check picture


def by_plain_integers(row: int, column: int, channel: int, height: int, width: int) -> int:
    """One value of the picture, with Python's own whole numbers."""
    mixed = (column * 73856093) ^ (row * 19349663) ^ ((channel + 1) * 83492791)
    for shift in (13, 11):
        mixed &= 2**31 - 1
        mixed = ((mixed ^ (mixed >> shift)) * 1274126177) % 2**31
    centre_x, centre_y, radius = width // 3, height // 2, min(height, width) // 4
    inside = (column - centre_x) ** 2 + (row - centre_y) ** 2 <= radius**2
    striped = column > 2 * width // 3 and (column // 6 + row // 10) % 2 == 0
    value = column * (70 + 30 * channel) // width + row * (130 - 30 * channel) // height + (mixed >> 26)
    return min(255, max(0, value + 60 * (inside != (channel == 1)) - 50 * striped))


@pytest.mark.parametrize("hw", [(16, 32), (48, 40)])
def test_the_check_picture_is_what_whole_numbers_give(hw: tuple[int, int]) -> None:
    height, width = hw
    expected = [
        [[by_plain_integers(y, x, c, height, width) for c in range(3)] for x in range(width)]
        for y in range(height)
    ]
    picture = check_picture(height, width)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected)


def test_the_check_picture_never_changes() -> None:
    """Student files that exist hold values of this picture: a change here would make all of them fail."""
    digest = hashlib.sha256(check_picture(160, 192).tobytes()).hexdigest()
    assert digest == "6177af83ca8869f51cd242d0dff1371856986d9646f8e269b81daf2c09097813"


def test_the_check_picture_has_texture_edges_and_range() -> None:
    picture = check_picture(160, 192).astype(int)
    steps = np.abs(np.diff(picture, axis=1))
    assert picture.min() == 0 and picture.max() > 220
    assert np.median(steps) > 2 and steps.max() > 60
    assert all(len(np.unique(picture[:, :, channel])) > 150 for channel in range(3))


# ---- a sound file


def test_reading_gives_the_facts_that_were_written(tmp_path: Path) -> None:
    facts = write_student(tmp_path / "a.onnx", data={"images": 7, "from": ["x"]}, loss=0.125)
    student = read_student(tmp_path / "a.onnx")
    assert student.facts == facts and student.facts.data == {"images": 7, "from": ["x"]}
    assert (student.file_name, student.opset) == ("a.onnx", 18)
    assert student.sha256 == hashlib.sha256((tmp_path / "a.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize("hw", [(32, 48), (64, 32), (16, 16)])
def test_the_graph_computes_what_numpy_does_at_every_size(student: Path, hw: tuple[int, int]) -> None:
    images = np.random.default_rng(3).integers(0, 256, (2, *hw, 3), np.uint8)
    got = run(read_student(student).graph(hw, batch=2), images)
    expected = [numpy_embedding(random_weights(), image) for image in images]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def dims_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("batch, size", [(1, 1), (4, 4), (None, "batch")])
def test_a_build_fixes_all_sizes_but_an_open_batch(student: Path, batch: int | None, size: int | str) -> None:
    graph = onnx.load_from_string(read_student(student).graph((32, 64), batch)).graph
    assert dims_of(graph.input[0]) == [size, 32, 64, 3]
    assert dims_of(graph.output[0]) == [size, 32, SHALLOW + DEEP]


def test_the_graph_is_plain_float32_without_metadata(student: Path) -> None:
    model = onnx.load_from_string(read_student(student).graph((32, 32), 1))
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {TensorProto.FLOAT, TensorProto.INT64}
    assert not [node.name for node in model.graph.node if "widen" in node.name]
    assert not model.metadata_props
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, half in random_weights().items():
        np.testing.assert_array_equal(stored[name], half.astype(np.float32))


def test_one_file_gives_the_same_bytes_every_time(student: Path) -> None:
    read = read_student(student)
    assert read.graph((32, 32), 1) == read.graph((32, 32), 1) == read_student(student).graph((32, 32), 1)


@pytest.mark.parametrize("hw, proposed", [((60, 64), "48x64 or 64x64"), ((32, 8), "32x16 or 32x16")])
def test_a_size_that_does_not_fit_is_refused_with_those_around_it(
    student: Path, hw: tuple[int, int], proposed: str
) -> None:
    with pytest.raises(BuildError, match=rf"does not fit tiny-s: .* multiples of 16 pixels\. Use {proposed}"):
        read_student(student).graph(hw, 1)


# ---- parity with the recorded values


class Recorded:
    """An embedder that gives what the test says."""

    provider, precision = "fixed", "fp32"

    def __init__(self, embedding: np.ndarray) -> None:
        self._embedding = embedding

    def embed(self, images: np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(images, [check_picture(*CHECK_HW)])
        return self._embedding[None].astype(np.float32)


def test_parity_measures_the_worst_recorded_value_in_units_of_the_scale(student: Path) -> None:
    check = read_student(student).facts.check
    embedding = numpy_embedding(random_weights(), check_picture(*CHECK_HW))
    embedding[check.positions[2]] += 0.5 * check.scale
    embedding[check.positions[5]] -= 0.75 * check.scale
    report = compare_with_record(Recorded(embedding), check)
    assert report.max_relative_error == pytest.approx(0.75, rel=1e-5)
    assert report.max_absolute_error == pytest.approx(0.75 * check.scale, rel=1e-5)
    assert (report.images, report.recorded_values) == (1, len(check.values))


def test_parity_looks_at_each_position_of_patch_and_channel(student: Path) -> None:
    """Rows and columns exchanged would be seen."""
    check = read_student(student).facts.check
    embedding = numpy_embedding(random_weights(), check_picture(*CHECK_HW))
    assert compare_with_record(Recorded(embedding), check).max_relative_error < 1e-6
    assert compare_with_record(Recorded(embedding[::-1]), check).max_relative_error > 0.1


def test_a_nan_in_a_recorded_place_is_refused(student: Path) -> None:
    check = read_student(student).facts.check
    embedding = numpy_embedding(random_weights(), check_picture(*CHECK_HW))
    embedding[check.positions[0]] = np.nan
    with pytest.raises(BuildError, match=r"differ by nan \(relative\) in the 8 values"):
        compare_with_record(Recorded(embedding), check).require(1.0)


# ---- refusals


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


FACTS = [
    *("student", "teacher", "teacher_weights_sha256", "layers", "dim", "stride", "image_multiple"),
    *("neighbourhood", "mean_rgb", "std_rgb", "data", "steps", "loss", "seed", "versions", "check"),
]


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


def test_facts_survive_their_json(tmp_path: Path) -> None:
    facts = write_student(tmp_path / "a.onnx", teacher_weights_sha256=None)
    assert parse_facts(facts.to_json()) == facts
    assert [field.name for field in dataclasses.fields(facts)] == ["format", *FACTS]


# ---- names


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped students with two in it."""
    folder = tmp_path / "students"
    folder.mkdir()
    for name in ("tiny-s", "tiny-m"):
        write_student(folder / f"{name}.onnx", student=name)
    (folder / "tiny-s.json").write_text("{}")
    monkeypatch.setattr(registry, "STUDENTS", folder)
    return folder


def test_shipped_students_are_found_by_name(shipped: Path) -> None:
    assert list_students() == ("tiny-m", "tiny-s")
    assert find_student("tiny-s") == shipped / "tiny-s.onnx"
    assert find_student("tiny-x") is None and find_student("resnet18") is None


def test_a_path_is_a_student_whether_it_exists_or_not(shipped: Path, tmp_path: Path) -> None:
    assert find_student(str(tmp_path / "none.onnx")) == tmp_path / "none.onnx"
    assert find_student("tiny-s.onnx") == Path("tiny-s.onnx")


def test_a_misspelt_student_is_the_nearest_name(shipped: Path) -> None:
    with pytest.raises(BuildError, match="nearest known one is 'tiny-m'"):
        find_backbone("tiny_m")


def test_no_students_are_listed_where_the_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "STUDENTS", tmp_path / "none")
    assert list_students() == ()


# ---- what is shipped


def test_the_student_of_the_demo_is_shipped() -> None:
    assert "edge-s" in list_students()


@pytest.mark.parametrize("name", list_students())
def test_a_shipped_student_is_small_bears_its_name_and_agrees_with_what_it_recorded(name: str) -> None:
    path = find_student(name)
    assert path is not None and path.stat().st_size <= SHIPPED_BYTES
    student = read_student(path)
    assert student.facts.student == name
    check = student.facts.check
    session = open_graph(student.graph((check.height, check.width), 1), provider="cpu", threads=1)

    class Session:
        provider, precision = "cpu", "fp32"

        def embed(self, images: np.ndarray) -> np.ndarray:
            embeddings: np.ndarray = session.run(None, {"image": images})[0]
            return embeddings

    assert compare_with_record(Session(), check).max_relative_error < 1e-3
