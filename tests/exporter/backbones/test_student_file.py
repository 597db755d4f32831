"""Student files: what a sound one gives, and what is refused with which words."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from pcexport.backbones import registry
from pcexport.backbones.registry import find_backbone, find_student, list_students
from pcexport.backbones.student_facts import check_picture, parse_facts
from pcexport.backbones.student_file import read_student
from pcexport.errors import BuildError
from pcexport.graph.parity import compare_with_record
from pcrun.backends.session import open_graph
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


def test_facts_survive_their_json(tmp_path: Path) -> None:
    facts = write_student(tmp_path / "a.onnx", teacher_weights_sha256=None)
    assert parse_facts(facts.to_json()) == facts


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
