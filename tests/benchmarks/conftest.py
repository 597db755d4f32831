"""Fixtures shared by the tests of sweeps, reports and comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcbench.cli import main


@pytest.fixture(scope="session")
def real_cell(made_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A measured cell; those who change it take a copy."""
    folder = tmp_path_factory.mktemp("measured")
    command = ["latency", "--bundle", str(made_bundle()), "-o", str(folder), "--duration", "0"]
    assert main([*command, "--queries", "30", "--threads", "1"]) == 0
    (path,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
