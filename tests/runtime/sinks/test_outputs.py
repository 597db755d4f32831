"""Results as text: lines, tables, files that may grow."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcrun.errors import SinkError
from pcrun.sinks.record import event_record, result_record
from pcrun.sinks.text import CSV_FIELDS, Csv, FileSink, JsonLines, StreamSink, Table, make_formatter
from pcrun.sources import Event, Frame
from pcrun.sources.view import FrameView, Roi
from tests.runtime.sinks.results import BROKEN, RECORDS, make_frame, make_result, names

EVENT = event_record(Event("lost", "camera:0", {"reason": 'no "frame", for 5 s', "retry_in_s": 0.5}), 1.5e9)


class TestRecord:
    def test_total_is_the_sum_with_decoding(self) -> None:
        timings = RECORDS[0]["timings_ms"]
        stages = {"decode": 0.5, "preprocess": 1, "embed": 2, "search": 3, "verify": 4, "map": 5}
        assert timings == stages | {"total": 15.5}

    def test_the_wait_for_a_camera_is_not_in_the_total(self) -> None:
        frame = Frame("camera:0", 0, np.zeros((4, 4, 3), np.uint8), None, 33.0, captured_at=1.7e9)
        timings = result_record(frame, make_result())["timings_ms"]
        assert timings["decode"] == 33 and timings["total"] == 15

    def test_verdicts(self) -> None:
        assert [record["verdict"] for record in RECORDS] == ["anomalous", "error", "normal"]

    def test_plain_types_only(self) -> None:
        heat = np.float32(1.25)
        record = result_record(make_frame(), make_result(image_score=float(heat)))
        assert json.loads(json.dumps(record)) == record

    def test_a_file_name_that_is_not_utf8_can_be_written(self) -> None:
        name = os.fsdecode(b"teil_\xff.png")
        frame = Frame(name, 0, None, f"{name}: empty", 0.1)
        record = result_record(frame, None)
        assert record["source"] == "teil_�.png" and record["error"] == "teil_�.png: empty"
        json.dumps(record, ensure_ascii=False).encode()


def text_of(formatter: Any, *records: dict[str, Any]) -> str:
    return formatter.head() + "".join(formatter.line(record) for record in records or (*RECORDS, EVENT))


class TestEventRecord:
    def test_time_is_utc_to_the_millisecond(self) -> None:
        assert EVENT["time"] == "2017-07-14T02:40:00.000Z"

    def test_it_holds_its_facts(self) -> None:
        assert EVENT["event"] == "lost" and EVENT["source"] == "camera:0" and EVENT["retry_in_s"] == 0.5


class TestLiveRecord:
    frame = Frame("camera:0", 9, np.zeros((4, 4, 3), np.uint8), None, 0.5, 1_700_000_000.1234, 5.0)

    def test_age_drops_alarm_and_time(self) -> None:
        record = result_record(self.frame, make_result(), age_ms=12.3456, dropped=2, alarm=False)
        assert record["time"] == "2023-11-14T22:13:20.123Z"
        assert (record["age_ms"], record["dropped"], record["alarm"]) == (12.346, 2, False)

    def test_regions_are_in_pixels_of_the_whole_frame(self) -> None:
        view = FrameView(0, Roi(100, 50, 20, 10))
        record = result_record(self.frame, make_result(), view=view)
        assert [(r["x"], r["y"]) for r in record["regions"]] == [(103, 54), (120, 51)]

    def test_an_error_of_the_view_goes_before_the_frames(self) -> None:
        record = result_record(self.frame, None, error="the region of interest does not lie in the frame")
        assert record["verdict"] == "error" and "region of interest" in record["error"]


class TestJsonLines:
    def test_each_line_is_one_record(self) -> None:
        lines = text_of(JsonLines()).splitlines()
        assert [json.loads(line) for line in lines] == [*RECORDS, EVENT]
        assert "größe" in lines[0]

    def test_regions_are_spelled_out(self) -> None:
        assert RECORDS[0]["regions"][0] == {
            "x": 3, "y": 4, "width": 5, "height": 6, "area_px": 20, "max_score": 3.25,
        }  # fmt: skip

    def test_nan_never_reaches_a_line(self) -> None:
        with pytest.raises(ValueError, match="JSON"):
            JsonLines().line({"score": float("nan")})


class TestCsv:
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(text_of(Csv()), newline="")))

    def test_all_rows_have_all_columns(self) -> None:
        rows = self.rows()
        assert len(rows) == 4
        for row in rows:
            assert tuple(row) == CSV_FIELDS
            assert None not in row.values()

    def test_values(self) -> None:
        scored, broken, normal, event = self.rows()
        assert float(scored["score"]) == 3.5 and float(scored["total_ms"]) == 15.5 and scored["error"] == ""
        assert json.loads(scored["regions"]) == RECORDS[0]["regions"]
        assert broken["source"] == BROKEN.source and broken["error"] == BROKEN.error
        assert broken["verdict"] == "error" and broken["frame"] == "7" and broken["score"] == ""
        assert normal["regions"] == "[]"
        assert event["event"] == "lost" and event["verdict"] == "" and event["time"] == EVENT["time"]
        assert json.loads(event["detail"]) == {"reason": EVENT["reason"], "retry_in_s": 0.5}


class TestTable:
    def lines(self, *, colour: bool = False) -> list[str]:
        return text_of(Table(colour=colour)).splitlines()

    def test_columns_line_up_with_the_head(self) -> None:
        head, scored, *_ = self.lines()
        for name, value in [("score", "3.5000"), ("threshold", "2.5000"), ("regions", "2"), ("ms", "15.5")]:
            end = head.rindex(name) + len(name) if name != "score" else head.index("score") + 5
            assert scored[:end].endswith(value), name

    def test_an_error_is_shown(self) -> None:
        assert "not an image, really" in "\n".join(self.lines())

    def test_an_error_does_not_repeat_the_file(self) -> None:
        record = result_record(
            make_frame("in/a.png"), None, error="in/a.png: the file is empty. Write it again."
        )
        line = Table(colour=False).line(record)
        assert line.count("in/a.png") == 1 and line.endswith("the file is empty. Write it again.\n")

    def test_an_event_is_shown_in_words(self) -> None:
        assert "lost (reason no" in self.lines()[-1] and "retry_in_s 0.5" in self.lines()[-1]

    def test_an_alarm_is_shown(self) -> None:
        calm, loud = (Table(colour=False).line(RECORDS[0] | {"alarm": alarm}) for alarm in (False, True))
        assert "ALARM" not in calm and loud.endswith("ALARM\n")

    def test_a_long_source_keeps_its_end(self) -> None:
        record = result_record(make_frame("/very/long" * 20 + "/part_0042.png"), make_result())
        line = Table(colour=False).line(record)
        assert line.startswith("…") and "/part_0042.png " in line and len(line) < 100

    def test_colour_only_where_asked_for(self) -> None:
        assert "\x1b" not in "".join(self.lines())
        coloured = self.lines(colour=True)
        assert coloured[1].startswith("\x1b[31m") and "\x1b" not in coloured[-2]

    def test_a_stream_that_is_no_terminal_gets_no_colour(self) -> None:
        assert "\x1b" not in make_formatter("table", terminal=False).line(RECORDS[0])


class TestStreamSink:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    @pytest.mark.parametrize("name", ["jsonl", "csv", "table"])
    def test_a_full_disk_is_a_sink_error(self, name: str) -> None:
        stream = io.TextIOWrapper(io.FileIO("/dev/full", "w"), encoding="utf-8", write_through=True)
        with pytest.raises(SinkError, match=r"cannot be written.*No space left"):
            StreamSink(stream, make_formatter(name, terminal=False)).event(EVENT)
        stream.detach()


def file_sink(path: Path, **options: Any) -> FileSink:
    return FileSink(path, JsonLines(), **options)


def frames_in(path: Path) -> list[int]:
    """The frame numbers in a file of JSON lines, each of which is whole."""
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line)["frame"] for line in text.splitlines()]


class Disk:
    """A file that takes so many bytes and then says that the disk is full."""

    def __init__(self, file: Any, room: int) -> None:
        self._file = file
        self.room = room

    def write(self, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        taken = data[: self.room]
        self.room -= len(taken)
        return int(self._file.write(taken))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def taken(sink: FileSink, record: dict[str, Any]) -> bool:
    """Whether a record could be written at once."""
    try:
        sink.event(record)
    except SinkError:
        return False
    return True


class TestFileSink:
    def test_makes_its_folder_and_writes_utf8_without_carriage_returns(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "results.jsonl"
        file_sink(path).event({"event": "größe"})
        assert path.read_bytes() == '{"event": "größe"}\n'.encode()

    def test_a_file_in_the_way_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(SinkError, match=r"file/out\.csv cannot be written"):
            file_sink(tmp_path / "file" / "out.csv")

    def test_a_batch_starts_anew_and_a_live_run_goes_on(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        for append, expected in ((False, [1]), (True, [1, 2]), (False, [3])):
            sink = file_sink(path, append=append)
            sink.event({"frame": expected[-1]})
            sink.close()
            assert frames_in(path) == expected

    def test_half_a_line_of_a_killed_process_spoils_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        path.write_text('{"frame": 1}\n{"fra', encoding="utf-8")
        file_sink(path, append=True).event({"frame": 2})
        first, half, second = path.read_text(encoding="utf-8").splitlines()
        assert (json.loads(first), half, json.loads(second)) == ({"frame": 1}, '{"fra', {"frame": 2})

    def test_the_head_of_a_csv_is_written_once(self, tmp_path: Path) -> None:
        for _ in range(2):
            sink = FileSink(tmp_path / "r.csv", Csv(), append=True)
            sink.event(RECORDS[0])
            sink.close()
        with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
            assert [row["frame"] for row in csv.DictReader(file)] == ["0", "0"]

    def test_rotation_keeps_all_lines_whole_and_so_many_files(self, tmp_path: Path) -> None:
        path = tmp_path / "r.jsonl"
        sink = file_sink(path, rotate_bytes=100, keep=2)
        for number in range(30):
            sink.event({"frame": number})
        sink.close()
        assert names(tmp_path) == ["r.jsonl", "r.jsonl.1", "r.jsonl.2"]
        kept = [n for name in ("r.jsonl.2", "r.jsonl.1", "r.jsonl") for n in frames_in(tmp_path / name)]
        assert kept == list(range(kept[0], 30)) and len(kept) > 12
        assert all((tmp_path / name).stat().st_size <= 100 for name in names(tmp_path))

    @pytest.mark.parametrize("room", [0, 1, 11, 12, 13, 30])
    def test_a_full_disk_loses_nothing_and_leaves_no_half_line(self, tmp_path: Path, room: int) -> None:
        path = tmp_path / "r.jsonl"
        sink = file_sink(path)
        sink._file = disk = Disk(sink._file, room)  # type: ignore[assignment]
        failures = 0
        for number in range(8):
            failures += not taken(sink, {"frame": number})
            frames_in(path)  # whole lines only
            if number == 5:
                disk.room = 10**6
        assert failures > 0 and frames_in(path) == list(range(8)) and sink.lost == 0

    def test_a_disk_that_stays_full_loses_the_oldest_and_says_how_many(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pcrun.sinks.text._BACKLOG_LINES", 5)
        sink = file_sink(tmp_path / "r.jsonl")
        sink._file = disk = Disk(sink._file, 0)  # type: ignore[assignment]
        for number in range(9):
            with pytest.raises(SinkError):
                sink.event({"frame": number})
        assert sink.lost == 4
        disk.room = 10**6
        sink.event({"frame": 9})
        assert frames_in(tmp_path / "r.jsonl") == [5, 6, 7, 8, 9] and sink.lost == 5

    def test_what_is_left_at_the_end_is_lost_and_said(self, tmp_path: Path) -> None:
        sink = file_sink(tmp_path / "r.jsonl")
        sink._file = Disk(sink._file, 0)  # type: ignore[assignment]
        with pytest.raises(SinkError):
            sink.event({"frame": 1})
        with pytest.raises(SinkError, match="1 lines are lost"):
            sink.close()
