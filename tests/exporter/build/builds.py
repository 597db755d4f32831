"""What the tests of builds share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from pcrun.bundle.bundle import Bundle
from pcrun.cli import main as pcrun

NORMALS = 14
TEST_GOOD = 2
QUICK = ("--weights", "untrained", "--image-size", "64", "--parity-images", "1")
STEPS = ["trace", "parity", "embed", "project", "coreset", "index", "measure search",
         "calibrate (kfold)", "evaluate", "golden samples and report", "verify", "tune"]  # fmt: skip


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

    def assert_refused(self, message: str) -> None:
        """Exit code 2, one clear last line, and nothing left beside the output."""
        assert self.code == 2, self.err
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("pcexport: error: ") and message in last, self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        assert not self.path.exists()
        assert left_beside(self.path) == []


def left_beside(path: Path) -> list[str]:
    """Names in the output's folder, hidden ones included."""
    return sorted(p.name for p in path.parent.iterdir() if p != path) if path.parent.exists() else []


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def scores_of(bundle: Path, images: Path, capsys) -> list[float]:
    capsys.readouterr()
    assert pcrun(["--bundle", str(bundle), "--images", str(images), "--format", "jsonl"]) == 0
    return [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]


def with_exif_rotation(jpeg: bytes) -> bytes:
    """Insert an EXIF block that says: rotate by 90 degrees clockwise (orientation 6)."""
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    payload = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + jpeg[2:]
