"""`pcexport distill` from end to end, and its wrong uses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pcexport.backbones.student_file import read_student
from pcexport.cli import main
from pcexport.distill import train

TINY = ["--weights", "untrained", "--pictures", "280", "--size", "32", "--steps", "3", "--batch", "4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("student") / "mine.onnx"
    assert main(["distill", *TINY, "-o", str(output)]) == 0
    return output


def test_it_writes_a_student_and_its_facts(trained: Path) -> None:
    described = json.loads(trained.with_suffix(".json").read_text())
    facts = read_student(trained).facts
    assert facts.student == described["student"] == "edge-s"
    assert facts.teacher == "resnet18" and facts.layers == ("layer2", "layer3") and facts.dim == 384
    assert facts.steps == 3 and facts.data["pictures"] == 280 and facts.data["generator"] >= 1
    assert facts.data["explained"].keys() == {"layer2", "layer3"}


def test_the_same_command_again_needs_force_and_gives_the_same_bytes(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trained.read_bytes()
    assert main(["distill", *TINY, "-o", str(trained)]) == 2
    assert "Pass --force" in capsys.readouterr().err
    assert main(["distill", *TINY, "-o", str(trained), "--force"]) == 0
    assert trained.read_bytes() == before


def test_other_options_on_the_same_work_are_refused(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--work", str(trained.with_suffix(".work")), "-o", str(trained.with_name("other.onnx"))]
    assert main(["distill", *TINY, *work, "--seed", "1"]) == 2
    assert "of another call, which differs in seed." in capsys.readouterr().err
    assert main(["distill", *TINY, *work, "--learning-rate", "0.1"]) == 2
    assert "checkpoint of another training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "student.bin"], "does not end in .onnx"),
        (["-o", "s.onnx", "--size", "40"], "--size 40 is not a multiple of 16"),
        (["-o", "s.onnx", "--teacher", "resnet19"], "unknown backbone 'resnet19'"),
        (["-o", "s.onnx", "--teacher", "mobilenet_v3_small", "--size", "64"], None),
        (["-o", "s.onnx", "--images", "nowhere"], "nowhere"),
        (["-o", "s.onnx", "--pictures", "259"], "259 pictures are too few .* Expected at least 260"),
        (["-o", "s.onnx", "--weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (["-o", "s.onnx", "--student", "edge-xl"], "edge-xl"),
    ],
)
def test_wrong_uses_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "_CHECKPOINT_STEPS", 10**9)
    small = ["--weights", "untrained", "--pictures", "280", "--size", "32", "--steps", "1", "--batch", "4"]
    code = main(["distill", *small, *options])
    error = capsys.readouterr().err
    if message is None:  # strides 8 and 16, other channels: as good a teacher as any
        assert code == 0
    else:
        assert code == 2 and re.search(message, error)
        assert list(tmp_path.iterdir()) == [], "a folder for work that was refused"
