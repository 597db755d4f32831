"""A folder as a user has it, small: a bundle, images, a video, result files. Commands are run in it."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import BundleMaker
from tests.data.make_tiny_bundle import smooth_image, with_defect
from tests.exporter.student_graphs import write_student

ROOT = Path(__file__).resolve().parents[2]
IMAGE_HW = (64, 96)
FRAMES, FPS = 12, 25
# Two small measurements, once as the old and once as the new side of a comparison.
CELLS = "resnet18-*-1pct-cpu-2threads-bundle-*-batch1.json"


def write_workplace(folder: Path, made_bundle: BundleMaker) -> None:
    """Fill an empty folder."""
    rng = np.random.default_rng(4)
    shutil.copytree(made_bundle(), folder / "bottle.pcbundle")
    _write_parts(folder / "parts" / "bottle", rng)
    write_images(folder / "good", rng, normal=24)
    write_images(folder / "bad", rng, defective=6)
    write_images(folder / "incoming", rng, normal=4, defective=2)
    write_video(folder / "line.mp4", rng)
    students = folder / "students"
    students.mkdir()
    # Under the name of the shipped one, whose place it takes in these tests.
    write_student(students / "edge-s.onnx")
    for side in ("old", "new"):
        (folder / "results" / side).mkdir(parents=True)
        for cell in sorted((ROOT / "benchmarks" / "results").glob(f"latency-*/{CELLS}")):
            shutil.copy(cell, folder / "results" / side)


def write_images(
    folder: Path, rng: np.random.Generator, *, normal: int = 0, defective: int = 0, first: int = 0
) -> None:
    """Normal images, then defective ones, with consecutive numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + normal + defective):
        image = smooth_image(rng, IMAGE_HW)
        image = with_defect(image) if number >= first + normal else image
        cv2.imwrite(str(folder / f"{number:03d}.png"), image)


def write_video(path: Path, rng: np.random.Generator) -> None:
    height, width = IMAGE_HW
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (width, height))
    assert writer.isOpened(), "this OpenCV cannot write MP4"
    for _ in range(FRAMES):
        writer.write(smooth_image(rng, IMAGE_HW))
    writer.release()


def _write_parts(root: Path, rng: np.random.Generator) -> None:
    """The layout of MVTec AD."""
    write_images(root / "train" / "good", rng, normal=14)
    write_images(root / "test" / "good", rng, normal=4)
    write_images(root / "test" / "scratch", rng, defective=4)
    masks = root / "ground_truth" / "scratch"
    masks.mkdir(parents=True)
    for image in sorted((root / "test" / "scratch").iterdir()):
        mask = with_defect(np.zeros((*IMAGE_HW, 3), np.uint8))
        cv2.imwrite(str(masks / f"{image.stem}_mask.png"), mask[..., 0])


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


def run_program(program: str, arguments: list[str]) -> Ran:
    """Call the entry point of a console script in this process, which looks the same afterwards."""
    out, err = io.StringIO(), io.StringIO()
    with same_process(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = importlib.import_module(f"{program}.cli").main(arguments)
    return Ran(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, or a skip without it: with more, it and onnxruntime fight for the cores."""
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def same_process() -> Iterator[None]:
    """Put back what `main` sets for its process."""
    names = ("OPENCV_LOG_LEVEL", "OPENCV_FFMPEG_LOGLEVEL", "OPENCV_FFMPEG_CAPTURE_OPTIONS")
    before = {name: os.environ.get(name) for name in names}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
