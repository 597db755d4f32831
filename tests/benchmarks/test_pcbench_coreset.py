"""`pcbench coreset` compares pick by pick, times both sides, and says what it extrapolated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcbench import coreset
from pcbench.cli import main
from pcbench.coreset import PlainGreedy, random_rows
from pcexport.memory_bank.coreset import Coreset, select_coreset


def measured(output: Path, *flags: str) -> dict:
    assert main(["coreset", "--name", "few", "-o", str(output), *flags]) == 0
    result: dict = json.loads(output.read_text())
    return result


def test_all_picks_of_random_rows_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(tmp_path / "out.json", "--rows", "4000", "--dim", "16", "--repeats", "2")
    assert (result["kind"], result["rows"], result["dim"], result["picks"]) == ("coreset", 4000, 16, 40)
    assert (result["plain_picks"], result["plain_extrapolated"], result["compared_picks"]) == (40, False, 40)
    assert len(result["samples_s"]) == 2
    assert result["seconds"] == pytest.approx(np.median(result["samples_s"]), abs=1e-3)
    assert 0 < result["updated_share"] <= 1 and result["passes"] >= 1 and result["memory_mb"] > 0
    shown = capsys.readouterr().out
    assert "40 of 4,000 x 16" in shown and "first 40 picks are the same" in shown and "(from" not in shown


def test_a_part_of_the_plain_picks_is_extrapolated_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.npy"
    np.save(rows, random_rows(2000, 8, seed=1))
    flags = ("--embeddings", str(rows), "--picks", "90", "--plain-picks", "30", "--seed", "3")
    result = measured(tmp_path / "out.json", *flags)
    assert (result["plain_picks"], result["plain_extrapolated"], result["compared_picks"]) == (30, True, 30)
    assert result["picks"] == 90
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    assert "(from 30 picks)" in capsys.readouterr().out


def test_another_selection_is_an_error_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(rows: np.ndarray, n: int, *, seed: int, threads: int) -> Coreset:
        chosen = select_coreset(rows, n, seed=seed, threads=threads)
        ids = chosen.ids.copy()
        ids[[5, 6]] = ids[[6, 5]]
        return Coreset(ids, chosen.covering_radius)

    monkeypatch.setattr(coreset, "select_coreset", wrong)
    output = tmp_path / "out.json"
    assert main(["coreset", "--name", "x", "--rows", "900", "--picks", "20", "-o", str(output)]) == 2
    assert "Pick 6 is row" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("content", [np.zeros((9, 2)), np.zeros(9, np.float32), np.zeros((1, 2), np.float32)])
def test_a_file_without_rows_is_refused(
    content: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.npy"
    np.save(rows, content)
    arguments = ["coreset", "--embeddings", str(rows), "--name", "x", "-o", str(tmp_path / "x.json")]
    assert main(arguments) == 2
    assert "Expected float32 (rows, dim)" in capsys.readouterr().err


def test_more_picks_than_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.json"
    arguments = ["coreset", "--rows", "9", "--dim", "2", "--picks", "10", "--name", "x", "-o", str(output)]
    assert main(arguments) == 2
    assert "10 picks of 9 rows" in capsys.readouterr().err and not output.exists()


def test_a_file_of_another_kind_is_refused_without_advice_to_unpickle_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.npy"
    rows.write_text("no numbers")
    arguments = ["coreset", "--embeddings", str(rows), "--name", "x", "-o", str(tmp_path / "x.json")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "rows.npy is not a whole .npy file" in error and "pickle" not in error


def test_plain_greedy_is_the_algorithm_of_the_paper() -> None:
    rows = random_rows(300, 5, seed=0)
    rows[100:200] = rows[:100]  # ties
    plain = PlainGreedy(rows, 7)
    for count in (1, 25, 60):
        plain.pick_until(count)
    chosen = plain.ids
    assert len(chosen) == 60 and plain.seconds > 0
    for n in range(1, 60):
        squared = np.square(rows[:, None].astype(np.float64) - rows[chosen[:n]]).sum(axis=2).min(axis=1)
        assert chosen[n] == int(squared.argmax())


def test_random_rows_are_reproducible_clusters() -> None:
    rows = random_rows(5000, 12, seed=2)
    assert rows.shape == (5000, 12) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows, random_rows(5000, 12, seed=2))
    assert not np.array_equal(rows, random_rows(5000, 12, seed=3))
    assert rows[:, 0].std() > 2 * rows[:, -1].std()
