"""What comes out: result lines, overlays and maps."""

import csv
import io
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pcrun.errors import SinkError
from pcrun.files import write_file
from pcrun.images.overlay import draw_overlay, map_as_uint16
from pcrun.pipeline.pipeline import Verdict
from pcrun.preprocess import PreprocessSpec
from pcrun.result import AnomalyResult, Region, StageTimings
from pcrun.sinks.pictures import PictureSink
from pcrun.sinks.record import event_record, result_record
from pcrun.sinks.text import CSV_FIELDS, Csv, FileSink, JsonLines, StreamSink, Table, make_formatter
from pcrun.sources import Event, Frame
from pcrun.sources.view import FrameView, Roi

SPEC = PreprocessSpec(32, 48, 32, 48)
PIXEL_THRESHOLD = 2.0


def make_result(heat: np.ndarray | None = None, *, anomalous: bool = True, **changes: Any) -> AnomalyResult:
    heat = np.zeros((32, 48), np.float32) if heat is None else heat
    values: dict[str, Any] = {
        "image_score": 3.5 if anomalous else 1.5,
        "threshold": 2.5,
        "is_anomalous": anomalous,
        "patch_scores": np.zeros((8, 12), np.float32),
        "anomaly_map": heat,
        "pixel_threshold": PIXEL_THRESHOLD,
        "mask": heat > PIXEL_THRESHOLD,
        "regions": (Region(3, 4, 5, 6, 20, 3.25), Region(20, 1, 2, 2, 4, 2.125)) if anomalous else (),
        "timings": StageTimings(1.0, 2.0, 3.0, 4.0, 5.0),
        "exactness": "image",
        "search": "hnsw",
        "verified_patches": 8,
    }
    return AnomalyResult(**(values | changes))


def make_frame(source: str = "parts/a.png", index: int = 0) -> Frame:
    return Frame(source, index, np.full((64, 96, 3), 90, np.uint8), None, 0.5)


BROKEN = Frame('odd, "name"\n.png', 7, None, 'odd, "name"\n.png: not an image, really', 0.1)
RECORDS = [
    result_record(make_frame("größe.png"), make_result()),
    result_record(BROKEN, None),
    result_record(make_frame(index=2), make_result(anomalous=False)),
]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@dataclass(frozen=True)
class FakeManifest:
    preprocess: PreprocessSpec = SPEC


class FakeDetector:
    manifest = FakeManifest()


def make_verdict(frame: Frame, result: AnomalyResult, image: np.ndarray | None = None) -> Verdict:
    image = frame.image if image is None else image
    detector: Any = FakeDetector()
    return Verdict(frame, image, FrameView(), result, None, detector, 0, None, None)


def picture_sink(overlays: Path | None, maps: Path | None = None, map_format: str = "npy") -> PictureSink:
    return PictureSink(overlays, maps, map_format)


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


class TestWriteFile:
    def test_replaces_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")
        write_file(path, b"new")
        assert path.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]

    def test_leaves_no_temporary_when_the_target_cannot_be_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").mkdir()
        with pytest.raises(SinkError, match=r"a\.png cannot be written"):
            write_file(tmp_path / "a.png", b"data")
        assert names(tmp_path) == ["a.png"]

    def test_leaves_no_temporary_and_the_old_file_when_interrupted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")

        def interrupted(self: Path, target: Path) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, b"new")
        assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SinkError, match="No such file or directory"):
            write_file(tmp_path / "gone" / "a.png", b"data")

    def test_others_may_read_what_the_umask_allows(self, tmp_path: Path) -> None:
        before = os.umask(0o022)
        try:
            write_file(tmp_path / "a.png", b"data")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644


