"""Golden samples: what `pcrun selftest` makes of a sound bundle, of a changed one and of a damaged one."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcrun.bundle.manifest import EMBEDDER_NAME, MEMORY_BANK_NAME, SAMPLES_NAME
from pcrun.cli import main
from pcrun.detector import NO_THRESHOLD
from pcrun.errors import BundleError
from pcrun.selftest import run_selftest
from tests.conftest import BundleMaker
from tests.contract.damage import ADVICE, DAMAGES, edit_manifest, forge, without
from tests.contract.detectors import load

pytest.importorskip("hnswlib", reason="hnswlib is not installed: the tiny bundle is made with it")
pytest.importorskip("onnx", reason="onnx is not installed: the tiny bundle is made with it")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"image_score": "reweighted"},
        {"with_index": False},
        {"thresholds": False},
        {"seed": 3, "dim": 5},
        {"batch": None},
        {"batch": 4},
        {"search_dim": 3},
        {"search_dim": 1, "image_score": "reweighted"},
        {"search_dim": 7, "with_index": False},
    ],
    ids=str,
)
def test_every_kind_of_bundle_passes_its_selftest(
    made_bundle: BundleMaker, arguments: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path = made_bundle(**arguments)
    limit = None if arguments.get("thresholds", True) else NO_THRESHOLD
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_selftest(load(path, threshold=limit, pixel_threshold=limit)).passed
    assert main(["selftest", "--bundle", str(path), "--provider", "cpu"]) == 0
    assert capfd.readouterr().err == ""


def edit_golden(path: Path, edit: Any) -> None:
    golden = json.loads((path / SAMPLES_NAME).read_bytes())
    edit(golden["samples"])
    forge(path, SAMPLES_NAME, json.dumps(golden).encode())


@pytest.mark.parametrize(
    "edit",
    [
        lambda samples: samples[0].update(image_score=samples[0]["image_score"] * 1.01),
        lambda samples: samples[1].update(map_max=samples[1]["map_max"] * 0.99),
        lambda samples: samples[1].update(is_anomalous=False),
    ],
    ids=["image score", "map", "verdict"],
)
def test_the_selftest_detects_one_changed_value(
    tiny_bundle: Path, edit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_golden(tiny_bundle, edit)
    report = run_selftest(load(tiny_bundle))
    assert not report.passed and [check.passed for check in report.checks].count(False) == 1
    assert main(["selftest", "--bundle", str(tiny_bundle), "--provider", "cpu"]) == 1
    assert "1 of 2 golden samples agree" in capsys.readouterr().out


@pytest.mark.parametrize("name", [EMBEDDER_NAME, MEMORY_BANK_NAME])
def test_the_selftest_detects_parts_of_another_build_that_fit(
    copied_bundle: BundleMaker, made_bundle: BundleMaker, name: str
) -> None:
    # Same shapes and a forged hash: nothing that can be checked at loading tells them apart.
    path = copied_bundle(with_index=False)
    forge(path, name, (made_bundle(with_index=False, seed=1) / name).read_bytes())
    assert not run_selftest(load(path)).passed


def test_a_detector_made_from_parts_has_no_selftest(tiny_bundle: Path) -> None:
    detector = load(tiny_bundle)
    detector.bundle = None
    with pytest.raises(BundleError, match=r"AnomalyDetector\.load"):
        run_selftest(detector)


# --- damaged samples ---


def expected(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda golden: golden["samples"][0].update(changes)


GOLDEN_EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda g: g.update(extra=1), "unknown key 'extra'"),
    "missing key": (lambda g: g["samples"][1].pop("image_score"), "missing image_score"),
    "no tolerance": (lambda g: g.pop("tolerance_relative"), "missing tolerance_relative"),
    "score as text": (expected(image_score="0.5"), "samples.samples[0].image_score: expected a number"),
    "score NaN": (expected(image_score=math.nan), "expected a finite number"),
    "score null": (expected(map_max=None), "expected a number, got None"),
    "verdict as number": (expected(is_anomalous=0), "expected true or false"),
    "no samples": (lambda g: g.update(samples=[]), "holds no golden samples"),
    "file not listed": (expected(file="samples/999.png"), "samples/999.png is not listed"),
    "file outside": (expected(file="../secret.png"), "../secret.png is not listed"),
}


@pytest.mark.parametrize("edit", GOLDEN_EDITS)
def test_wrong_golden_samples_end_the_selftest(
    bundle: Path, cli_error: Callable[[list[str]], str], edit: str
) -> None:
    change, words = GOLDEN_EDITS[edit]
    golden = json.loads((bundle / SAMPLES_NAME).read_bytes())
    change(golden)
    forge(bundle, SAMPLES_NAME, json.dumps(golden).encode())
    message = cli_error(["selftest", "--bundle", str(bundle), "--provider", "cpu"])
    assert words in message and ADVICE.search(message)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"[" * 200_000, b"\xff"], ids=["empty", "cut", "list", "nested", "not UTF-8"]
)
def test_unreadable_golden_samples_end_the_selftest(
    bundle: Path, cli_error: Callable[[list[str]], str], data: bytes
) -> None:
    forge(bundle, SAMPLES_NAME, data)
    message = cli_error(["selftest", "--bundle", str(bundle), "--provider", "cpu"])
    assert message.startswith(f"{SAMPLES_NAME} cannot be understood") and ADVICE.search(message)


@pytest.mark.parametrize("damage", ["emptied", "halved", "first byte"])
def test_an_unreadable_golden_image_ends_the_selftest(
    bundle: Path, cli_error: Callable[[list[str]], str], damage: str
) -> None:
    name = "samples/001.png"
    forge(bundle, name, DAMAGES[damage]((bundle / name).read_bytes()))
    message = cli_error(["selftest", "--bundle", str(bundle), "--provider", "cpu"])
    assert message.startswith(name) and ADVICE.search(message)


def test_a_bundle_without_golden_samples_says_so(bundle: Path, cli_error: Callable[[list[str]], str]) -> None:
    edit_manifest(bundle, without("files", SAMPLES_NAME))
    assert "holds no golden samples" in cli_error(["selftest", "--bundle", str(bundle), "--provider", "cpu"])
