"""`pcrun doctor`: real findings here, and broken libraries found without dying of them."""

import json
from pathlib import Path

import pytest

from pcrun.commands import doctor
from pcrun.commands.doctor import Finding, examine
from tests.contract.damage import edit_manifest
from tests.runtime.conftest import Run

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it is part of what is looked at")


def findings(bundle: Path | None = None) -> dict[str, Finding]:
    return {finding.topic: finding for finding in examine(bundle)}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules go before the installed ones, in processes started from here."""
    folder = tmp_path / "broken"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_this_machine(run: Run, tiny_bundle: Path) -> None:
    code, out, _ = run("doctor", "--bundle", tiny_bundle, "--json")
    found = {finding["topic"]: finding for finding in json.loads(out)["findings"]}
    assert code == (1 if any(f["state"] == "problem" for f in found.values()) else 0)
    assert {"software", "processor", "onnxruntime", "provider cpu", "opencv", "cameras", "bundle"} <= set(
        found
    )
    assert found["provider cpu"]["state"] == "ok" and found["bundle"]["facts"]["passed"]
    assert found["processor"]["facts"]["cores"] >= 1
    for finding in found.values():
        assert (finding["state"] != "ok") == bool(finding["fix"])


def test_for_people(run: Run) -> None:
    _, out, _ = run("doctor")
    assert any(line.startswith("ok      provider cpu") for line in out.splitlines())


def test_a_library_for_another_processor_is_a_finding(broken: Path) -> None:
    (broken / "hnswlib.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    found = findings()["hnswlib"]
    assert (
        found.state == "problem" and "died of signal 4" in found.text and "HNSWLIB_NO_NATIVE=1" in found.fix
    )


def test_onnxruntime_that_cannot_be_imported(broken: Path) -> None:
    (broken / "onnxruntime.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    found = findings()
    assert found["onnxruntime"].state == "problem" and "libcudart.so.12" in found["onnxruntime"].text
    assert "provider cpu" not in found


def test_opencv_without_its_system_libraries(broken: Path) -> None:
    (broken / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    found = findings()["opencv"]
    assert found.state == "problem" and "libGL.so.1" in found.text and "libgl1" in found.fix


def test_a_provider_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._in_process

    def lying(code: str) -> tuple[dict[str, object], str | None]:
        return ({"right": False}, None) if "GraphSearch" in code else real(code)

    monkeypatch.setattr(doctor, "_in_process", lying)
    found = findings()["provider cpu"]
    assert found.state == "problem" and "wrong distances" in found.text


def test_a_gpu_that_onnxruntime_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_model", lambda: "RTX 4000")
    found = findings()
    if found["provider cuda"].text.startswith("a session"):
        pytest.skip("this onnxruntime has CUDA")
    assert "RTX 4000" in found["provider cuda"].text and "[gpu]" in found["provider cuda"].fix


def test_a_process_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LIMIT_S", 0.5)
    assert doctor._in_process("import time; time.sleep(60)") == ({}, "no answer within 0.5 s")


def test_a_bundle_that_is_damaged(tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda manifest: manifest.pop("method"))
    found = findings(tiny_bundle)["bundle"]
    assert found.state == "problem" and "method" in found.text
