"""Builds that fail, are refused or are interrupted: what is said, and what is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from pcexport import build as build_module
from pcexport.backbones import at_hand
from pcexport.bundle_writer import publish, staging_folder
from pcexport.cli import main
from pcrun.bundle.bundle import Bundle
from tests.exporter.build.builds import QUICK, contents, left_beside

# Where the output goes


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any real step of a build fails the test."""
    for name in ("find_dataset", "trace_network", "embed_images"):
        monkeypatch.setattr(build_module, name, lambda *args, name=name: pytest.fail(f"{name} was called"))


def test_an_existing_output_is_refused_before_any_work_and_stays(
    plain: Path, parts: Path, no_work, capsys
) -> None:
    before = contents(plain)
    assert main(["build", str(parts), "-o", str(plain), *QUICK]) == 2
    assert "exists already" in capsys.readouterr().err and contents(plain) == before


@pytest.mark.parametrize(
    "weights, message",
    [
        ("nowhere.pth", "nowhere.pth does not exist"),
        ("folder.pth", "folder.pth does not exist or is not a file"),
        ("empty.safetensors", "empty.safetensors is empty"),
        ("other.ckpt", "neither 'default', 'untrained' nor a .pth"),
        ("defalt", "neither 'default', 'untrained' nor a .pth"),
    ],
)
def test_weights_that_are_not_there_are_refused_before_any_work(
    parts: Path, tmp_path: Path, monkeypatch, no_work, capsys, weights: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "other.ckpt").write_bytes(b"weights")
    assert main(["build", str(parts), "-o", "new.pcbundle", "--weights", weights]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_timm_is_said_before_any_work(
    parts: Path, tmp_path: Path, monkeypatch, no_work, capsys
) -> None:
    monkeypatch.setattr(at_hand, "find_spec", lambda name: None)
    assert main(["build", str(parts), "-o", str(tmp_path / "new.pcbundle"), "--config", "dinov2"]) == 2
    error = capsys.readouterr().err
    assert "timm:vit_small_patch14_dinov2.lvd142m needs the package timm" in error
    assert "patchcore-edge[timm]" in error


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_folder_that_is_no_bundle_is_never_replaced(
    parts: Path, tmp_path: Path, no_work, capsys, force
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").write_bytes(b"x")
    assert main(["build", str(parts), "-o", str(tmp_path / "photos"), *QUICK, *force]) == 2
    assert "pcexport: error: " in capsys.readouterr().err
    assert (tmp_path / "photos" / "dear.jpg").read_bytes() == b"x"


def test_an_interrupt_while_replacing_keeps_the_old_bundle(tmp_path: Path, monkeypatch) -> None:
    old, new = tmp_path / "a.pcbundle", tmp_path / "staged"
    for folder, text in ((old, "old"), (new, "new")):
        folder.mkdir()
        (folder / "manifest.json").write_text(text)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self == new:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(new, old)
    assert (old / "manifest.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pcbundle", "staged"]


def test_a_failed_build_removes_the_folders_it_made(parts: Path, tmp_path: Path, no_work) -> None:
    (tmp_path / "kept").mkdir()
    output = tmp_path / "kept" / "new" / "deep" / "a.pcbundle"
    with pytest.raises(RuntimeError), staging_folder(output):
        raise RuntimeError
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_corrupt_defective_image_is_no_golden_sample(parts: Path, build, tmp_path: Path) -> None:
    copied = tmp_path / "parts"
    shutil.copytree(parts, copied)
    broken = copied / "test" / "chip" / "000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    built = build(data=copied)
    assert built.code == 0
    labels = [sample.label for sample in Bundle.load(built.path).golden_samples().samples]
    assert labels.count("defective") == 2


def test_a_full_disk_is_one_line(build, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build_module, "embed_images", full)
    built = build()
    assert built.code == 2 and "No space left on device" in built.err
    assert "Traceback" not in built.err


def test_force_replaces_the_old_bundle_entirely(build) -> None:
    first = build("--image-score", "reweighted")
    (first.path / "stray.txt").write_text("old")
    assert build("--force").code == 0
    assert set(contents(first.path)) == {"manifest.json", "manifest.sha256", *first.manifest.files}
    assert first.manifest.scoring.image_score == "max"
    assert left_beside(first.path) == []


def test_a_failed_build_with_force_keeps_the_old_bundle(build, mixed: Path) -> None:
    old = build()
    before = contents(old.path)
    assert build("--force", "--strict", data=mixed).code == 2
    assert contents(old.path) == before and left_beside(old.path) == []


def test_an_output_that_cannot_be_written_is_refused(parts: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["build", str(parts), "-o", str(tmp_path / "file" / "x.pcbundle"), *QUICK]) == 2
    assert "cannot be written" in capsys.readouterr().err


# Builds that must stop


def test_a_parity_failure_stops_the_build(build) -> None:
    build("--parity-tolerance", "1e-12").assert_refused("PyTorch and ONNX differ by")


def test_a_disk_that_is_too_small_is_said_before_embedding(build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    monkeypatch.setattr(build_module, "embed_images", lambda *a, **k: pytest.fail("embedded without space"))
    build().assert_refused("0.0 GB are free")


def test_a_bundle_that_does_not_repeat_its_samples_is_not_published(
    build, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build_module.write_samples

    def shifted(folder, *args):
        names = real(folder, *args)
        expected = folder / "samples" / "expected.json"
        data = json.loads(expected.read_text())
        data["samples"][0]["image_score"] *= 1.01
        expected.write_text(json.dumps(data))
        return names

    monkeypatch.setattr(build_module, "write_samples", shifted)
    build().assert_refused("does not repeat its own golden samples")


def test_embeddings_that_are_not_finite_stop_the_build(build, monkeypatch: pytest.MonkeyPatch) -> None:
    real = build_module.open_embedder

    def with_nan(*args):
        embedder, parity = real(*args)

        class Broken:
            provider = embedder.provider

            def embed(self, images):
                return embedder.embed(images) * np.float32("nan")

        return Broken(), parity

    monkeypatch.setattr(build_module, "open_embedder", with_nan)
    build().assert_refused("values that are not finite")


_INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts children that ignore it
import pcexport.memory_bank.embed as embed
real = embed.preprocess
def slow(*args):
    print("PREPARING", file=sys.stderr, flush=True)
    time.sleep(1)
    return real(*args)
embed.preprocess = slow
from pcexport.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGINT is sent the POSIX way")
def test_sigint_while_embedding_leaves_nothing_and_exits_with_130(parts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "part.pcbundle"
    command = [sys.executable, "-c", _INTERRUPTED, "build", str(parts), "-o", str(output), *QUICK]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "PREPARING" in line:
                break
        assert [name for name in left_beside(output) if name.startswith(".part.pcbundle.partial-")]
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert rest.strip().splitlines()[-1] == "pcexport: interrupted" and "Traceback" not in rest
    assert not output.exists() and left_beside(output) == []
