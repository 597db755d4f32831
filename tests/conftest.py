"""Fixtures shared by all tests."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Workers share the cores already, and more threads of numpy's and torch's only take each other's turns: 336 s
# of the whole run became 309 s. Set before any of the libraries is imported; processes of tests inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

PROJECT_ROOT = Path(__file__).resolve().parent.parent

BundleMaker = Callable[..., Path]
_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Also fixtures of a whole session or module must not meet the user's device profiles."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCRUN_CACHE", str(folder / "shared"))
        yield folder


@pytest.fixture(autouse=True)
def profile_cache(_caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `pcrun` keeps device profiles during this test; it is made with the first of them."""
    folder = _caches / str(next(_numbers))
    monkeypatch.setenv("PCRUN_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def realdata_dir() -> Path:
    """The folder of real images and weights, which is not part of the project; skips where it is absent."""
    named = os.environ.get("PCEDGE_DATA")
    path = Path(named) if named else PROJECT_ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set PCEDGE_DATA to its folder")
    return path


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory: pytest.TempPathFactory) -> BundleMaker:
    """Makes tiny bundles, one per choice of arguments and session; shared by all tests, so read only."""
    for module in ("hnswlib", "onnx", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed: the tiny bundle is made with it")
    from tests.data.make_tiny_bundle import make_tiny_bundle

    made: dict[str, Path] = {}

    def make(**arguments: Any) -> Path:
        key = repr(sorted(arguments.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("made") / "tiny.pcbundle"
            make_tiny_bundle(made[key], **arguments)
        return made[key]

    return make


@pytest.fixture
def copied_bundle(made_bundle: BundleMaker, tmp_path: Path) -> BundleMaker:
    """Like `made_bundle`, but every call gives a new copy that belongs to this test alone."""
    copies: list[Path] = []

    def copy(**arguments: Any) -> Path:
        path = tmp_path / f"copy{len(copies)}.pcbundle"
        copies.append(path)
        return Path(shutil.copytree(made_bundle(**arguments), path))

    return copy


@pytest.fixture
def tiny_bundle(copied_bundle: BundleMaker) -> Path:
    """A copy of the plain tiny bundle that belongs to this test alone."""
    return copied_bundle()
