"""`pcbench compare` on latencies whose truth is known: finds what was planted, and little else."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from pcbench.cli import main
from pcbench.compare.statistics import (
    Floats,
    autocorrelation_time,
    block_medians,
    compare,
    compare_runs,
    holm,
)

QUERIES = 300
COMPARISONS = 400
Maker = Callable[..., Floats]


def latencies(
    rng: np.random.Generator, *, lag_1: float = 0.0, queries: int = QUERIES, slow_share: float = 0.03
) -> Floats:
    """About 10 ms with 8 % of noise whose neighbours correlate, and some queries of several times that."""
    noise = rng.normal(size=queries)
    noise[1:] *= np.sqrt(1 - lag_1**2)
    for i in range(1, queries):
        noise[i] += lag_1 * noise[i - 1]
    slow = np.where(rng.random(queries) < slow_share, 1 + rng.exponential(2, queries), 1)
    return np.asarray(10 * np.exp(0.08 * noise) * slow)


def share_found(lag_1: float, *, factor: float, comparisons: int) -> float:
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(comparisons):
        old, new = latencies(rng, lag_1=lag_1), factor * latencies(rng, lag_1=lag_1)
        difference = compare(old.tolist(), new.tolist())
        found += difference is not None and difference.p_differs <= 0.05
    return found / comparisons


@pytest.mark.parametrize("lag_1", [0.0, 0.5, 0.8])
def test_noise_alone_is_called_a_difference_no_more_often_than_stated(lag_1: float) -> None:
    # What a rate of exactly 5 % exceeds in one of a thousand such simulations.
    most = binom.ppf(0.999, COMPARISONS, 0.05) / COMPARISONS
    assert share_found(lag_1, factor=1.0, comparisons=COMPARISONS) <= most


@pytest.mark.parametrize("lag_1, least", [(0.0, 0.99), (0.5, 0.95), (0.8, 0.7)])
def test_a_planted_tenth_is_found(lag_1: float, least: float) -> None:
    assert share_found(lag_1, factor=1.1, comparisons=100) >= least


def process_runs(rng: np.random.Generator, processes: int, factor: float = 1.0) -> list[list[float]]:
    """Processes of one program, which differ by 3 % among each other."""
    return [
        (factor * np.exp(rng.normal(0, 0.03)) * latencies(rng, queries=100)).tolist()
        for _ in range(processes)
    ]


def test_differences_between_processes_of_one_program_are_no_difference() -> None:
    rng = np.random.default_rng(11)
    apart, together = 0, 0
    for _ in range(COMPARISONS):
        old, new = process_runs(rng, 5), process_runs(rng, 5)
        together += compare_runs(old, new).p_differs <= 0.05
        single = compare(old[0], new[0])
        apart += single is not None and single.p_differs <= 0.05
    assert together / COMPARISONS <= binom.ppf(0.999, COMPARISONS, 0.05) / COMPARISONS
    # Single processes do not allow that: what the test above protects from is really there.
    assert apart / COMPARISONS > 0.2


def test_a_planted_tenth_is_found_among_processes_that_differ() -> None:
    rng = np.random.default_rng(12)
    found = [
        compare_runs(process_runs(rng, 5), process_runs(rng, 5, 1.1)).p_differs <= 0.05 for _ in range(200)
    ]
    assert np.mean(found) >= 0.95


def test_intervals_hold_the_true_ratio() -> None:
    rng = np.random.default_rng(6)
    inside = 0
    for _ in range(300):
        difference = compare(latencies(rng, lag_1=0.5).tolist(), (1.07 * latencies(rng, lag_1=0.5)).tolist())
        assert difference is not None
        low, high = difference.interval
        inside += low <= 1.07 <= high
    assert inside / 300 >= binom.ppf(0.001, 300, 0.95) / 300


def test_a_limit_is_not_exceeded_by_what_is_exactly_at_it() -> None:
    rng = np.random.default_rng(7)
    above = 0
    for _ in range(300):
        difference = compare(latencies(rng).tolist(), (1.05 * latencies(rng)).tolist())
        above += difference is not None and difference.p_above(1.05) <= 0.05
    assert above / 300 <= binom.ppf(0.999, 300, 0.05) / 300


def test_autocorrelation_time_of_a_first_order_process() -> None:
    rng = np.random.default_rng(8)
    for lag_1 in (0.0, 0.5, 0.8):
        found = autocorrelation_time(latencies(rng, lag_1=lag_1, queries=20_000, slow_share=0))
        assert found == pytest.approx((1 + lag_1) / (1 - lag_1), rel=0.25)


def test_too_short_a_series_gives_no_answer() -> None:
    rng = np.random.default_rng(9)
    assert block_medians(latencies(rng, queries=19).tolist()) is None
    # Long, but hardly anything in it is independent.
    assert block_medians(np.linspace(10, 12, 300).tolist()) is None
    assert block_medians(latencies(rng, queries=60).tolist()) is not None


def test_latencies_without_any_spread() -> None:
    same = compare([2.0] * 50, [2.0] * 50)
    slower = compare([2.0] * 50, [3.0] * 50)
    assert same is not None and same.p_differs == 1.0
    assert slower is not None and slower.p_differs == 0.0 and slower.ratio == pytest.approx(1.5)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.fixture
def write(real_cell: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes a cell with other latencies for each kind of image."""
    rng = np.random.default_rng(10)

    def write_cell(folder: str, *, factor: float = 1.0, **asked: Any) -> Path:
        cell = copy.deepcopy(real_cell)
        cell["asked"] |= asked
        for content in cell["contents"]:
            for result in content["scenarios"].values():
                result["samples_ms"] = (factor * latencies(rng)).tolist()
        path = tmp_path / folder / f"{'-'.join(map(str, asked.values())) or 'cell'}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(cell), encoding="utf-8")
        return path.parent

    return write_cell


