"""`pcrun` at work: result lines, exit codes, files it writes, signals."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pcrun.search import EXACT_SEARCH_NAMES, SEARCH_NAMES
from tests.conftest import BundleMaker
from tests.runtime.conftest import Run


def pcrun_process(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pcrun.cli", *map(str, arguments)]
    # As in a shell: output to a pipe is buffered.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    # A shell's background jobs ignore signals, and so would their children: not what is tested here.
    heeded = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda *_: None) for number in heeded}
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5000 frames, far more than any test here waits for."""
    path = tmp_path_factory.mktemp("video") / "long.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (48, 32))
    frame = np.full((32, 48, 3), 110, np.uint8)
    for _ in range(5000):
        writer.write(frame)
    writer.release()
    return path


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class TestScoring:
    def test_one_line_per_image_and_exit_code_0(self, run: Run, tiny_bundle: Path, images: Path) -> None:
        code, out, err = run("--bundle", tiny_bundle, "--images", images)
        normal, anomalous = records(out)
        assert code == 0
        assert normal["source"].endswith("a.png") and anomalous["source"].endswith("b.png")
        assert (normal["verdict"], anomalous["verdict"]) == ("normal", "anomalous")
        assert normal["score"] <= normal["threshold"] < anomalous["score"]
        assert anomalous["regions"] and (anomalous["exactness"], anomalous["search"]) == ("mask", "quantised")
        # What `auto` chose is said, once, and not among the results.
        assert err.count("\n") == 1 and "provider" in err

    def test_the_region_lies_on_the_defect(self, run: Run, tiny_bundle: Path, images: Path) -> None:
        from tests.data.make_tiny_bundle import DEFECT_XYWH

        _, out, _ = run("--bundle", tiny_bundle, "--images", images / "b.png")
        region = records(out)[0]["regions"][0]
        x, y, width, height = DEFECT_XYWH
        assert abs(region["x"] + region["width"] / 2 - (x + width / 2)) <= 4
        assert abs(region["y"] + region["height"] / 2 - (y + height / 2)) <= 4

    def test_bundle_of_the_environment(
        self, run: Run, tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PCRUN_BUNDLE", str(tiny_bundle))
        code, out, _ = run("--images", images)
        assert code == 0 and len(records(out)) == 2

    @pytest.mark.parametrize("names, expected", [(["a.png"], 0), (["b.png"], 1), (["a.png", "b.png"], 1)])
    def test_fail_on_anomaly(
        self, run: Run, tiny_bundle: Path, images: Path, names: list[str], expected: int
    ) -> None:
        paths = [images / name for name in names]
        assert run("--bundle", tiny_bundle, "--fail-on-anomaly", "--images", *paths)[0] == expected

    def test_an_unreadable_file_has_its_line_and_the_others_are_scored(
        self, run: Run, tiny_bundle: Path, images: Path
    ) -> None:
        (images / "aa.png").write_bytes((images / "a.png").read_bytes()[:-30])
        code, out, _ = run("--bundle", tiny_bundle, "--images", images, "--fail-on-anomaly")
        assert code == 2
        assert [r["verdict"] for r in records(out)] == ["normal", "error", "anomalous"]
        assert "truncated" in records(out)[1]["error"]

    @pytest.mark.parametrize("threshold, verdicts", [("0", ["anomalous"] * 2), ("1e30", ["normal"] * 2)])
    def test_threshold(
        self, run: Run, tiny_bundle: Path, images: Path, threshold: str, verdicts: list[str]
    ) -> None:
        _, out, _ = run("--bundle", tiny_bundle, "--images", images, "--threshold", threshold)
        assert [r["verdict"] for r in records(out)] == verdicts

    @pytest.mark.parametrize("exactness", ["none", "image", "mask", "full"])
    def test_exactness_is_said(self, run: Run, tiny_bundle: Path, images: Path, exactness: str) -> None:
        _, out, err = run("--bundle", tiny_bundle, "--images", images, "--exactness", exactness)
        assert {r["exactness"] for r in records(out)} == {exactness}
        assert {r["search"] for r in records(out)} == {"exact" if exactness == "full" else "quantised"}
        assert f"exactness {exactness}" in err
        verified = [r["verified_patches"] for r in records(out)]
        assert (min(verified) > 0) == (exactness != "none") and max(verified) <= 96

    @pytest.mark.parametrize("search", SEARCH_NAMES)
    def test_every_search_gives_the_same_verdicts(
        self, run: Run, made_bundle: BundleMaker, images: Path, search: str
    ) -> None:
        bundle = made_bundle(image_score="reweighted", search_dim=3)
        _, expected, _ = run("--bundle", bundle, "--images", images, "--exactness", "full")
        code, out, err = run("--bundle", bundle, "--images", images, "--search", search)
        assert code == 0 and f"search {search}" in err
        for got, full in zip(records(out), records(expected), strict=True):
            assert got["search"] == search
            assert got["exactness"] == ("full" if search in EXACT_SEARCH_NAMES else "mask")
            assert got["verdict"] == full["verdict"] and got["threshold"] == full["threshold"]
            assert got["score"] == pytest.approx(full["score"], rel=1e-5)
            boxes = [
                [(r["x"], r["y"], r["width"], r["height"]) for r in record["regions"]]
                for record in (got, full)
            ]
            assert boxes[0] == boxes[1]

    def test_ef_asks_for_the_index_and_is_said(self, run: Run, tiny_bundle: Path, images: Path) -> None:
        for options in (["--ef", 2], ["--search", "hnsw", "--ef", 2]):
            _, out, err = run("--bundle", tiny_bundle, "--images", images, *options)
            assert {r["search"] for r in records(out)} == {"hnsw"} and "search hnsw (ef 2)" in err
        assert "(ef 16)" in run("--bundle", tiny_bundle, "--images", images, "--search", "hnsw")[2]

    def test_a_search_without_its_index_is_one_line_and_exit_code_2(
        self, run: Run, made_bundle: BundleMaker, images: Path
    ) -> None:
        code, out, err = run(
            "--bundle", made_bundle(with_index=False), "--images", images, "--search", "hnsw"
        )
        assert code == 2 and out == "" and "holds no HNSW index" in err and err.count("\n") == 1

    def test_without_hnswlib_a_warning_is_said_and_it_goes_on(
        self, run: Run, tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "hnswlib", None)
        code, out, err = run("--bundle", tiny_bundle, "--images", images, "--provider", "cpu")
        assert code == 0 and {r["search"] for r in records(out)} == {"quantised"}
        assert err.startswith("pcrun: warning: hnswlib cannot be imported") and err.count("\n") == 1

    def test_no_profile_is_said_to_be_used_where_there_is_none(
        self, run: Run, tiny_bundle: Path, images: Path
    ) -> None:
        for options in ([], ["--no-profile"]):
            _, _, err = run("--bundle", tiny_bundle, "--images", images, *options)
            assert err.count("\n") == 1 and "no device profile (`pcrun tune` makes one)" in err

    def test_a_named_provider_is_not_announced(self, run: Run, tiny_bundle: Path, images: Path) -> None:
        assert run("--bundle", tiny_bundle, "--images", images, "--provider", "cpu")[2] == ""

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--images", "gone"], "There is no file or folder gone."),
            (["--video", "gone.mp4"], "There is no video file gone.mp4"),
            (["--camera", "99"], "Camera 99 cannot be opened"),
        ],
    )
    def test_no_source_is_one_line_and_exit_code_2(
        self, run: Run, tiny_bundle: Path, arguments: list[str], words: str
    ) -> None:
        code, out, err = run("--bundle", tiny_bundle, "--provider", "cpu", *arguments)
        assert code == 2 and out == ""
        assert err.startswith(f"pcrun: error: {words}") and err.count("\n") == 1

    def test_a_missing_bundle(self, run: Run, images: Path) -> None:
        code, out, err = run("--bundle", "gone.pcbundle", "--images", images)
        assert code == 2 and out == "" and "gone.pcbundle" in err and err.count("\n") == 1

    def test_a_crash_never_looks_like_an_anomaly(
        self, run: Run, tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*arguments: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr("pcrun.detector.preprocess", crash)
        code, _, err = run("--bundle", tiny_bundle, "--images", images, "--fail-on-anomaly")
        assert code == 2 and "RuntimeError: a bug" in err and "Traceback" in err


class TestOutputs:
    @pytest.mark.parametrize("name", ["jsonl", "csv", "table"])
    def test_format(self, run: Run, tiny_bundle: Path, images: Path, name: str) -> None:
        _, out, _ = run("--bundle", tiny_bundle, "--images", images, "--format", name)
        if name == "jsonl":
            verdicts = [r["verdict"] for r in records(out)]
        elif name == "csv":
            verdicts = [row["verdict"] for row in csv.DictReader(out.splitlines())]
        else:
            verdicts = [line.split()[2] for line in out.splitlines()[1:]]
        assert verdicts == ["normal", "anomalous"]

    def test_output_file_takes_all_and_standard_output_nothing(
        self, run: Run, tiny_bundle: Path, images: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "new" / "results.jsonl"
        code, out, _ = run("--bundle", tiny_bundle, "--images", images, "--output", path)
        assert code == 0 and out == ""
        assert [r["verdict"] for r in records(path.read_text("utf-8"))] == ["normal", "anomalous"]

    @pytest.mark.parametrize(
        "arguments, first", [([], "source,frame,"), (["--format", "jsonl"], '{"source"')], ids=["", "jsonl"]
    )
    def test_csv_by_the_files_name_unless_said_otherwise(
        self, run: Run, tiny_bundle: Path, images: Path, tmp_path: Path, arguments: list[str], first: str
    ) -> None:
        run("--bundle", tiny_bundle, "--images", images, "--output", tmp_path / "r.csv", *arguments)
        assert (tmp_path / "r.csv").read_text("utf-8").startswith(first)

    def test_overlays_and_maps(self, run: Run, tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
        run(
            "--bundle", tiny_bundle, "--images", images,
            "--save-overlays", tmp_path / "o", "--save-maps", tmp_path / "m",
        )  # fmt: skip
        assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["images_a.png", "images_b.png"]
        normal, anomalous = (np.load(tmp_path / "m" / f"images_{name}.npy") for name in "ab")
        assert normal.shape == anomalous.shape == (32, 48) and anomalous.max() > normal.max()

    def test_png_maps(self, run: Run, tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
        run("--bundle", tiny_bundle, "--images", images, "--save-maps", tmp_path, "--map-format", "png")
        assert cv2.imread(str(tmp_path / "images_b.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16

    def test_an_unwritable_folder_is_one_line_and_exit_code_2(
        self, run: Run, tiny_bundle: Path, images: Path
    ) -> None:
        code, out, err = run(
            "--bundle",
            tiny_bundle,
            "--images",
            images,
            "--save-overlays",
            images / "a.png",
            "--provider",
            "cpu",
        )
        assert code == 2 and out == "" and "cannot be made" in err and err.count("\n") == 1

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    @pytest.mark.parametrize("arguments", [[], ["--format", "csv"], ["--output", "/dev/full"]])
    def test_a_full_disk_is_one_line_and_exit_code_2(
        self, tiny_bundle: Path, images: Path, arguments: list[str]
    ) -> None:
        command = ["--bundle", tiny_bundle, "--images", images, "--provider", "cpu", *arguments]
        with Path("/dev/full").open("w") as full:
            process = subprocess.run(
                [sys.executable, "-m", "pcrun.cli", *map(str, command)],
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
            )  # fmt: skip
        assert process.returncode == 2
        assert "No space left on device" in process.stderr and process.stderr.count("\n") == 1


class TestVideo:
    def test_frames_are_numbered_and_limited(self, run: Run, tiny_bundle: Path, long_video: Path) -> None:
        code, out, _ = run("--bundle", tiny_bundle, "--video", long_video, "--max-frames", 5)
        assert code == 0
        assert [(r["source"], r["frame"]) for r in records(out)] == [(str(long_video), i) for i in range(5)]

    def test_max_frames_beyond_the_end(self, run: Run, tiny_bundle: Path, images: Path) -> None:
        code, out, _ = run("--bundle", tiny_bundle, "--images", images, "--max-frames", 99)
        assert code == 0 and len(records(out)) == 2

    def test_a_cut_video_is_exit_code_2(
        self, run: Run, tiny_bundle: Path, long_video: Path, tmp_path: Path
    ) -> None:
        cut = tmp_path / "cut.avi"
        cut.write_bytes(long_video.read_bytes()[:20_000])
        code, out, _ = run("--bundle", tiny_bundle, "--video", cut)
        *scored, last = records(out)
        assert code == 2 and scored and last["verdict"] == "error" and "damaged" in last["error"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")
class TestProcess:
    def test_a_reader_that_leaves_ends_it_quietly_but_not_as_done(
        self, tiny_bundle: Path, long_video: Path
    ) -> None:
        process = pcrun_process("--bundle", tiny_bundle, "--video", long_video, "--provider", "cpu")
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        assert process.wait(60) == 141 and err == ""
        assert json.loads(first)["frame"] == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("name", ["jsonl", "csv"])
    def test_a_signal_ends_it_with_130_and_whole_lines(
        self, tiny_bundle: Path, long_video: Path, tmp_path: Path, number: signal.Signals, name: str
    ) -> None:
        path = tmp_path / "results"
        process = pcrun_process(
            "--bundle", tiny_bundle, "--video", long_video, "--provider", "cpu",
            "--output", path, "--format", name, "--save-overlays", tmp_path / "overlays",
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") > 20):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.005)
        process.send_signal(number)
        code, out, err = ended(process)

        assert (code, out, err.strip()) == (130, "", "pcrun: interrupted")
        text = path.read_text("utf-8")
        assert text.endswith("\n")
        frames = records(text) if name == "jsonl" else list(csv.DictReader(text.splitlines()))
        assert [int(r["frame"]) for r in frames] == list(range(len(frames))) and len(frames) < 5000
        # The frame in work may lack its overlay, but no half-written file stays.
        saved = sorted(p.name for p in (tmp_path / "overlays").iterdir())
        assert len(frames) - 1 <= len(saved) <= len(frames)
        assert all(name.endswith(".png") and not name.startswith(".") for name in saved)

    def test_opencv_does_not_talk_between_the_lines(self, tiny_bundle: Path, tmp_path: Path) -> None:
        cut = tmp_path / "cut.bmp"
        cut.write_bytes(cv2.imencode(".bmp", np.zeros((32, 48, 3), np.uint8))[1].tobytes()[:200])
        code, out, err = ended(pcrun_process("--bundle", tiny_bundle, "--images", cut, "--provider", "cpu"))
        assert code == 2 and len(records(out)) == 1 and err == ""
        code, out, err = ended(pcrun_process("--bundle", tiny_bundle, "--camera", 99, "--provider", "cpu"))
        assert code == 2 and err.count("\n") == 1
