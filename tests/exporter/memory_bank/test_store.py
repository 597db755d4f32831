"""Rows on disk: what was written is what is read, in every way of reading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pcexport.memory_bank import store
from pcexport.memory_bank.store import ArrayRows, RowFile, SelectedRows, in_memory


def rows_of(count: int, dim: int) -> np.ndarray:
    return np.arange(count * dim, dtype=np.float32).reshape(count, dim)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RowFile]:
    opened = RowFile(tmp_path / "rows.f32", 3)
    yield opened
    opened.close()


def test_row_file_returns_what_was_appended_in_order(file: RowFile) -> None:
    rows = rows_of(10, 3)
    for part in (rows[:4], rows[4:4], rows[4:5], rows[5:]):
        file.append(part)
    assert (len(file), file.dim) == (10, 3)
    np.testing.assert_array_equal(file.block(0, 10), rows)
    np.testing.assert_array_equal(file.block(3, 6), rows[3:6])


def test_reading_between_writes_does_not_move_the_end(file: RowFile) -> None:
    rows = rows_of(6, 3)
    file.append(rows[:3])
    np.testing.assert_array_equal(file.block(0, 1), rows[:1])
    file.append(rows[3:])
    np.testing.assert_array_equal(file.block(0, 6), rows)


def test_blocks_end_where_the_rows_end(file: RowFile) -> None:
    file.append(rows_of(4, 3))
    assert file.block(2, 99).shape == (2, 3)
    assert file.block(4, 8).shape == (0, 3)
    assert file.block(9, 12).shape == (0, 3)


def test_gather_keeps_the_order_and_repetition_of_the_ids(file: RowFile) -> None:
    rows = rows_of(5, 3)
    file.append(rows)
    ids = np.array([4, 0, 4, 2], np.int64)
    np.testing.assert_array_equal(file.gather(ids), rows[ids])
    assert file.gather(ids[:0]).shape == (0, 3)


@pytest.mark.parametrize("gap_bytes, most_bytes", [(0, 12), (12, 36), (24, 2**20), (2**20, 60)])
def test_gather_is_the_same_however_reads_are_joined(
    gap_bytes: int, most_bytes: int, file: RowFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_GAP_BYTES", gap_bytes)
    monkeypatch.setattr(store, "_MOST_BYTES_AT_ONCE", most_bytes)
    rows = rows_of(60, 3)
    file.append(rows)
    rng = np.random.default_rng(0)
    for ids in (rng.integers(60, size=40), np.sort(rng.choice(60, 30, replace=False)), np.arange(60)):
        np.testing.assert_array_equal(file.gather(ids), rows[ids])


def test_rows_near_each_other_are_read_at_once(file: RowFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.append(rows_of(60, 3))
    reads: list[tuple[int, int]] = []
    block = RowFile.block
    monkeypatch.setattr(
        RowFile, "block", lambda self, start, stop: (reads.append((start, stop)), block(self, start, stop))[1]
    )
    monkeypatch.setattr(store, "_GAP_BYTES", 3 * 12)
    file.gather(np.array([1, 2, 6, 30, 33, 50], np.int64))
    assert reads == [(1, 7), (30, 34), (50, 51)]


def test_threads_read_side_by_side(file: RowFile) -> None:
    rows = rows_of(400, 3)
    file.append(rows)
    with ThreadPoolExecutor(4) as workers:
        blocks = list(workers.map(lambda start: file.block(start, start + 7), list(range(390)) * 3))
    for number, block in enumerate(blocks):
        np.testing.assert_array_equal(block, rows[number % 390 : number % 390 + 7])


def test_rows_are_held_in_memory_up_to_a_size(file: RowFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_MOST_BYTES_AT_ONCE", 40)
    rows = rows_of(10, 3)
    file.append(rows)
    assert in_memory(file, 119) is file
    held = in_memory(file, 120)
    assert isinstance(held, ArrayRows) and in_memory(held, 0) is held
    np.testing.assert_array_equal(held.block(0, 10), rows)
    selected = SelectedRows(file, np.array([1, 4, 5, 9], np.int64))
    np.testing.assert_array_equal(in_memory(selected, 48).block(0, 4), rows[[1, 4, 5, 9]])


def test_row_file_accepts_any_memory_layout_and_float(file: RowFile) -> None:
    rows = np.asfortranarray(rows_of(4, 3).astype(np.float64))
    file.append(rows)
    np.testing.assert_array_equal(file.block(0, 4), rows.astype(np.float32))
    assert file.block(0, 4).dtype == np.float32


def test_row_file_refuses_rows_of_another_length(file: RowFile) -> None:
    with pytest.raises(ValueError, match="must have 3 columns, got 4"):
        file.append(rows_of(2, 4))


def test_a_file_that_shrinks_during_the_build_is_an_error(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.f32", 2)
    file.append(rows_of(4, 2))
    os.ftruncate(file._file.fileno(), 12)
    with pytest.raises(OSError, match="ended early"):
        file.block(0, 4)
    file.close()


def test_array_rows_refuse_what_is_not_a_float32_table() -> None:
    for wrong in (np.zeros((2, 2)), np.zeros(4, np.float32), np.zeros((1, 2, 2), np.float32)):
        with pytest.raises(ValueError, match="2-d float32 array"):
            ArrayRows(wrong)


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_selected_rows_are_the_chosen_ones_however_they_are_read(file: RowFile, block: int) -> None:
    rows = rows_of(12, 3)
    file.append(rows)
    ids = np.array([0, 1, 5, 7, 8, 11], np.int64)
    selected = SelectedRows(file, ids)
    assert (len(selected), selected.dim) == (6, 3)
    read = [selected.block(start, start + block) for start in range(0, 6, block)]
    np.testing.assert_array_equal(np.concatenate(read), rows[ids])
    np.testing.assert_array_equal(selected.gather(np.array([5, 0], np.int64)), rows[[11, 0]])
    assert selected.block(6, 9).shape == (0, 3)


@pytest.mark.skipif(os.name != "posix", reason="an open file has a name on Windows")
def test_a_row_file_has_no_name_that_could_be_left_behind(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.f32", 2)
    file.append(rows_of(4, 2))
    assert list(tmp_path.iterdir()) == []
    assert len(file.block(0, 4)) == 4
