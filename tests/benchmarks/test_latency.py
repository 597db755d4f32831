"""`pcbench latency`: every combination in a file, nothing dropped, nothing measured twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcbench.cli import main
from pcbench.latency import sweep as sweep_module
from pcbench.latency.cell import Axes, Settings, plan
from pcbench.latency.sweep import Progress, run_worker
from pcrun.bundle.bundle import Bundle
from pcrun.errors import BundleError
from tests.contract.damage import edit_manifest

QUICK = ("--duration", "0", "--queries", "30", "--threads", "1")


def sweep(bundle: Path, folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    assert main(["latency", "--bundle", str(bundle), "-o", str(folder), *QUICK, *arguments]) == 0
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def test_a_cell_holds_its_samples_and_what_really_ran(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sweep(tiny_bundle, tmp_path / "out")
    assert "older result" not in capsys.readouterr().err
    (result,) = found.values()
    assert result["kind"] == "latency" and result["error"] is None
    assert result["asked"]["provider"] == result["settings"]["provider"] == "cpu"
    assert result["settings"]["threads"] == 1
    assert result["bundle_digest"] == result["bundle"]["digest"] == Bundle.load(tiny_bundle).digest
    assert [c["name"] for c in result["contents"]] == ["golden samples, normal", "golden samples, defective"]
    for content in result["contents"]:
        measured = content["scenarios"]["single-stream"]
        assert len(measured["samples_ms"]) >= 30
        assert {"decode", "embed", "search", "verify", "map", "total"} <= set(measured["stage_samples_ms"])
        assert measured["latency_ms"]["median"] == pytest.approx(np.median(measured["samples_ms"]), abs=1e-3)
        assert "governor" in measured["conditions"]


def test_stages_of_a_batch_add_up_to_its_query(tiny_bundle: Path, tmp_path: Path) -> None:
    (result,) = sweep(tiny_bundle, tmp_path / "out", "--batch", "3").values()
    measured = result["contents"][0]["scenarios"]["multi-stream"]
    samples = measured["stage_samples_ms"]
    assert measured["images_per_query"] == 3 and len(samples["total"]) == len(measured["samples_ms"])
    stages = np.array([samples[stage] for stage in samples if stage != "total"])
    np.testing.assert_allclose(stages.sum(0), samples["total"], atol=2e-3)
    # The stages' clock runs within the query's.
    assert (np.array(measured["samples_ms"]) >= np.array(samples["total"]) - 1e-3).all()


def test_what_cannot_run_is_recorded_and_tried_again(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--precision", "bundle", "--precision", "bf16")
    found = sweep(tiny_bundle, tmp_path / "out", *arguments)
    errors = [result["error"] for result in found.values()]
    assert len(errors) == 2 and errors.count(None) == 1
    (error,) = filter(None, errors)
    assert "does not compute in bf16" in error
    assert "1 measured, 0 kept, 1 cannot run here" in capsys.readouterr().out
    sweep(tiny_bundle, tmp_path / "out", *arguments)
    printed = capsys.readouterr()
    assert (
        "0 measured, 1 kept, 1 cannot run here" in printed.out and "does not compute in bf16" in printed.err
    )


def test_a_sweep_goes_on_where_it_was_interrupted(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--exactness", "none", "--exactness", "image", "--exactness", "mask")
    asked: list[str] = []

    def stopped(request: dict[str, Any], **limits: float) -> dict[str, Any]:
        asked.append(request["settings"]["exactness"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return run_worker(request, **limits)

    monkeypatch.setattr(sweep_module, "run_worker", stopped)
    command = ["latency", "--bundle", str(tiny_bundle), "-o", str(tmp_path / "out"), *QUICK, *arguments]
    assert main(command) == 130
    assert asked == ["none", "image"] and len(list((tmp_path / "out").iterdir())) == 1
    assert main(command) == 0
    assert asked == ["none", "image", "image", "mask"]
    assert "2 measured, 1 kept" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["queries", "bundle", "versions", "half a file"])
def test_a_file_of_something_else_is_measured_again(
    tiny_bundle: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    ((name, result),) = sweep(tiny_bundle, folder).items()
    arguments: tuple[str, ...] = ()
    if change == "queries":
        arguments = ("--queries", "31")
    elif change == "bundle":
        edit_manifest(tiny_bundle, lambda manifest: manifest.update(name="another"))
    elif change == "versions":
        result["versions"]["numpy"] = "0"
        (folder / f"{name}.json").write_text(json.dumps(result))
    else:
        (folder / f"{name}.json").write_text(json.dumps(result)[:500])
    capsys.readouterr()
    sweep(tiny_bundle, folder, *arguments)
    said = capsys.readouterr()
    assert "1 measured, 0 kept" in said.out and f"{name} ... (in the place of an older result)" in said.err


def test_images_and_defective_ones_are_measured_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    samples = sorted(str(path) for path in (tiny_bundle / "samples").glob("*.png"))
    arguments = ("--images", samples[0], "--defective", samples[1])
    (result,) = sweep(tiny_bundle, tmp_path / "out", *arguments).values()
    assert [c["name"] for c in result["contents"]] == ["images", "defective images"]


def test_a_process_that_dies_is_an_error_of_its_cell(tiny_bundle: Path) -> None:
    found = run_worker({"settings": {"unknown": 1}, "path": str(tiny_bundle)}, timeout_s=60.0)
    assert found["error"].startswith("its process ended with code 1: TypeError")


def test_a_cell_that_hangs_is_ended_and_the_sweep_goes_on(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hanging(request: dict[str, Any], **limits: float) -> dict[str, Any]:
        if request["settings"]["exactness"] == "none":
            request["settings"]["duration_s"] = 3600.0
            return run_worker(request, timeout_s=1.0)
        return run_worker(request, **limits)

    monkeypatch.setattr(sweep_module, "run_worker", hanging)
    found = sweep(tiny_bundle, tmp_path / "out", "--exactness", "none", "--exactness", "mask")
    errors = {result["asked"]["exactness"]: result["error"] for result in found.values()}
    assert errors["mask"] is None
    assert errors["none"].startswith("timed out after 1 s")
    assert "1 measured, 0 kept, 1 cannot run here" in capsys.readouterr().out


def test_the_time_limit_reaches_the_cells(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def noted(request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        limits.append(timeout_s)
        return {"error": "not measured here"}

    monkeypatch.setattr(sweep_module, "run_worker", noted)
    sweep(tiny_bundle, tmp_path / "out", "--timeout", "7")
    assert limits == [7.0]


def test_every_cell_has_a_file_of_its_own(tiny_bundle: Path) -> None:
    axes = Axes(("cpu", "openvino"), (0, 1), ("bundle", "bf16"), ("mask", "full"), (1, 8))
    cells = plan([tiny_bundle], axes)
    assert len({cell.settings.name for cell in cells}) == len(cells) == 32
    profiled = plan([tiny_bundle], Axes(("cpu",), (0,), ("bundle",), ("mask",), (1,), device_profile=True))
    assert profiled[0].settings.name not in {cell.settings.name for cell in cells}
    assert isinstance(cells[0].settings, Settings)


def test_further_runs_follow_when_all_cells_had_theirs(tiny_bundle: Path) -> None:
    cells = plan([tiny_bundle], Axes(["cpu"], [1, 2], ["bundle"], ["mask"], [1], runs=2))
    assert [(cell.settings.threads, cell.settings.run) for cell in cells] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert [cell.settings.name.endswith("-run2") for cell in cells] == [False, False, True, True]


def test_bundles_of_one_name_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    axes = Axes(("cpu",), (0,), ("bundle",), ("mask",), (1,))
    with pytest.raises(BundleError, match="rename one"):
        plan([tiny_bundle, tmp_path / "other" / tiny_bundle.name], axes)


def test_time_left_comes_from_cells_that_were_measured() -> None:
    progress = Progress(4)
    assert progress.left_s is None
    progress.add(0.1, failed=True)
    assert progress.left_s is None
    progress.add(10.0, failed=False)
    assert progress.left_s == pytest.approx(20.0) and str(progress) == "2/4, about 20 s left"
