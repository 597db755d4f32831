"""Builds from parts of files, and the command that lists the layouts."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from pcexport.cli import main
from pcexport.datasets import LAYOUTS
from pcrun.bundle.bundle import Bundle
from tests.exporter.datasets.helpers import write_mask, write_npy

QUICK = (
    "--weights",
    "untrained",
    "--image-size",
    "32",
    "--parity-images",
    "1",
    "--threads",
    "1",
    "--no-tune",
)
STRIP_HW = (256, 1024)


def texture(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    return rng.integers(90, 160, (*hw, 3), np.uint8)


@pytest.fixture
def aitex(tmp_path: Path) -> Path:
    root, rng = tmp_path / "aitex", np.random.default_rng(0)
    for folder, names in (
        ("NODefect_images/a", [f"{number:04d}_000_01" for number in range(5)]),
        ("Defect_images", ["0010_006_01", "0100_025_08"]),
    ):
        (root / folder).mkdir(parents=True)
        for name in names:
            assert cv2.imwrite(str(root / folder / f"{name}.png"), texture(rng, STRIP_HW))
    write_mask(root / "Mask_images/0010_006_01_mask.png", STRIP_HW, (300, 20, 60, 60))
    return root


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    root, rng = tmp_path / "clips", np.random.default_rng(0)
    for part, count in (("training", 8), ("testing", 4)):
        (root / part / "videos").mkdir(parents=True)
        path = root / part / "videos" / "01.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (64, 48))
        for _ in range(count):
            writer.write(texture(rng, (48, 64)))
        writer.release()
    write_npy(root / "test_frame_mask/01.npy", np.array([0, 0, 1, 1]))
    return root


def build(data: Path, output: Path, *flags: str) -> dict[str, str]:
    """SHA-256 of every file of the bundle."""
    assert main(["build", str(data), "-o", str(output), *QUICK, *flags]) == 0
    files = sorted(path for path in output.rglob("*") if path.is_file())
    return {p.relative_to(output).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_two_builds_from_tiles_give_equal_bytes(
    aitex: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build(aitex, tmp_path / "one" / "a.pcbundle")
    moved = Path(shutil.move(str(aitex), tmp_path / "elsewhere" / "aitex"))
    assert first == build(moved, tmp_path / "two" / "a.pcbundle")
    manifest = Bundle.load(tmp_path / "one" / "a.pcbundle").manifest
    assert (manifest.source.layout, manifest.source.images_bank) == ("aitex", 4 * 4)
    assert manifest.accuracy is not None
    # Four tiles of the fifth strip and three beside the defect; one holds the defect.
    assert (manifest.accuracy.images_normal, manifest.accuracy.images_defective) == (7, 1)
    err = capsys.readouterr().err
    assert "layout aitex, 16 normal and 8 test images" in err
    assert "1 of 2 defective strips have no marked pixel" in err


def test_a_build_from_videos_reads_their_frames(clips: Path, tmp_path: Path) -> None:
    build(clips, tmp_path / "a.pcbundle", "--layout", "frames")
    manifest = Bundle.load(tmp_path / "a.pcbundle").manifest
    assert (manifest.source.layout, manifest.source.images_bank) == ("frames", 8)
    assert manifest.accuracy is not None
    assert (manifest.accuracy.images_normal, manifest.accuracy.images_defective) == (2, 2)
    assert "01.avi#frame=" in (tmp_path / "a.pcbundle" / "report.html").read_text(encoding="utf-8")


def test_the_command_lists_every_layout_with_what_it_expects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets"]) == 0
    text = capsys.readouterr().out
    for layout in LAYOUTS.values():
        assert layout.name in text and layout.title in text
        assert all(line.strip() in text for line in layout.expects.splitlines())


def test_the_command_lists_the_layouts_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == list(LAYOUTS)
    assert all(entry.keys() == {"name", "title", "expects"} for entry in listed)


def test_build_takes_every_layout_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in LAYOUTS:
        assert main(["build", str(tmp_path), "-o", str(tmp_path / "x"), "--layout", name]) == 2
        assert "is not one of" not in capsys.readouterr().err
    assert main(["build", str(tmp_path), "-o", str(tmp_path / "x"), "--layout", "odd"]) == 2
    assert "'odd' is not one of" in capsys.readouterr().err
