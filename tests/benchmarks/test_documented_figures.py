"""Figures in the prose of README.md and docs/backbones.md are those of benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def auroc(name: str) -> float:
    value: float = result(name)["manifest"]["accuracy"]["image_auroc"]
    return value


def embedder(backbone: str, precision: str) -> Any:
    wanted = (backbone, precision, "cpu")
    rows = result("embedder-mtd")["rows"]
    found = [row for row in rows if (row["backbone"], row["precision"], row["provider"]) == wanted]
    assert len(found) == 1
    return found[0]


def row_of(title: str) -> str:
    lines = (ROOT / "docs" / "backbones.md").read_text().splitlines()
    found = [line for line in lines if line.startswith(f"| {title}")]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("title", "data"), [("Magnetic Tile Defects: image", "mtd"), ("drawn parts (", "parts")]
)
def test_accuracy_beside_the_teacher(title: str, data: str) -> None:
    values = [auroc(f"build-{data}-{backbone}") for backbone in ("resnet18", "edge-s")]
    assert f"| {values[0]:.4f} | {values[1]:.4f} |" in row_of(title)
    shown = [f"{value:.3f}" for value in values]
    assert f"{shown[0]} against {shown[1]}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_latency_beside_the_teacher(precision: str) -> None:
    teacher, student = embedder("resnet18", precision), embedder("edge-s", precision)
    row = row_of(f"embedder, {precision}")
    assert f"| {teacher['median_ms']:.1f} ms | {student['median_ms']:.1f} ms" in row
    assert f"({student['of_fp32']:.2f}" in row
    assert f"{student['of_fp32']:.2f}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("title", "data"), [("build of 761 tiles", "mtd"), ("build of 100 drawn", "parts")])
def test_time_of_a_build_beside_the_teachers(title: str, data: str) -> None:
    teacher, student = (result(f"build-{data}-{backbone}")["wall_s"] for backbone in ("resnet18", "edge-s"))
    assert f"| {teacher:.0f} s | {student:.0f} s ({student / teacher:.2f}) |" in row_of(title)


def test_memory_of_a_build_beside_the_teachers() -> None:
    peaks = [result(f"build-mtd-{backbone}")["peak_rss_mb"] for backbone in ("resnet18", "edge-s")]
    assert f"| {peaks[0]:,.0f} MB | {peaks[1]:,.0f} MB |" in row_of("peak memory")


def test_share_of_the_teachers_variance() -> None:
    facts = json.loads((ROOT / "exporter/pcexport/backbones/students/edge-s.json").read_text())
    shares = [facts["data"]["explained"][layer] for layer in facts["layers"]]
    assert f"{shares[0]:.1%}, {shares[1]:.1%}".replace("%", " %") in row_of("explained")
    assert f"{facts['steps']:,} steps" in (ROOT / "docs" / "backbones.md").read_text()


def test_sizes_of_the_environments() -> None:
    sizes = {row["extras"]: row["bytes"] for row in result("environments")["environments"]}
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"A device takes {sizes['cpu'] / 1e6:.0f} MB on its disk" in text
    assert (
        f"{sizes['build,cpu'] / 1e6:.0f} MB without PyTorch and {sizes['export,cpu'] / 1e9:.1f} GB with"
        in text
    )
