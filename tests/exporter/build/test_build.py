"""`pcexport build` end to end, with untrained weights on small generated parts: the bundle it makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from pcexport.cli import main
from pcrun.bundle.bundle import Bundle
from pcrun.cli import main as pcrun
from pcrun.detector import AnomalyDetector
from tests.exporter.build.builds import (
    NORMALS,
    QUICK,
    STEPS,
    TEST_GOOD,
    contents,
    left_beside,
    with_exif_rotation,
)


def test_a_build_gives_a_bundle_that_opens_and_passes_its_selftest(plain: Path, capsys) -> None:
    manifest = Bundle.load(plain).manifest
    assert set(contents(plain)) == {"manifest.json", "manifest.sha256", *manifest.files}
    assert {"embedder.onnx", "memory_bank.npy", "memory_bank.hnsw", "report.html"} <= set(manifest.files)
    assert (manifest.name, manifest.source.name, manifest.source.layout) == ("part", "parts", "mvtec")
    assert (manifest.source.images_bank, manifest.source.images_held_out, manifest.source.images_skipped) == (
        14,
        0,
        0,
    )
    assert manifest.embedding.weights_source.startswith("untrained")
    assert manifest.parity is not None and manifest.parity.max_relative_error < 1e-4
    assert manifest.scoring.threshold is not None and manifest.scoring.threshold.images == NORMALS
    assert manifest.accuracy is not None and manifest.accuracy.images_normal == TEST_GOOD
    assert pcrun(["selftest", "--bundle", str(plain)]) == 0
    assert "4 of 4 golden samples agree" in capsys.readouterr().out


def test_nothing_is_left_beside_a_finished_bundle(plain: Path) -> None:
    assert left_beside(plain) == ["summary.json"]


def test_json_holds_the_seconds_of_every_step_and_the_manifest(plain: Path) -> None:
    summary = json.loads(plain.with_name("summary.json").read_text())
    assert list(summary["seconds"]) == STEPS
    assert all(seconds >= 0 for seconds in summary["seconds"].values()) and summary["seconds"]["trace"] > 0
    assert summary["manifest"] == json.loads((plain / "manifest.json").read_text())
    assert summary["digest"] == Bundle.load(plain).digest
    assert summary["bytes"] == sum(path.stat().st_size for path in plain.rglob("*") if path.is_file())
    assert summary["bundle"] == str(plain)
    assert summary["profile"]["key"]["bundle"] == summary["digest"]
    assert any("14 normal images cannot support" in warning for warning in summary["warnings"])


def test_two_builds_are_equal_in_every_byte_of_every_file(plain: Path, parts: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "part.pcbundle"
    assert main(["build", str(parts), "-o", str(again), *QUICK, "--no-tune"]) == 0  # traced anew
    assert contents(again) == contents(plain)


def test_a_copy_of_the_data_in_another_place_gives_equal_bytes(
    plain: Path, parts: Path, build, tmp_path: Path
) -> None:
    copied = tmp_path / "moved" / "parts"
    shutil.copytree(parts, copied)
    assert contents(build("--threads", "0", data=copied, report=True).path) == contents(plain)


def test_another_seed_gives_another_bundle(plain: Path, build) -> None:
    first, other = contents(plain), contents(build("--seed", "1", report=True).path)
    assert {name for name in first if first[name] != other[name]} >= {
        "embedder.onnx", "memory_bank.npy", "memory_bank.hnsw", "manifest.json", "report.html"
    }  # fmt: skip


def test_the_summary_is_the_only_standard_output(build) -> None:
    built = build()
    assert built.code == 0
    assert built.out.startswith(str(built.path)) and "seconds per step" in built.out
    assert "trace: " in built.err and "needs about" in built.err


def test_names_with_brackets_are_shown_as_they_are(parts: Path, build, tmp_path: Path, capsys) -> None:
    data = tmp_path / "lot[red]"
    shutil.copytree(parts / "train" / "good", data)
    built = build(data=data, name="part[bold].pcbundle")
    assert built.code == 0
    assert "lot[red] (flat)" in built.out and "part[bold].pcbundle" in built.out
    assert main(["inspect", str(built.path)]) == 0
    assert "lot[red] (flat)" in capsys.readouterr().out


# Images that are odd or broken


def test_odd_images_are_used_and_broken_ones_named_and_counted(mixed: Path, build) -> None:
    built = build("--json", data=mixed, report=True)
    assert built.code == 0
    source = built.manifest.source
    assert (source.images_bank, source.images_skipped) == (NORMALS + 4, 2)
    warnings = json.loads(built.out)["warnings"]
    left_out = [warning for warning in warnings if warning.startswith("left out")]
    assert len(left_out) == 2 and "020_corrupt.png" in left_out[0] and "021_empty.png" in left_out[1]
    assert any("024_alpha.png" in warning and "alpha" in warning for warning in warnings)
    assert all(warning in built.err for warning in warnings)


def test_an_exif_rotated_image_is_embedded_upright(parts: Path, build, tmp_path: Path) -> None:
    pixels = cv2.imread(str(parts / "train" / "good" / "000.png"))
    jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    for name, data in (("turned", with_exif_rotation(jpeg)), ("plain", jpeg)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.jpg").write_bytes(data)
    turned = build("--calibration", "none", "--coreset-ratio", "1", data=tmp_path / "turned").path
    detector = AnomalyDetector.load(turned, threshold=1.0, pixel_threshold=1.0)
    upright = cv2.rotate(cv2.imread(str(tmp_path / "plain" / "a.jpg")), cv2.ROTATE_90_CLOCKWISE)
    assert detector(upright).image_score < 1e-2 * detector(pixels).image_score


@pytest.mark.parametrize("name", ["020_corrupt.png", "021_empty.png"])
def test_strict_stops_and_leaves_nothing(mixed: Path, build, name: str) -> None:
    for other in {"020_corrupt.png", "021_empty.png"} - {name}:
        (mixed / other).unlink()
    build("--strict", data=mixed).assert_refused(name)


def test_a_folder_of_unreadable_images_is_refused(build, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    build(data=tmp_path / "bad").assert_refused("None of the 1 normal images could be read")
