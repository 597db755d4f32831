"""pcbench measures what it says, keeps the raw samples, and renders the README from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcbench.cli import main
from pcbench.readme import BEGIN, END, render
from pcexport.demo_parts import generate_parts
from pcrun.image_io import encode_png

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
    flags = ["--weights", "untrained", "--image-size", "64", "--calibration", "none", "--no-evaluate"]
    assert main(["build", str(tmp_path / "parts"), "--name", "parts", "-o", str(output), "--", *flags]) == 0
    result = json.loads(output.read_text())
    assert result["kind"] == "build"
    assert result["wall_s"] > sum(result["seconds"].values()) * 0.9
    assert result["peak_rss_mb"] > 100  # torch alone takes more
    assert result["manifest"]["source"]["images_bank"] == 6
    assert str(tmp_path) not in output.read_text()


def test_a_failed_build_is_an_error_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "build.json"
    assert main(["build", str(tmp_path / "absent"), "--name", "x", "-o", str(output)]) == 2
    assert "exit code 2" in capfd.readouterr().err
    assert not output.exists()


def test_stages_keep_every_sample_and_give_their_medians(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "stages.json"
    assert (
        main(["stages", "--bundle", str(tiny_bundle), str(pictures), "--name", "tiny", "-o", str(output)])
        == 0
    )
    result = json.loads(output.read_text())
    for level in ("image", "full"):
        samples = result["samples_ms"][level]
        assert len(samples) == result["images"] == 9
        median = np.median([sample["total_ms"] for sample in samples])
        assert result["median_ms"][level]["total_ms"] == pytest.approx(median, abs=0.006)
    assert result["worst_relative_score_difference"] < 1e-5


def test_stages_need_enough_images_for_a_median(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["stages", "--bundle", str(tiny_bundle), str(pictures / "0.png"), "--name", "x"]
    assert main([*arguments, "-o", str(tmp_path / "x.json")]) == 2
    assert "too few" in capsys.readouterr().err


def test_readme_gets_the_figures_between_its_marker_lines(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    results, readme = tmp_path / "results", tmp_path / "README.md"
    output = results / "tiny.json"
    main(["stages", "--bundle", str(tiny_bundle), str(pictures), "--name", "tiny one", "-o", str(output)])
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    arguments = ["readme", "--readme", str(readme), "--results", str(results)]
    assert main([*arguments, "--check"]) == 1
    assert "old" in readme.read_text()
    assert main(arguments) == 0
    assert readme.read_text() == f"before\n{BEGIN}\n{render(results)}\n{END}\nafter\n"
    total = json.loads(output.read_text())["median_ms"]["image"]["total_ms"]
    assert f"{total:.1f}" in next(line for line in readme.read_text().splitlines() if "tiny one" in line)
    assert main([*arguments, "--check"]) == 0


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
