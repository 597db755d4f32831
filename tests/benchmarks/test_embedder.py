"""`pcbench embedder`: rows by precision and provider, the raw samples behind them, and the README's table."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pcbench.cli import main
from pcbench.readme import BEGIN, END
from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import AccuracySpec, Manifest, write_manifest
from pcrun.images.image_io import encode_png


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (40, 60, 3), np.uint8)))
    return folder


def variant(bundle: Path, name: str, change: Callable[[Manifest], Manifest]) -> Path:
    """A copy of a bundle with another manifest."""
    copy = bundle.with_name(f"{name}.pcbundle")
    shutil.copytree(bundle, copy)
    write_manifest(copy, dataclasses.replace(change(Bundle.load(bundle).manifest), name=name))
    return copy


def with_auroc(auroc: float) -> Callable[[Manifest], Manifest]:
    return lambda manifest: dataclasses.replace(manifest, accuracy=AccuracySpec(9, 9, auroc, 0, 0))


def in_bfloat16(manifest: Manifest) -> Manifest:
    return dataclasses.replace(manifest, embedding=dataclasses.replace(manifest.embedding, precision="bf16"))


def measured(output: Path, pictures: Path, *bundles: Path, flags: tuple[str, ...] = ()) -> int:
    named = [word for bundle in bundles for word in ("--bundle", str(bundle))]
    return main(
        ["embedder", *named, str(pictures), "--name", "tiny", "--threads", "1", "-o", str(output), *flags]
    )


def test_rows_are_ratios_to_the_first_bundle_with_the_samples_behind_them(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = variant(tiny_bundle, "first", with_auroc(0.97))
    second = variant(tiny_bundle, "second", with_auroc(0.965))
    output = tmp_path / "embedder.json"
    assert measured(output, pictures, first, second) == 0
    result = json.loads(output.read_text())
    assert result["kind"] == "embedder" and str(tmp_path) not in output.read_text()
    assert [row["bundle"] for row in result["rows"]] == ["first", "second"]
    for row, samples in zip(result["rows"], result["samples_ms"].values(), strict=True):
        assert len(samples) == row["samples"] == result["images"] == 8
        assert row["median_ms"] == pytest.approx(np.median(samples), abs=0.002)
        assert row["of_fp32"] == pytest.approx(row["median_ms"] / result["rows"][0]["median_ms"], rel=0.1)
        assert (row["precision"], row["provider"]) == ("fp32", "cpu")
    assert result["rows"][0]["of_fp32"] == 1
    assert [row["auroc_difference"] for row in result["rows"]] == [0, -0.005]
    assert "0.9650 (-0.0050)" in capsys.readouterr().out


def test_every_bundle_runs_on_every_provider_that_computes_in_its_precision(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (extra: openvino)")
    coarse = variant(tiny_bundle, "coarse", in_bfloat16)
    output = tmp_path / "embedder.json"
    flags = ("--provider", "cpu", "--provider", "openvino")
    assert measured(output, pictures, tiny_bundle, coarse, flags=flags) == 0
    result = json.loads(output.read_text())
    rows = [(row["bundle"], row["precision"], row["provider"]) for row in result["rows"]]
    assert rows[:2] == [("tiny", "fp32", "cpu"), ("tiny", "fp32", "openvino")]
    assert set(rows[2:]) <= {("coarse", "bf16", "openvino")}
    # One reason for every bundle and provider without a row.
    assert len(result["left_out"]) + len(rows) == 4
    assert result["left_out"][0].startswith("coarse on cpu: Provider 'cpu' does not compute in bf16")
    assert "left out: coarse on cpu" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cropped(manifest: Manifest) -> Manifest:
        return dataclasses.replace(
            manifest, preprocess=dataclasses.replace(manifest.preprocess, resize_height_px=64)
        )

    coarse, other = variant(tiny_bundle, "coarse", in_bfloat16), variant(tiny_bundle, "other", cropped)
    output = tmp_path / "embedder.json"
    for bundles, message in (
        ((coarse, tiny_bundle), "The first bundle computes in bf16. Expected an fp32 one"),
        ((tiny_bundle, other), "prepares images otherwise"),
        ((tiny_bundle, tiny_bundle), "Two bundles share name and precision"),
    ):
        assert measured(output, pictures, *bundles) == 2
        assert message in capsys.readouterr().err
    assert measured(output, pictures / "0.png", tiny_bundle) == 2
    assert "1 image is too few for a median" in capsys.readouterr().err
    assert not output.exists()


def test_the_readme_gets_a_row_for_each(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    measured(results / "embedder.json", pictures, variant(tiny_bundle, "first", with_auroc(0.97)))
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    assert main(["readme", "--readme", str(readme), "--results", str(results)]) == 0
    assert (
        "| tiny_conv, fp32, 8-d | cpu | " in readme.read_text() and " | 1.00 | 0.9700 |" in readme.read_text()
    )