def test_one_slower_cell_among_several(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for threads in range(4):
        write("old", threads=threads)
        write("new", threads=threads, factor=1.1 if threads == 2 else 1.0)
    old, new = write("old", threads=0), write("new", threads=0)
    assert main(["compare", str(old), str(new), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {pair["threads"] for pair in found["pairs"] if pair["verdict"] == "slower"} == {2}
    assert len(found["pairs"]) == 8
    assert all(
        pair["change_low"] < 0.1 < pair["change_high"] for pair in found["pairs"] if pair["threads"] == 2
    )
    assert main(["compare", str(old), str(new), "--fail-above", "3"]) == 1
    assert "SLOWER by more than 3 %" in capsys.readouterr().out
    # 10 % slower is no certain proof of more than 10 %.
    assert main(["compare", str(old), str(new), "--fail-above", "10"]) == 0
    assert main(["compare", str(new), str(old), "--fail-above", "3"]) == 0
    assert "2 faster" in capsys.readouterr().out


def test_runs_of_a_cell_are_compared_as_processes(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (1, 2, 3):
        old, new = write("old", run=run), write("new", run=run, factor=1.3)
    assert main(["compare", str(old), str(new), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(*pair["processes"], *pair["queries"]) for pair in found["pairs"]} == {(3, 3, 900, 900)}
    assert {pair["verdict"] for pair in found["pairs"]} == {"slower"} and not found["notes"]
    for run in (2, 3):
        (old / f"{run}.json").unlink()
    assert main(["compare", str(old), str(new), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {tuple(pair["processes"]) for pair in found["pairs"]} == {(1, 3)}
    assert "measured in one process" in found["notes"][0]


def test_a_cell_that_cannot_run_any_more_fails(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for threads in (1, 2):
        old, new = write("old", threads=threads), write("new", threads=threads)
    path = new / "2.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "error": "no such provider"}))
    assert main(["compare", str(old), str(new)]) == 0
    assert main(["compare", str(old), str(new), "--fail-above", "50"]) == 1
    assert "2 threads, mask: no such provider" in capsys.readouterr().out


def test_what_is_not_alike_is_said(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write("old", threads=1), write("new", threads=1)
    write("old", threads=7)
    path = new / "1.json"
    data = json.loads(path.read_text())
    data["machine"]["cpu"] = "another"
    data["bundle"]["digest"] = "0" * 64
    path.write_text(json.dumps(data))
    assert main(["compare", str(old), str(new)]) == 0
    printed = capsys.readouterr().out
    for note in ("the machines differ", "bundles of one name differ", "only in OLD: ", "7 threads"):
        assert note in printed


@pytest.mark.parametrize(
    "change, message",
    [
        ({"results_version": 99}, "has results_version 99, expected 1"),
        ({"contents": [{"name": "x"}]}, "is not a complete result"),
        ({"kind": "build"}, "holds no latencies"),
        ({"asked": {}}, "is not a complete result"),
    ],
)
def test_wrong_files(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    old, new = write("old"), write("new")
    path = new / "cell.json"
    data = json.loads(path.read_text()) | change
    if "kind" in change:
        del data["bench_version"]
    path.write_text(json.dumps(data))
    assert main(["compare", str(old), str(new)]) == 2
    assert message in capsys.readouterr().err


def test_nothing_in_common(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(write("old", threads=1)), str(write("new", threads=2))]) == 2
    assert "no cell in common" in capsys.readouterr().err


def test_two_bundles_are_compared_where_each_side_has_one(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for threads in (1, 2):
        old = write("old", threads=threads, bundle="resnet")
        new = write("new", threads=threads, bundle="edge", factor=0.5)
    for path in new.glob("*.json"):
        data = json.loads(path.read_text())
        data["bundle"]["digest"] = "0" * 64
        path.write_text(json.dumps(data))
    assert main(["compare", str(old), str(new), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["pairs"]) == 4 and {pair["verdict"] for pair in found["pairs"]} == {"faster"}
    assert "OLD is the bundle resnet, NEW the bundle edge" in found["notes"]
    # With two on a side nobody knows which is meant.
    write("old", threads=1, bundle="third")
    assert main(["compare", str(old), str(new)]) == 2
    assert "no cell in common" in capsys.readouterr().err


def test_the_p99_is_shown_and_said_not_to_be_tested(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write("old"), write("new")
    (cell,) = [json.loads(path.read_text()) for path in new.glob("*.json")]
    tails = [
        np.percentile(content["scenarios"]["single-stream"]["samples_ms"], 99) for content in cell["contents"]
    ]
    assert main(["compare", str(old), str(new), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["pairs"]
    assert [pair["p99_ms"][1] for pair in found] == pytest.approx(tails)
    assert main(["compare", str(old), str(new)]) == 0
    printed = capsys.readouterr().out
    assert "p99 is shown, not tested" in printed and all(f"{tail:.2f}" in printed for tail in tails)


def test_reports_of_pcrun_bench_are_of_the_bundles_file_name(
    real_cell: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in ("old", "new"):
        report = copy.deepcopy(real_cell)
        del report["asked"], report["kind"]
        report["bundle"] |= {"name": "same", "file": f"{side}-line"}
        (tmp_path / f"{side}.json").write_text(json.dumps(report), encoding="utf-8")
    assert main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    assert "new-line, cpu" in capsys.readouterr().out


def test_an_interval_that_holds_everything_is_no_promise_of_no_difference(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for run, factor in ((1, 1.0), (2, 4.0)):
        old, new = write("old", run=run, factor=factor), write("new", run=run, factor=factor)
    assert main(["compare", str(old), str(new)]) == 0
    printed = capsys.readouterr().out
    assert "2 pairs: 0 slower, 0 faster, 2 too uncertain to tell" in printed
    assert "no difference" not in printed
    rows = [line for line in printed.splitlines() if " .. x " in line]
    assert len(rows) == 2 and not any("%-" in row for row in rows), "columns stay apart"


def test_a_folder_that_is_not_there_is_said_to_be_so(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert main(["compare", str(write("old")), str(missing)]) == 2
    assert f"There is no {missing}." in capsys.readouterr().err
