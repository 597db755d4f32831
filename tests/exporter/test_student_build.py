"""Building with a student file, with torch installed and without."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pcexport import build as build_module
from pcexport.backbones import registry
from pcexport.cli import main
from pcexport.demo import command as demo_module
from pcexport.demo.parts import generate_parts
from pcexport.versions import TRACING
from pcrun.bundle.bundle import Bundle
from pcrun.cli import main as pcrun
from tests.exporter.student_graphs import DEEP, SHALLOW, write_student

SIZE_HW = (64, 96)
QUICK = ("--image-size", "64x96", "--threads", "1", "--no-tune")
ABSENT = ("torch", "torchvision", "onnxscript", "safetensors", "timm")

# Runs commands, one JSON list a line, in a process where some packages cannot be imported.
WITHOUT = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Absent())
import pcexport.cli, pcrun.cli
for line in sys.stdin:
    program, *arguments = json.loads(line)
    code = {{"pcexport": pcexport.cli, "pcrun": pcrun.cli}}[program].main(arguments)
    print("exit code of", program, arguments[0], code, flush=True)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    generate_parts(root, train=14, test_good=2, test_per_defect=1, size_px=128)
    return root


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student") / "tiny-s.onnx"
    write_student(path)
    return path


@dataclasses.dataclass(frozen=True)
class Built:
    """What one call of `pcexport build` did."""

    code: int
    path: Path
    out: str
    err: str

    @property
    def manifest(self):
        return Bundle.load(self.path).manifest


@pytest.fixture(scope="module")
def build(parts: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    def run(*flags: str, backbone: Path | str = student, report: bool = False) -> Built:
        output = tmp_path_factory.mktemp("out") / "part.pcbundle"
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            if not report:  # half the time of a small build
                patch.setattr(build_module, "write_report", lambda path, *args: path.write_text("report"))
            code = main(["build", str(parts), "-o", str(output), "--backbone", str(backbone), *QUICK, *flags])
        return Built(code, output, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="module")
def plain(build: Callable[..., Built]) -> Built:
    built = build(report=True)
    assert built.code == 0, built.err
    return built


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run_without(absent: tuple[str, ...], *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands in a fresh process in which `absent` cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=absent)],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        check=False,
    )


# ---- what a build makes


def test_the_manifest_says_what_the_student_is(plain: Built, student: Path) -> None:
    spec = plain.manifest.embedding
    assert (spec.backbone, spec.layers, spec.dim) == ("tiny-s", ("layer2", "layer3"), SHALLOW + DEEP)
    assert (spec.grid_height, spec.grid_width) == (SIZE_HW[0] // 8, SIZE_HW[1] // 8)
    assert spec.weights_source == "student file tiny-s.onnx, distilled from resnet18"
    assert spec.weights_sha256 == hashlib.sha256(student.read_bytes()).hexdigest()
    assert (spec.aggregation, spec.neighbourhood, spec.opset) == ("locally_aware", 3, 18)
    assert (spec.precision, spec.batch) == ("fp32", 1)


def test_parity_is_that_of_the_recorded_values(plain: Built) -> None:
    parity = plain.manifest.parity
    assert parity is not None and (parity.images, parity.recorded_values) == (1, 8)
    assert 0 < parity.max_relative_error < 1e-5 and 0 < parity.max_absolute_error < 1e-5
    assert "(8 values in the student file)" in plain.out
    assert "8 values that PyTorch gave" in (plain.path / "report.html").read_text()


def test_the_bundle_knows_neither_the_folder_of_the_file_nor_torch(plain: Built, student: Path) -> None:
    manifest = plain.manifest
    assert manifest.source.config["backbone"] == "tiny-s.onnx"
    assert not {name.lower() for name in manifest.created_by} & set(TRACING)
    assert {"numpy", "onnx", "onnxruntime"} <= set(manifest.created_by)
    for name, data in contents(plain.path).items():
        assert str(student.parent).encode() not in data, name


def test_the_bundle_passes_its_selftest(plain: Built, capsys: pytest.CaptureFixture[str]) -> None:
    assert pcrun(["selftest", "--bundle", str(plain.path)]) == 0
    assert "4 of 4 golden samples agree" in capsys.readouterr().out


def test_less_memory_is_announced_than_torch_alone_takes(plain: Built) -> None:
    found = re.search(r"([\d.]+) GB of memory", plain.err)
    assert found and float(found[1]) < 0.6


@pytest.mark.parametrize(
    "flags, precision, dim",
    [
        (["--precision", "int8"], "int8", SHALLOW + DEEP),
        (["--precision", "fp16"], "fp16", SHALLOW + DEEP),
        (["--project", "16"], "fp32", 16),
        (["--precision", "int8", "--project", "16", "--batch", "dynamic"], "int8", 16),
    ],
)
def test_precision_and_projection_work_as_with_any_backbone(
    build: Callable[..., Built], flags: list[str], precision: str, dim: int
) -> None:
    built = build(*flags, "--allow-flips")
    assert built.code == 0, built.err
    manifest = built.manifest
    assert (manifest.embedding.precision, manifest.embedding.dim) == (precision, dim)
    assert manifest.precision is not None and 0 < manifest.precision.max_score_drift < 0.2
    assert manifest.precision.reference_auroc is not None
    assert pcrun(["selftest", "--bundle", str(built.path)]) == 0


def test_bf16_works_as_with_any_backbone(build: Callable[..., Built]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (extra: openvino)")
    built = build("--precision", "bf16", "--provider", "openvino", "--allow-flips")
    if "This processor has no bfloat16" in built.err:
        pytest.skip("this processor has no bfloat16")
    assert built.code == 0, built.err
    assert built.manifest.embedding.precision == "bf16"


@pytest.mark.parametrize("batch, expected", [("dynamic", None), ("4", 4)])
def test_other_batches_give_the_same_bank(
    build: Callable[..., Built], plain: Built, batch: str, expected: int | None
) -> None:
    built = build("--batch", batch)
    assert built.code == 0 and built.manifest.embedding.batch == expected
    banks = [Bundle.load(path).memory_bank for path in (built.path, plain.path)]
    np.testing.assert_allclose(*banks, atol=1e-5)


def test_a_shipped_student_is_built_by_its_name(
    build: Callable[..., Built], plain: Built, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "STUDENTS", student.parent)
    built = build(backbone="tiny-s")
    assert built.code == 0, built.err
    assert built.manifest.source.config["backbone"] == "tiny-s"
    assert built.manifest.embedding == plain.manifest.embedding
    assert (built.path / "embedder.onnx").read_bytes() == (plain.path / "embedder.onnx").read_bytes()


# ---- what is refused


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--layers", "layer1,layer2"], "layers is layer1,layer2, the student has layer2,layer3"),
        (["--layers", "layer2"], "layers is layer2, the student has layer2,layer3"),
        (["--weights", "untrained"], "weights is untrained, the student has its own (default)"),
        (["--weights", "other.pth"], "weights is other.pth, the student has its own (default)"),
        (["--aggregation", "reference"], "aggregation is reference, the student has locally_aware"),
        (["--neighbourhood", "1"], "neighbourhood is 1, the student has 3"),
        (["--grid", "8x11"], "grid is 8x11, the student has 8x12 at this image size"),
        (["--opset", "20"], "opset is 20, the student has 18"),
        (["--embed-with", "torch"], "embed_with is torch, the student has no torch module (auto)"),
    ],
)
def test_a_key_that_the_file_decides_is_refused_with_what_the_file_has(
    build: Callable[..., Built], flags: list[str], words: str
) -> None:
    built = build(*flags)
    assert built.code == 2 and not built.path.exists()
    assert words in built.err and "Student tiny-s is a finished graph" in built.err


def test_all_refused_keys_are_named_at_once(build: Callable[..., Built]) -> None:
    err = build("--opset", "20", "--weights", "untrained", "--neighbourhood", "5").err
    assert all(f"{key} is " in err for key in ("opset", "weights", "neighbourhood"))


def test_the_students_own_values_may_be_given(build: Callable[..., Built], plain: Built) -> None:
    given = ("--layers", "layer2,layer3", "--grid", "8x12", "--opset", "18", "--neighbourhood", "3",
             "--weights", "default", "--embed-with", "onnxruntime")  # fmt: skip
    built = build(*given)
    assert built.code == 0, built.err
    assert built.manifest.embedding == plain.manifest.embedding


def test_a_student_that_does_not_give_what_it_recorded_stops_the_build(
    build: Callable[..., Built], tmp_path: Path
) -> None:
    write_student(tmp_path / "off.onnx", error=2e-3)
    built = build(backbone=tmp_path / "off.onnx")
    assert built.code == 2 and not built.path.exists()
    assert "PyTorch and ONNX differ by 0.002 (relative) in the 8 values" in built.err
    assert build("--parity-tolerance", "0.01", backbone=tmp_path / "off.onnx").code == 0


def test_an_image_size_that_does_not_fit_is_refused(build: Callable[..., Built]) -> None:
    assert "Use 48x96 or 64x96" in build("--image-size", "60x96").err


def test_the_size_after_the_crop_is_what_must_fit(build: Callable[..., Built]) -> None:
    assert build("--image-size", "70x100", "--crop-size", "64x96").code == 0
    assert "Use 48x96 or 64x96" in build("--image-size", "70x100", "--crop-size", "60x96").err


# ---- without torch


def test_everything_but_tracing_works_without_torch(
    plain: Built, parts: Path, student: Path, tmp_path: Path
) -> None:
    made, int8 = tmp_path / "part.pcbundle", tmp_path / "int8.pcbundle"
    command = ["pcexport", "build", str(parts), "--backbone", str(student), *QUICK]
    done = run_without(
        ABSENT,
        [*command, "-o", str(made)],
        [*command, "-o", str(int8), "--precision", "int8", "--project", "16", "--allow-flips"],
        ["pcrun", "selftest", "--bundle", str(made)],
        ["pcrun", "selftest", "--bundle", str(int8)],
        ["pcexport", "eval", str(made), str(parts), "-o", str(tmp_path / "report.html")],
        ["pcexport", "eval", "--compare", str(made), str(int8), str(parts)],
        ["pcexport", "calibrate", str(made), str(parts / "test" / "good"), "-o",
         str(tmp_path / "again.pcbundle"), "--allow-shortage"],
        ["pcexport", "inspect", str(made)],
        ["pcexport", "pack", str(made)],
        ["pcexport", "backbones"],
        ["pcrun", "bench", "--bundle", str(made), "--duration", "0", "--queries", "3", "--starts", "0"],
    )  # fmt: skip
    codes = re.findall(r"^exit code of (\w+ \w+) (\d+)$", done.stdout, re.MULTILINE)
    assert [code for _, code in codes] == ["0"] * 11, (codes, done.stderr)
    assert (tmp_path / "report.html").is_file() and (tmp_path / "again.pcbundle").is_dir()
    # With torch installed, the same bytes.
    assert contents(made) == contents(plain.path)


def test_a_backbone_that_is_traced_says_what_to_install(parts: Path, tmp_path: Path) -> None:
    command = ["pcexport", "build", str(parts), "-o", str(tmp_path / "a.pcbundle"), "--weights", "untrained"]
    done = run_without(ABSENT, command)
    assert "exit code of pcexport build 2" in done.stdout
    assert re.search(r"error: torch is missing; .*pip install 'patchcore-edge\[export,cpu\]'", done.stderr)


def test_without_onnx_the_extra_build_is_what_to_install(parts: Path, student: Path, tmp_path: Path) -> None:
    build = ["pcexport", "build", str(parts), "-o", str(tmp_path / "a.pcbundle"), "--backbone", str(student)]
    done = run_without(("onnx",), build)
    assert "exit code of pcexport build 2" in done.stdout
    assert re.search(r"error: .*'onnx'.* pip install 'patchcore-edge\[build,cpu\]'", done.stderr)


def test_missing_torch_names_the_shipped_students(
    monkeypatch: pytest.MonkeyPatch, student: Path, build: Callable[..., Built]
) -> None:
    monkeypatch.setattr(registry, "STUDENTS", student.parent)
    monkeypatch.setitem(sys.modules, "pcexport.backbones.loader", None)
    built = build("--weights", "untrained", backbone="resnet18")
    assert built.code == 2 and "needs no torch: --backbone tiny-s" in built.err


# ---- the other commands


def test_backbones_lists_the_students_with_what_they_are(
    monkeypatch: pytest.MonkeyPatch, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "STUDENTS", student.parent)
    assert main(["backbones"]) == 0
    shown = " ".join(re.sub("[│┃]", " ", capsys.readouterr().out).split())
    assert "tiny-s layer2, layer3 student file 40-d, stride 8; distilled from resnet18" in shown


def test_the_demo_builds_with_a_student_and_gives_verdicts(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"train": 14, "test_good": 2, "test_per_defect": 1, "size_px": 128}
    monkeypatch.setattr(demo_module, "generate_parts", lambda root: generate_parts(root, **few))
    assert demo_module.run_demo(tmp_path / "demo", backbone=str(student)) == 0
    manifest = Bundle.load(tmp_path / "demo" / "parts.pcbundle").manifest
    assert manifest.embedding.backbone == "tiny-s"
    assert len(list((tmp_path / "demo" / "overlays").rglob("*.png"))) == 7
    assert "overlays" in capsys.readouterr().out
