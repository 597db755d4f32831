"""Fixtures of the tests of `pcrun`."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcrun.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `pcrun` in this process; gives exit code, standard output and standard error."""
    monkeypatch.delenv("PCRUN_BUNDLE", raising=False)
    # `main` sets both for its process; here the process is pytest.
    handler = signal.getsignal(signal.SIGTERM)
    for name in ("OPENCV_LOG_LEVEL", "OPENCV_FFMPEG_LOGLEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a normal image and one with a defect, a.png and b.png."""
    from tests.data.make_tiny_bundle import smooth_image, with_defect

    folder = tmp_path / "images"
    folder.mkdir()
    normal = smooth_image(np.random.default_rng(11))
    for name, pixels in (("a.png", normal), ("b.png", with_defect(normal))):
        (folder / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return folder
