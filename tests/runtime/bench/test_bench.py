"""`pcrun bench` on a tiny bundle: every scenario, every figure where it belongs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")

from pcrun.bench import measure  # noqa: E402
from pcrun.bench.cold import cold_starts  # noqa: E402
from pcrun.bench.scenarios import Trial  # noqa: E402
from pcrun.commands import options as cli_options  # noqa: E402
from pcrun.errors import BackendError  # noqa: E402
from tests.data.make_tiny_bundle import smooth_image  # noqa: E402
from tests.runtime.conftest import Run  # noqa: E402

QUICK = ("--provider", "cpu", "--duration", 0.2, "--queries", 30, "--starts", 0)


def test_the_options_offer_what_there_is() -> None:
    assert cli_options.SCENARIOS == measure.SCENARIOS


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "part.png"
    assert cv2.imwrite(str(path), smooth_image(np.random.default_rng(3)))
    return path


def report_of(run: Run, *arguments: object) -> dict[str, Any]:
    code, out, err = run("bench", *arguments, "--json")
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


def test_stages_add_up_to_the_query(tiny_bundle: Path, run: Run) -> None:
    report = report_of(run, "--bundle", tiny_bundle, *QUICK)
    normal = report["contents"][0]["scenarios"]["single-stream"]
    samples = normal["stage_samples_ms"]
    stages = np.array([samples[stage] for stage in samples if stage != "total"])
    np.testing.assert_allclose(stages.sum(0), samples["total"], atol=1e-3)
    assert normal["latency_ms"]["count"] == len(normal["samples_ms"]) == len(samples["total"])
    assert normal["latency_ms"]["p90"] == pytest.approx(np.percentile(normal["samples_ms"], 90), abs=1e-3)
    assert normal["value"] == normal["latency_ms"]["p90"]
    # A query is what the clock around the detector saw, and a little more.
    assert np.median(normal["samples_ms"]) >= np.median(samples["total"])


def test_normal_and_defective_are_measured_apart(tiny_bundle: Path, run: Run) -> None:
    report = report_of(run, "--bundle", tiny_bundle, *QUICK)
    assert [c["name"] for c in report["contents"]] == ["golden samples, normal", "golden samples, defective"]
    verified = [c["scenarios"]["single-stream"]["verified_patches"]["median"] for c in report["contents"]]
    assert verified[1] >= verified[0]


def test_what_really_ran_is_in_the_report(tiny_bundle: Path, run: Run) -> None:
    report = report_of(run, "--bundle", tiny_bundle, *QUICK, "--search", "exact", "--threads", 1)
    settings = report["settings"]
    assert (settings["provider"], settings["search"], settings["threads"]) == ("cpu", "exact", 1)
    assert settings["device_profile"] is False
    assert report["machine"]["cores"] >= 1 and "numpy" in report["versions"]
    assert len(report["bundle"]["digest"]) == 64
    assert report["peak_resident_mb"] is None or report["peak_resident_mb"] > 20


def test_every_scenario(tiny_bundle: Path, image: Path, run: Run) -> None:
    chosen = [word for name in cli_options.SCENARIOS for word in ("--scenario", name)]
    report = report_of(
        run, "--bundle", tiny_bundle, "--images", image, *QUICK, *chosen, "--bound-ms", 200, "--fps", 50
    )
    found = report["contents"][0]["scenarios"]
    assert tuple(found) == cli_options.SCENARIOS
    assert found["multi-stream"]["images_per_query"] == 8
    offline = found["offline"]
    assert offline["value"] == pytest.approx(offline["images"] / offline["seconds"])
    server = found["server"]
    assert server["value"] == max(t["rate"] for t in server["trials"] if t["met"])
    camera = found["camera"]
    assert 0 <= camera["frames"] - camera["scored"] - camera["dropped"] <= 3
    assert camera["latency_ms"]["count"] == camera["scored"] > 10


@pytest.mark.parametrize("rate, seconds, doubted", [(50.0, 3, True), (50.0, 5, False), (98.0, 60, True)])
def test_a_rate_whose_queue_had_no_time_to_grow_is_doubted(rate: float, seconds: int, doubted: bool) -> None:
    trial = Trial(rate, [12.0] * round(rate * seconds), met=True, given_up=False)
    warnings = measure._too_short(trial, 100.0)
    assert bool(warnings) == doubted
    assert not doubted or f"{rate:.0f}% of what is served one after the other" in warnings[0]


def test_few_queries_are_said_to_be_few(tiny_bundle: Path, image: Path, run: Run) -> None:
    few = ("--provider", "cpu", "--duration", 0, "--queries", 5, "--starts", 0)
    code, out, _ = run("bench", "--bundle", tiny_bundle, "--images", image, *few)
    assert code == 0 and "5 queries are too few for a p90: 29 would bound it at 95 %" in out


def test_a_video_and_a_report_in_a_file(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    video = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 25, (48, 32))
    for number in range(12):
        writer.write(smooth_image(np.random.default_rng(number), (32, 48)))
    writer.release()
    path = tmp_path / "out" / "report.json"
    code, out, err = run("bench", "--bundle", tiny_bundle, "--video", video, *QUICK, "-o", path)
    assert code == 0, err
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["contents"][0]["name"] == "12 frames of line.avi"
    assert "single-stream: p90_ms" in out and "12 frames of line.avi" in out


def test_cold_starts_are_processes(tiny_bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    real = subprocess.run

    def counting(command: list[str], **how: Any) -> Any:
        started.append(command)
        return real(command, **how)

    monkeypatch.setattr(subprocess, "run", counting)
    arguments = ["--bundle", str(tiny_bundle), "--provider", "cpu"]
    seconds = cold_starts(arguments, image.read_bytes(), ".png", starts=2)
    assert len(started) == len(seconds) == 2 and min(seconds) > 0.05


def test_a_start_that_fails_is_said(tmp_path: Path, image: Path) -> None:
    with pytest.raises(BackendError, match="does not start"):
        cold_starts(["--bundle", str(tmp_path / "none")], image.read_bytes(), ".png", starts=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "a.png", "--video", "b.mp4"), "Give --images or --video, not both"),
        (("--images", "nothing*.png"), "nothing*.png"),
        (("--video", "missing.mp4"), "missing.mp4 cannot be decoded"),
        (("--search", "quantised", "--ef", 4), "--ef is the search width of hnsw"),
        (("--scenario", "sprint"), "sprint"),
    ],
)
def test_wrong_use(tiny_bundle: Path, run: Run, options: tuple[object, ...], message: str) -> None:
    code, _, err = run("bench", "--bundle", tiny_bundle, *QUICK, *options)
    assert code == 2 and message in err
