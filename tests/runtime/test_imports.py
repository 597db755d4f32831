"""The runtime stays free of the build's packages, also where they are installed."""

from __future__ import annotations

import ast
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pcrun

BUILD_ONLY = ("onnx", "onnxscript", "pcbench", "pcexport", "scipy", "sklearn", "timm", "torch", "torchvision")
RUNTIME = Path(pcrun.__file__).parent
MODULES = ["pcrun", *sorted(module.name for module in pkgutil.walk_packages(pcrun.__path__, "pcrun."))]

IMPORT_ALL = """
import importlib, json, sys
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def imported_by(modules: list[str]) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter that has imported `modules`."""
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL.format(modules=modules)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {name.partition(".")[0] for name in json.loads(run.stdout)}


def test_importing_the_whole_runtime_imports_nothing_of_the_build() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed here: that it stays out would show nothing")
    assert {"pcrun.cli", "pcrun.commands.run", "pcrun.detector", "pcrun.search.quantised"} <= set(MODULES)
    imported = imported_by(MODULES)
    assert "numpy" in imported  # the list is that of the subprocess
    assert not imported & set(BUILD_ONLY)


def test_the_command_line_and_the_package_import_nothing_heavy() -> None:
    heavy = {"cv2", "hnswlib", "numpy", "onnxruntime", "rich", *BUILD_ONLY}
    assert not imported_by(["pcrun", "pcrun.cli"]) & heavy


def test_the_detector_needs_no_backend_before_it_loads_a_bundle() -> None:
    assert not imported_by(["pcrun.detector"]) & {"hnswlib", "onnxruntime"}


def imports_of(source: str) -> set[str]:
    """Top-level names of every import statement, wherever it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_imports_are_found_wherever_they_stand() -> None:
    assert imports_of(
        "def f():\n  try:\n    import torch.nn as n\n  except ImportError: from onnx import x"
    ) == {
        "torch",
        "onnx",
    }


@pytest.mark.parametrize("path", sorted(RUNTIME.rglob("*.py")), ids=lambda path: path.name)
def test_no_runtime_file_imports_the_build(path: Path) -> None:
    assert not imports_of(path.read_text(encoding="utf-8")) & set(BUILD_ONLY)
