"""Builds in other arithmetic than float32 and with shorter embeddings."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

import torch

from pcexport import build as build_module
from pcexport.cli import main
from pcexport.demo.parts import generate_parts
from pcexport.graph.network import TracedNetwork
from pcrun import AnomalyDetector, BackendError, Bundle
from pcrun.cli import main as pcrun
from pcrun.images.image_io import encode_png
from tests.exporter.graph.conftest import SIDE

ALONE = ("--threads", "1", "--no-tune")
NORMALS = 14


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    generate_parts(root, train=NORMALS, test_good=2, test_per_defect=1, size_px=128)
    return root


@dataclasses.dataclass(frozen=True)
class Built:
    """What one call of `pcexport build` did."""

    code: int
    path: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def build(
    parts: Path, network: TracedNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Built]:
    """Builds on the network traced once; on one thread, because torch's would fight for the cores."""

    def run(*flags: str, data: Path = parts, report: bool = False) -> Built:
        output = tmp_path_factory.mktemp("out") / "part.pcbundle"
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(build_module, "trace_network", lambda config, preprocessing: network)
            if not report:  # half the time of a small build
                patch.setattr(build_module, "write_report", lambda path, *args: path.write_text("report"))
            quick = ["--weights", "untrained", "--image-size", str(SIDE), "--parity-images", "1"]
            code = main(["build", str(data), "-o", str(output), *quick, *ALONE, *flags])
        torch.set_num_threads(threads)
        return Built(code, output, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="module")
