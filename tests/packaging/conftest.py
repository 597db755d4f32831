"""Fixtures of the tests that run commands as a user does."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import BundleMaker
from tests.packaging.workplace import write_workplace


@pytest.fixture(scope="session")
def filled_workplace(made_bundle: BundleMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: copy it."""
    folder = tmp_path_factory.mktemp("workplace") / "filled"
    folder.mkdir()
    write_workplace(folder, made_bundle)
    return folder


@pytest.fixture
def place(filled_workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workplace as current folder, without a GPU, a screen or a camera of the machine."""
    registry, demo, parts = (
        importlib.import_module(f"pcexport.{name}")
        for name in ("backbones.registry", "demo.command", "demo.parts")
    )
    folder = Path(shutil.copytree(filled_workplace, tmp_path / "workplace"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(registry, "STUDENTS", folder / "students")
    few = {"train": 14, "test_good": 1, "test_per_defect": 1, "size_px": 128}
    monkeypatch.setattr(demo, "generate_parts", lambda root: parts.generate_parts(root, **few))
    # Where they are installed, commands would go on to what a test must not wait for.
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PCRUN_BUNDLE", "PCRUN_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return folder