class TestPictureSink:
    def write(self, sink: PictureSink, *frames: Frame) -> None:
        for frame in frames:
            sink.verdict(make_verdict(frame, make_result()), {})

    def test_equal_names_from_different_folders_stay_apart(self, tmp_path: Path) -> None:
        sources = ["a/x/1.png", "b/x/1.png", "a/x/1.jpg", "y/1.png", "1.png"]
        self.write(picture_sink(tmp_path), *(make_frame(source, i) for i, source in enumerate(sources)))
        assert names(tmp_path) == ["1.png", "x_1.png", "x_1_2.png", "x_1_3.png", "y_1.png"]

    def test_video_and_camera_frames_are_numbered(self, tmp_path: Path) -> None:
        frames = [make_frame("line/day.MP4", 3), make_frame("camera:0", 12)]
        self.write(picture_sink(tmp_path), *frames)
        assert names(tmp_path) == ["camera_0_000012.png", "line_day_000003.png"]

    def test_odd_characters_stay_out_of_file_names(self, tmp_path: Path) -> None:
        self.write(picture_sink(tmp_path), make_frame("teile 1/größe 5 µm?*.png"))
        assert names(tmp_path) == ["teile_1_größe_5_µm_.png"]

    def test_npy_map_is_the_result_map_at_the_images_size(self, tmp_path: Path) -> None:
        heat = np.random.default_rng(0).uniform(0, 5, (32, 48)).astype(np.float32)
        frame = make_frame()
        picture_sink(None, tmp_path).verdict(make_verdict(frame, make_result(heat)), {})
        saved = np.load(tmp_path / "parts_a.npy", allow_pickle=False)
        assert saved.dtype == np.float32 and saved.shape == (64, 96)
        expected = cv2.resize(heat, (96, 64), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(saved, expected)

    def test_npy_map_is_unchanged_when_the_image_has_the_input_size(self, tmp_path: Path) -> None:
        heat = np.random.default_rng(0).uniform(0, 5, (32, 48)).astype(np.float32)
        image = np.zeros((32, 48, 3), np.uint8)
        picture_sink(None, tmp_path).verdict(make_verdict(make_frame(), make_result(heat), image), {})
        np.testing.assert_array_equal(np.load(tmp_path / "parts_a.npy"), heat)

    def test_png_map_reaches_white_at_four_times_the_pixel_threshold(self, tmp_path: Path) -> None:
        heat = np.zeros((32, 48), np.float32)
        heat[0, :4] = [PIXEL_THRESHOLD, 2 * PIXEL_THRESHOLD, 4 * PIXEL_THRESHOLD, 9 * PIXEL_THRESHOLD]
        image = np.zeros((32, 48, 3), np.uint8)
        picture_sink(None, tmp_path, "png").verdict(make_verdict(make_frame(), make_result(heat), image), {})
        saved = cv2.imdecode(np.fromfile(tmp_path / "parts_a.png", np.uint8), cv2.IMREAD_UNCHANGED)
        assert saved.dtype == np.uint16 and saved.shape == (32, 48)
        assert saved[0, :5].tolist() == [16384, 32768, 65535, 65535, 0]

    def test_map_outside_the_crop_is_black_in_png(self) -> None:
        values = np.array([[np.nan, 1.0, -1.0]], np.float32)
        assert map_as_uint16(values, 2.0).tolist() == [[0, 32768, 0]]

    def test_nothing_is_written_unless_asked_for(self, tmp_path: Path) -> None:
        self.write(picture_sink(None), make_frame())
        assert names(tmp_path) == []

    def test_folders_are_made(self, tmp_path: Path) -> None:
        self.write(picture_sink(tmp_path / "a" / "b", tmp_path / "c"), make_frame())
        assert names(tmp_path / "a" / "b") == ["parts_a.png"]
        assert names(tmp_path / "c") == ["parts_a.npy"]

    def test_a_file_in_the_way_is_known_before_the_first_frame(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(SinkError, match=r"The folder .*file cannot be made \(File exists\)"):
            picture_sink(tmp_path / "file")


class TestOverlay:
    IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)

    def body(self, result: AnomalyResult, spec: PreprocessSpec = SPEC) -> np.ndarray:
        """The overlay without its caption strip."""
        overlay = draw_overlay(self.IMAGE, result, spec)
        assert overlay.dtype == np.uint8 and overlay.shape[1:] == (96, 3) and overlay.shape[0] > 64
        return overlay[-64:]

    def test_pixels_change_only_where_the_map_is_hot(self) -> None:
        heat = np.full((32, 48), 0.4 * PIXEL_THRESHOLD, np.float32)
        heat[8:16, 12:24] = 1.2 * PIXEL_THRESHOLD
        body = self.body(make_result(heat, regions=()))
        changed = (body != self.IMAGE).any(axis=2)
        # Bilinear enlargement may spread the edge by one map pixel.
        near = np.zeros((64, 96), bool)
        near[14:34, 22:50] = True
        assert not changed[~near].any()
        assert changed[18:30, 26:46].mean() > 0.95

    @pytest.mark.parametrize("multiple, changes", [(0.0, False), (0.75, False), (0.9, True), (1.5, True)])
    def test_colour_starts_at_three_quarters_of_the_pixel_threshold(
        self, multiple: float, changes: bool
    ) -> None:
        heat = np.full((32, 48), multiple * PIXEL_THRESHOLD, np.float32)
        body = self.body(make_result(heat, regions=()))
        assert (body != self.IMAGE).any() == changes

    def test_outside_the_crop_nothing_changes(self) -> None:
        spec = PreprocessSpec(32, 48, 16, 24)
        heat = np.full((16, 24), 9 * PIXEL_THRESHOLD, np.float32)
        changed = (self.body(make_result(heat, regions=()), spec) != self.IMAGE).any(axis=2)
        assert changed[16:48, 24:72].mean() > 0.95
        changed[16:48, 24:72] = False
        assert not changed.any()

    def test_the_input_is_not_modified(self) -> None:
        before = self.IMAGE.copy()
        draw_overlay(self.IMAGE, make_result(np.full((32, 48), 9, np.float32)), SPEC)
        np.testing.assert_array_equal(self.IMAGE, before)

    def test_regions_are_framed_at_their_edges(self) -> None:
        body = self.body(make_result(regions=(Region(10, 20, 30, 15, 100, 3.0),)))
        changed = (body != self.IMAGE).any(axis=2)
        frame = np.zeros((64, 96), bool)
        frame[20:35, 10:40] = True
        frame[21:34, 11:39] = False
        np.testing.assert_array_equal(changed, frame)

    def test_the_verdict_has_its_colour(self) -> None:
        strips = [
            draw_overlay(self.IMAGE, make_result(anomalous=a, regions=()), SPEC)[:-64].astype(int)
            for a in (True, False)
        ]
        red_over_green = [int((strip[:, :, 2] - strip[:, :, 1]).sum()) for strip in strips]
        assert red_over_green[0] > 0 > red_over_green[1]

    @pytest.mark.parametrize("image_hw", [(1, 1), (3, 400), (400, 3)])
    def test_tiny_images(self, image_hw: tuple[int, int]) -> None:
        image = np.zeros((*image_hw, 3), np.uint8)
        result = make_result(np.full((32, 48), 9, np.float32), regions=(Region(0, 0, 1, 1, 1, 9.0),))
        assert draw_overlay(image, result, SPEC).shape[1] == image_hw[1]