def int8_build(build: Callable[..., Built]) -> Built:
    return build("--precision", "int8", report=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_int8_build_says_what_it_does_to_the_scores_and_repeats_itself(
    int8_build: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    assert int8_build.code == 0, int8_build.err
    manifest = Bundle.load(int8_build.path).manifest
    assert (manifest.embedding.precision, manifest.embedding.provider) == ("int8", "cpu")
    spec = manifest.precision
    assert spec is not None and (spec.reference, spec.images, spec.flipped_verdicts) == ("fp32", NORMALS, 0)
    assert 0 < spec.mean_score_drift <= spec.max_score_drift < 0.2
    assert spec.reference_auroc is not None and manifest.accuracy is not None
    assert re.search(r"embedder +│ fp32 [\d.]+ ms, deployed [\d.]+ ms an image", int8_build.out)
    assert "int8; beside fp32, scores drift by" in int8_build.out
    report = (int8_build.path / "report.html").read_text()
    assert "Scores of int8, against fp32" in report and "Verdicts changed" in report
    assert pcrun(["selftest", "--bundle", str(int8_build.path)]) == 0
    assert "4 of 4 golden samples agree within 0.001" in capsys.readouterr().out


def test_two_int8_builds_are_equal_in_every_byte_but_not_in_their_latencies(
    int8_build: Built, build: Callable[..., Built]
) -> None:
    again = build("--precision", "int8", "--threads", "2", "--json", report=True)
    assert contents(again.path) == contents(int8_build.path)
    latency = json.loads(again.out)["embed_ms"]
    assert set(latency) == {"fp32", "deployed"} and min(latency.values()) > 0
    assert "embed_ms" not in (again.path / "manifest.json").read_text()


@pytest.fixture
def badly_calibrated(parts: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Data and flags with which the ranges come from one image of the mean colour: all others are cut off."""
    data = tmp_path / "parts"
    shutil.copytree(parts, data)
    first = min((data / "train" / "good").iterdir())
    first.write_bytes(encode_png(np.full((128, 128, 3), (104, 116, 124), np.uint8)))
    return data, ["--precision", "int8", "--quantisation-images", "1", "--false-alarm-rate", "0.5"]


def test_a_verdict_that_flips_stops_the_build(
    build: Callable[..., Built], badly_calibrated: tuple[Path, list[str]]
) -> None:
    data, flags = badly_calibrated
    built = build(*flags, data=data)
    assert built.code == 2 and not built.path.exists()
    last = built.err.strip().splitlines()[-1]
    assert re.search(r"error: \d+ of the calibration images get another verdict than in fp32: ", last)
    listed = re.findall(
        r"(\d{3}\.png) [\d.]+ \(threshold [\d.]+\), in fp32 [\d.]+ \(threshold [\d.]+\)", last
    )
    assert int(re.search(r"error: (\d+) of", last)[1]) == len(listed) == len(set(listed)) > 0
    assert "--allow-flips" in last and "Nothing was written" in last


def test_flips_can_be_allowed_and_are_counted_and_named(
    build: Callable[..., Built], badly_calibrated: tuple[Path, list[str]]
) -> None:
    data, flags = badly_calibrated
    built = build(*flags, "--allow-flips", "--json", data=data)
    assert built.code == 0, built.err
    spec = Bundle.load(built.path).manifest.precision
    assert spec is not None and spec.flipped_verdicts > 0
    (warning,) = (w for w in json.loads(built.out)["warnings"] if "another verdict than in fp32" in w)
    assert warning.count(".png") == spec.flipped_verdicts and warning in built.err


def test_held_out_images_are_compared_too(build: Callable[..., Built]) -> None:
    built = build("--precision", "int8", "--calibration", "holdout", "--image-score", "reweighted")
    assert built.code == 0, built.err
    manifest = Bundle.load(built.path).manifest
    assert manifest.precision is not None
    assert manifest.precision.images == manifest.source.images_held_out == 3


def test_without_calibration_nothing_is_compared_and_that_is_said(build: Callable[..., Built]) -> None:
    built = build("--precision", "int8", "--calibration", "none")
    assert built.code == 0 and Bundle.load(built.path).manifest.precision is None
    assert "what the graph does to the scores was not compared with fp32" in built.err


def test_a_float16_build_runs_and_says_that_the_cpu_is_the_wrong_place(
    build: Callable[..., Built], capsys: pytest.CaptureFixture[str]
) -> None:
    built = build("--precision", "fp16")
    assert built.code == 0, built.err
    (warning,) = (line for line in built.err.splitlines() if "the embedder is float16" in line)
    assert warning.startswith("warning: ") and "slower than float32" in warning
    manifest = Bundle.load(built.path).manifest
    assert manifest.embedding.precision == "fp16"
    assert manifest.precision is not None and manifest.precision.max_score_drift < 0.01
    assert pcrun(["selftest", "--bundle", str(built.path)]) == 0
    assert "pcrun: warning: the embedder is float16" in capsys.readouterr().err


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_a_bfloat16_build_needs_openvino(build: Callable[..., Built], provider: str) -> None:
    built = build("--precision", "bf16", "--provider", provider)
    assert built.code == 2 and "trace" not in built.err
    assert "does not compute in bf16. Expected `--provider openvino`" in built.err


def test_a_bfloat16_bundle_runs_on_openvino_alone(build: Callable[..., Built]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (extra: openvino)")
    built = build("--precision", "bf16", "--provider", "openvino")
    if "This processor has no bfloat16" in built.err:
        pytest.skip("this processor has no bfloat16")
    assert built.code == 0, built.err
    manifest = Bundle.load(built.path).manifest
    assert (manifest.embedding.precision, manifest.embedding.provider) == ("bf16", "openvino")
    assert "openvino" in manifest.created_by
    assert manifest.precision is not None and 0 < manifest.precision.max_score_drift < 0.05
    detector = AnomalyDetector.load(built.path, provider="openvino")
    assert (detector.precision, detector.change) == ("bf16", None)
    with pytest.raises(BackendError, match="'cpu' does not compute in bf16"):
        AnomalyDetector.load(built.path, provider="cpu")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_projected_build_has_short_embeddings_and_says_what_they_cost(
    build: Callable[..., Built], precision: str
) -> None:
    built = build("--project", "48", "--precision", precision, report=True)
    assert built.code == 0, built.err
    manifest = Bundle.load(built.path).manifest
    assert (manifest.embedding.dim, manifest.embedding.projected_from) == (48, 384)
    assert manifest.memory_bank.dim == 48
    assert manifest.precision is not None and 0 < manifest.precision.max_score_drift < 0.2
    assert (
        f"Scores of {precision}, projected from 384 values, against fp32"
        in (built.path / "report.html").read_text()
    )
    assert "projected from 384-d" in built.out
    assert pcrun(["selftest", "--bundle", str(built.path)]) == 0


def test_a_projection_that_does_not_shorten_is_refused(build: Callable[..., Built]) -> None:
    built = build("--project", "384")
    assert built.code == 2 and not built.path.exists()
    assert "project 384 is not fewer than the 384 dimensions" in built.err
