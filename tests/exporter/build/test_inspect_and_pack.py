"""`pcexport inspect` and `pcexport pack`, and wrong uses of all commands."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from pcexport.cli import main
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import SCHEMA_VERSION
from pcrun.cli import main as pcrun
from tests.exporter.build.builds import contents, left_beside, scores_of

# Looking at bundles and packing them


def test_inspect_shows_a_table_of_facts(plain: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")  # narrower tables fold long values
    assert main(["inspect", str(plain)]) == 0
    shown = capsys.readouterr().out
    bundle = Bundle.load(plain)
    for fact in ("resnet18 layer2,layer3", "8x8 patches of 384-d", bundle.digest, "embedder.onnx", "torch 2"):
        assert fact in shown


def test_inspect_json_is_the_manifest_and_the_digest(plain: Path, capsys) -> None:
    assert main(["inspect", str(plain), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("digest") == Bundle.load(plain).digest
    assert shown == json.loads((plain / "manifest.json").read_text())
    assert shown["schema_version"] == SCHEMA_VERSION


def test_a_packed_bundle_scores_like_the_directory(plain: Path, parts: Path, tmp_path: Path, capsys) -> None:
    packed = tmp_path / "part.zip"
    assert main(["pack", str(plain), "-o", str(packed)]) == 0
    images = parts / "test" / "good"
    assert scores_of(packed, images, capsys) == scores_of(plain, images, capsys)
    assert Bundle.load(packed).digest == Bundle.load(plain).digest
    assert pcrun(["selftest", "--bundle", str(packed)]) == 0
    assert main(["inspect", str(packed)]) == 0


def test_packing_twice_gives_equal_bytes_with_the_manifest_first(plain: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        assert main(["pack", str(plain), "-o", str(tmp_path / name)]) == 0
    os.utime(plain / "manifest.json", (0, 0))
    assert main(["pack", str(plain), "-o", str(tmp_path / "b.zip"), "--force"]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[0] == "manifest.json"
    assert left_beside(tmp_path / "a.zip") == ["b.zip"]


@pytest.mark.parametrize("here", [False, True])
def test_pack_names_the_zip_after_the_bundle(plain: Path, tmp_path: Path, monkeypatch, here: bool) -> None:
    copied = shutil.copytree(plain, tmp_path / "part.pcbundle")
    monkeypatch.chdir(copied)
    assert main(["pack", "." if here else str(copied)]) == 0
    assert Bundle.load(tmp_path / "part.pcbundle.zip").digest == Bundle.load(plain).digest


def test_a_damaged_bundle_is_not_packed(plain: Path, tmp_path: Path, capsys) -> None:
    copied = shutil.copytree(plain, tmp_path / "part.pcbundle")
    data = bytearray((copied / "report.html").read_bytes())
    data[10] ^= 1
    (copied / "report.html").write_bytes(bytes(data))
    assert main(["pack", str(copied)]) == 2
    assert "report.html does not match its SHA-256" in capsys.readouterr().err
    assert left_beside(copied) == []


# Wrong uses


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["build"], "Missing argument 'DATA'"),
        (["build", "{parts}"], "Missing option '-o'"),
        (["build", "{tmp}/gone", "-o", "{tmp}/x"], "There is no folder"),
        (["build", "{tmp}", "-o", "{tmp}/x"], "no known layout"),
        (["build", "{parts}", "-o", "{tmp}/x", "--bakbone", "a"], "--backbone"),
        (["build", "{parts}", "-o", "{tmp}/x", "--backbone", "resnet19"], "'resnet18'"),
        (["build", "{parts}", "-o", "{tmp}/x", "--config", "fats"], "Did you mean 'fast'?"),
        (["build", "{parts}", "-o", "{tmp}/x", "--seed", "one"], "'one' is not a valid integer"),
        (["build", "{parts}", "-o", "{tmp}/x", "--seed", "-1"], "seed must be at least 0"),
        (["build", "{parts}", "-o", "{tmp}/x", "--layout", "odd"], "'odd' is not one of"),
        (["build", "{parts}", "-o", "{tmp}/x", "--image-size", "big"], "must look like 224 or 224x320"),
        (["build", "{parts}", "-o", "{tmp}/x", "--image-size", "5000"], "must be 1..4096"),
        (["build", "{parts}", "-o", "{tmp}/x", "--crop-size", "500"], "must fit into the resized image"),
        (["build", "{parts}", "-o", "{tmp}/x", "--weights", "{tmp}/gone.pth"], "gone.pth does not exist"),
        (["inspect"], "Missing argument 'BUNDLE'"),
        (["inspect", "{tmp}/gone"], "There is no bundle at"),
        (["inspect", "{parts}"], "manifest.json is missing"),
        (["inspect", "{parts}/train/good/000.png"], "neither a bundle directory nor a readable zip"),
        (["pack"], "Missing argument 'BUNDLE'"),
        (["pack", "{tmp}/gone"], "is not a bundle directory"),
        (["pack", "{parts}"], "manifest.json is missing"),
        (["pack", "{plain}", "-o", "{parts}"], "is a folder"),
        (["pack", "{plain}", "-o", "{parts}", "--force"], "is a folder"),
        (["pack", "{plain}", "-o", "{parts}/train/good/000.png"], "exists already"),
        (["pack", "{plain}", "-o", "{parts}/train/good/000.png/x.zip"], "cannot be written"),
        (["backbones", "extra"], "unexpected extra argument"),
        (["demo", "extra"], "unexpected extra argument"),
        (["demo", "--out", "{parts}/train/good/000.png"], "is a file"),
    ],
    ids=lambda value: " ".join(value).replace("{", "").replace("}", "") if isinstance(value, list) else None,
)
def test_a_wrong_use_ends_with_one_clear_line(
    arguments: list[str], message: str, parts: Path, plain: Path, tmp_path: Path, capsys
) -> None:
    before = contents(parts)
    (tmp_path / "not_an_image.txt").write_text("x")
    places = {"parts": parts, "plain": plain, "tmp": tmp_path}
    code = main([argument.format(**places) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    lines = captured.err.strip().splitlines()
    errors = [line for line in lines if "rror: " in line]
    assert errors == lines[-1:] and message in lines[-1]
    assert "Traceback" not in captured.err
    assert contents(parts) == before
    assert [path.name for path in tmp_path.iterdir()] == ["not_an_image.txt"]


def test_debug_shows_the_trace(tmp_path: Path, capsys) -> None:
    command = ["build", str(tmp_path / "gone"), "-o", str(tmp_path / "x")]
    for flags, shown in (([], False), (["--debug"], True)):
        assert main([*command, *flags]) == 2
        assert ("Traceback" in capsys.readouterr().err) == shown
