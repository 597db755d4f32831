"""pcbench measures what it says, keeps the raw samples, and renders the README from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcbench.cli import main
from pcbench.machine import machine_facts
from pcbench.readme import BEGIN, END, render
from pcbench.results import one_line_numbers, save_result
from pcexport.demo.parts import generate_parts
from pcrun.images.image_io import encode_png

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        (folder / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (40, 60, 3), np.uint8)))
    return folder


def test_build_records_time_memory_and_the_manifest(tmp_path: Path) -> None:
    generate_parts(tmp_path / "parts", train=6, test_good=1, test_per_defect=1, size_px=128)
    output = tmp_path / "out" / "build.json"
    flags = ["--backbone=edge-s", "--image-size=64", "--calibration=none", "--no-evaluate", "--no-tune"]
    assert main(["build", str(tmp_path / "parts"), "--name", "parts", "-o", str(output), "--", *flags]) == 0
    result = json.loads(output.read_text())
    assert result["kind"] == "build"
    assert result["wall_s"] > sum(result["seconds"].values()) * 0.9
    assert result["peak_rss_mb"] > 100  # its libraries alone take more
    assert result["manifest"]["source"]["images_bank"] == 6
    assert str(tmp_path) not in output.read_text()


def test_a_failed_build_is_an_error_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "build.json"
    assert main(["build", str(tmp_path / "absent"), "--name", "x", "-o", str(output)]) == 2
    assert "exit code 2" in capfd.readouterr().err
    assert not output.exists()


def measured_search(bundle: Path, pictures: Path, output: Path, *flags: str) -> int:
    arguments = ["search", "--bundle", str(bundle), "--normal", str(pictures), "--name", "tiny one"]
    return main([*arguments, "--no-cold-start", "-o", str(output), *flags])


def test_search_keeps_every_sample_and_gives_their_medians(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "search.json"
    listed = tmp_path / "defective.txt"
    listed.write_text("".join(f"{path}\n" for path in sorted(pictures.iterdir())[:7]))
    assert measured_search(tiny_bundle, pictures, output, "--defective", f"@{listed}") == 0
    (bundle,) = json.loads(output.read_text())["bundles"]
    assert str(tmp_path) not in output.read_text()
    for kind, count in (("normal", 9), ("defective", 7)):
        timed = bundle["contents"][kind]["end_to_end"]
        assert set(timed) == {"bare embedder", "certified", "exact", "one graph", "samples_ms"}
        for job, samples in timed["samples_ms"].items():
            assert len(samples) == timed[job]["samples"] == count
            assert timed[job]["median_ms"] == pytest.approx(np.median(samples), abs=0.002)
        searched = bundle["contents"][kind]["search"]
        assert {"exact BLAS", "quantised image", "quantised mask", "hnsw image", "hnsw mask"} <= set(searched)
        assert searched["hnsw mask"]["verified_patches"] >= searched["hnsw image"]["verified_patches"] > 0
    shown = capsys.readouterr().out
    assert "search exact" in shown and "the bare embedder" in shown


def test_search_measures_cold_starts(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "search.json"
    arguments = ["search", "--bundle", str(tiny_bundle), "--normal", str(pictures), "--max-images", "6"]
    assert main([*arguments, "--name", "tiny", "-o", str(output)]) == 0
    (bundle,) = json.loads(output.read_text())["bundles"]
    start = bundle["cold_start"]
    # A process with numpy, OpenCV and onnxruntime in it.
    assert start["median_ms"] > 50 and start["peak_rss_mb"] > 30


def test_search_needs_enough_images_for_a_median(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured_search(tiny_bundle, pictures / "0.png", tmp_path / "x.json") == 2
    assert "too few" in capsys.readouterr().err


def test_search_refuses_an_engine_that_gives_another_score(
    tiny_bundle: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pcrun.scoring import scorer as scoring

    monkeypatch.setattr(scoring, "certify_maximum", lambda patches, verifier, **options: None)
    monkeypatch.setattr(
        "pcrun.search.hnsw.HnswSearch.nearest",
        lambda self, queries: (np.full(len(queries), 1e3, np.float32), np.zeros(len(queries), np.int64)),
    )
    assert measured_search(tiny_bundle, pictures, tmp_path / "x.json") == 2
    assert "another image score than exact search" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_readme_gets_the_figures_between_its_marker_lines(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    output = results / "tiny.json"
    measured_search(tiny_bundle, pictures, output)
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["readme", "--readme", str(readme), "--results", str(results)]
    assert main([*arguments, "--check"]) == 1
    assert "old" in readme.read_text()
    assert main(arguments) == 0
    assert readme.read_text() == f"before\n{BEGIN}\n{render(results)}\n{END}\nafter\n"
    (bundle,) = json.loads(output.read_text())["bundles"]
    total = bundle["contents"]["normal"]["end_to_end"]["certified"]["median_ms"]
    row = next(line for line in readme.read_text().splitlines() if line.startswith("| 200 | normal"))
    assert f" {total:.1f} " in row
    assert main([*arguments, "--check"]) == 0


def test_readme_has_a_row_for_each_bundle_of_a_sweep(tiny_bundle: Path, tmp_path: Path) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    sweep = results / "latency-tiny"
    asked = [
        "--threads",
        "1",
        "--exactness",
        "mask",
        "--exactness",
        "full",
        "--duration",
        "0",
        "--queries",
        "20",
    ]
    assert main(["latency", "--bundle", str(tiny_bundle), *asked, "-o", str(sweep)]) == 0
    readme.write_text(f"{BEGIN}\n{END}\n")
    assert main(["readme", "--readme", str(readme), "--results", str(results)]) == 0
    (row,) = [line for line in readme.read_text().splitlines() if line.startswith("| tiny_conv")]
    medians = []
    for level in ("mask", "full"):
        (path,) = sweep.glob(f"*-{level}-*.json")
        data = json.loads(path.read_text())
        assert '"samples_ms": [' in path.read_text() and ",\n    0." not in path.read_text()
        found = [c["scenarios"]["single-stream"]["latency_ms"]["median"] for c in data["contents"]]
        medians.append(", ".join(f"{value:.1f}" for value in found))
    assert [cell.strip() for cell in row.split("|")[3:5]] == medians


def test_the_readme_says_machine_and_versions_once_where_they_are_equal(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        measured_search(tiny_bundle, pictures, tmp_path / f"{name}.json")
    machine = json.loads((tmp_path / "one.json").read_text())["machine"]["cpu"]
    assert render(tmp_path).count(machine) == 1
    assert render(tmp_path).splitlines()[-1].startswith(f"All measured on {machine}")
    other = json.loads((tmp_path / "two.json").read_text())
    other["versions"]["numpy"] = "0.1"
    (tmp_path / "two.json").write_text(json.dumps(other))
    assert render(tmp_path).count(machine) == 2 and render(tmp_path).count("numpy 0.1") == 1


def test_readme_has_a_row_for_each_environment(tmp_path: Path) -> None:
    rows = [
        {"extras": "cpu", "title": "device", "packages": 14, "bytes": 321_000_000},
        {"extras": "export,cpu", "title": "workstation", "packages": 61, "bytes": 5_250_000_000},
    ]
    sizes = {"wheel_bytes": 2_940_000, "sdist_bytes": 2_660_000}
    content = {"machine": machine_facts(), "versions": {}, **sizes, "environments": rows}
    save_result(tmp_path / "environments.json", "environments", content)
    text = render(tmp_path)
    assert "| `cpu` | device | 14 | 321 MB |" in text
    assert "| `export,cpu` | workstation | 61 | 5,250 MB |" in text
    assert "wheel 2.9 MB and sdist 2.7 MB" in text


def test_numbers_stand_on_one_line_and_mean_the_same() -> None:
    content = {"a": [1.5, -2e-7, 3], "b": [[1, 2], ["x", 1]], "c": [], "d": "[\n 1,\n 2\n]"}
    text = one_line_numbers(json.dumps(content, indent=1))
    assert json.loads(text) == content
    assert "[1.5,-2e-07,3]" in text


def test_a_foreign_file_among_the_results_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert main(["readme", "--readme", str(tmp_path / "README.md"), "--results", str(tmp_path)]) == 2
    assert "other.json is not a result file" in capsys.readouterr().err


def test_the_readme_of_this_project_shows_the_committed_results() -> None:
    arguments = [
        "readme",
        "--readme",
        str(ROOT / "README.md"),
        "--results",
        str(ROOT / "benchmarks" / "results"),
    ]
    assert main([*arguments, "--check"]) == 0
