"""The student's file: the same numbers as torch at every size, small, reproducible, readable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from pcexport.backbones.student_facts import FORMAT, CheckValues, StudentFacts
from pcexport.backbones.student_file import read_student
from pcexport.distill import STUDENT_NAMES
from pcexport.distill.student import STUDENTS, Student, StudentSpec, aggregate
from pcexport.distill.student_graph import folded, student_file
from tests.exporter.distill.students import TINY

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def facts(dim: int) -> StudentFacts:
    return StudentFacts(
        format=FORMAT,
        student="tiny",
        teacher="resnet18",
        teacher_weights_sha256=None,
        layers=("layer2", "layer3"),
        dim=dim,
        stride=8,
        image_multiple=16,
        neighbourhood=3,
        mean_rgb=MEAN,
        std_rgb=STD,
        data={},
        steps=1,
        loss=1.0,
        seed=0,
        versions={},
        check=CheckValues(height=160, width=192, positions=((0, 0),), values=(0.0,), scale=1.0),
    )


def lively_student(spec: StudentSpec = TINY, channels: tuple[int, int] = (5, 7)) -> Student:
    """Untrained, but with the running statistics of some pictures."""
    torch.manual_seed(0)
    student = Student(spec, channels)
    with torch.no_grad():
        for _ in range(3):
            student(torch.randn(2, 3, 64, 64))
    return student.eval()


def test_folding_keeps_what_the_student_computes() -> None:
    student = lively_student()
    images = torch.randn(2, 3, 64, 48)
    scale = torch.linspace(0.5, 2, 12)
    with torch.no_grad():
        wanted = aggregate(*student(images)) * scale.view(1, -1, 1, 1)
        found = aggregate(*folded(student, scale)(images))
    assert torch.allclose(found, wanted, atol=4e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (160, 224)])
def test_the_graph_computes_what_torch_does_at_any_size(tmp_path: Path, height: int, width: int) -> None:
    student = folded(lively_student(), torch.ones(12))
    path = tmp_path / "tiny.onnx"
    path.write_bytes(student_file(student, facts(12)))
    session = onnxruntime.InferenceSession(read_student(path).graph((height, width), None))
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    (found,) = session.run(None, {"image": images})
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        wanted = aggregate(*student((planes - mean) / std)).flatten(2).transpose(1, 2).numpy()
    assert found.shape == (2, height // 8 * width // 8, 12)
    assert np.allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_file_holds_what_torch_gives_for_the_check_picture(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(student_file(folded(lively_student(), torch.ones(12)), facts(12)))
    check = read_student(path).facts.check
    assert len(check.values) == 256 and check.scale > 0
    assert len(set(check.positions)) > 150 and np.ptp(check.values) > check.scale / 10


def test_the_bytes_repeat() -> None:
    files = {student_file(folded(lively_student(), torch.ones(12)), facts(12)) for _ in range(2)}
    assert len(files) == 1


@pytest.mark.parametrize("name", STUDENT_NAMES)
def test_every_named_student_has_a_shape_and_tiles_its_grid(name: str) -> None:
    student = Student(STUDENTS[name], (128, 256)).eval()
    with torch.no_grad():
        shallow, deep = student(torch.zeros(1, 3, 64, 96))
    assert shallow.shape == (1, 128, 8, 12) and deep.shape == (1, 256, 4, 6)


def test_edge_s_takes_at_most_4_mb_on_disk() -> None:
    student = folded(lively_student(STUDENTS["edge-s"], (128, 256)), torch.ones(384))
    assert len(student_file(student, facts(384))) <= 4_000_000
