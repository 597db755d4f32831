"""Small generated parts, and builds of them with untrained weights."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcexport import build as build_module
from pcexport.cli import main
from pcexport.demo.parts import generate_parts
from pcexport.graph import network as network_module
from tests.exporter.build.builds import NORMALS, QUICK, TEST_GOOD, Built, with_exif_rotation


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    generate_parts(root, train=NORMALS, test_good=TEST_GOOD, test_per_defect=1, size_px=128)
    return root


@pytest.fixture(scope="session")
def traced() -> dict:
    """Graphs traced in this session; a trace is most of a small build's time."""
    return {}


@pytest.fixture
def quick_trace(monkeypatch: pytest.MonkeyPatch, traced: dict) -> Iterator[None]:
    """Trace each network once a session, on one thread: with more, torch and onnxruntime fight for the cores.

    That equal traces are equal bytes is tested without this.
    """
    import torch

    keys = ("backbone", "layers", "weights", "aggregation", "neighbourhood", "grid", "batch", "opset", "seed")

    def once(config, preprocessing):
        key = (*(getattr(config, name) for name in keys), preprocessing.input_hw)
        if key not in traced:
            traced[key] = network_module.trace_network(config, preprocessing)
        return traced[key]

    monkeypatch.setattr(build_module, "trace_network", once)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def build(parts: Path, tmp_path: Path, capsys, quick_trace) -> Callable[..., Built]:
    def run(
        *flags: str, data: Path | str = parts, name: str = "part.pcbundle", report: bool = False
    ) -> Built:
        output = tmp_path / "out" / name
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            if not report:  # half the time of a small build
                patch.setattr(build_module, "write_report", lambda path, *args: path.write_text("report"))
            quick = [*QUICK, "--threads", "1", "--no-tune"]
            code = main(["build", str(data), "-o", str(output), *quick, *flags])
        captured = capsys.readouterr()
        return Built(code, output, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def plain(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bundle, made by the unchanged command with `--json`; its summary stands beside it."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch, (folder / "summary.json").open("w") as stream:
        patch.setattr(sys, "stdout", stream)
        code = main(["build", str(parts), "-o", str(folder / "part.pcbundle"), *QUICK, "--json"])
    assert code == 0
    return folder / "part.pcbundle"


@pytest.fixture
def mixed(parts: Path, tmp_path: Path) -> Path:
    """The normal parts and, among them, one of each odd kind."""
    root = tmp_path / "mixed"
    shutil.copytree(parts / "train" / "good", root)
    pixels = cv2.imread(str(root / "000.png"))
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    whole = (root / "000.png").read_bytes()
    (root / "020_corrupt.png").write_bytes(whole[: len(whole) // 2])
    (root / "021_empty.png").write_bytes(b"")
    cv2.imwrite(str(root / "022_16bit.png"), pixels.astype(np.uint16) * 257)
    cv2.imwrite(str(root / "023_grey.png"), grey)
    cv2.imwrite(str(root / "024_alpha.png"), np.dstack([pixels, grey]))
    jpeg = cv2.imencode(".jpg", pixels[:, :96])[1].tobytes()
    (root / "025_rotated.jpg").write_bytes(with_exif_rotation(jpeg))
    return root
