"""`pcrun` as a line integrator meets it: arguments, result lines, exit codes, signals."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import pcrun
from pcrun.cli import main
from pcrun.cli_support import spread_values
from pcrun.errors import BundleError
from pcrun.run import find_bundle
from tests.contract.damage import forge

Run = Callable[..., tuple[int, str, str]]


def pcrun_process(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pcrun.cli", *map(str, arguments)]
    # As in a shell: output to a pipe is buffered.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `pcrun` in this process; gives exit code, standard output and standard error."""
    monkeypatch.delenv("PCRUN_BUNDLE", raising=False)
    # `main` sets both for its process; here the process is pytest.
    handler = signal.getsignal(signal.SIGTERM)
    for name in ("OPENCV_LOG_LEVEL", "OPENCV_FFMPEG_LOGLEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, handler)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a normal image and one with a defect, a.png and b.png."""
    from tests.data.make_tiny_bundle import smooth_image, with_defect

    folder = tmp_path / "images"
    folder.mkdir()
    normal = smooth_image(np.random.default_rng(11))
    write_png(folder / "a.png", normal)
    write_png(folder / "b.png", with_defect(normal))
    return folder


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


class TestSpreadValues:
    @pytest.mark.parametrize(
        "given, spread",
        [
            ("--images a b c", "--images a --images b --images c"),
            ("--images a b --threads 2", "--images a --images b --threads 2"),
            ("--threads 2 --images a b", "--threads 2 --images a --images b"),
            ("--images a --images b c", "--images a --images b --images c"),
            ("--images=a b", "--images=a b"),
            ("--images --threads 2", "--images --threads 2"),
            ("--images a - b", "--images a --images - --images b"),
            ("--other a b", "--other a b"),
            ("", ""),
        ],
    )
    def test_table(self, given: str, spread: str) -> None:
        assert spread_values(given.split(), "--images") == spread.split()


class TestArguments:
    def test_version(self, run: Run) -> None:
        assert run("--version") == (0, f"pcrun, version {pcrun.__version__}\n", "")

    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_help_names_every_option_and_the_exit_codes(self, run: Run, flag: str) -> None:
        code, out, err = run(flag)
        assert code == 0 and err == ""
        for word in (
            "--bundle",
            "--images",
            "--video",
            "--camera",
            "--fail-on-anomaly",
            "selftest",
            "Exit codes",
        ):
            assert word in out

    def test_help_and_import_are_quiet_and_load_nothing_heavy(self) -> None:
        script = (
            "import sys, pcrun, pcrun.cli\n"
            "code = pcrun.cli.main(['selftest', '--help'])\n"
            "heavy = {'numpy', 'cv2', 'onnxruntime', 'hnswlib', 'torch'} & set(sys.modules)\n"
            "sys.exit(f'loaded {heavy}' if heavy else code)\n"
        )
        process = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
        )
        assert (process.returncode, process.stderr) == (0, "")

    def test_importing_everything_prints_nothing(self) -> None:
        script = "import pcrun; pcrun.AnomalyDetector, pcrun.Bundle; import pcrun.run, pcrun.selftest"
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (process.returncode, process.stdout, process.stderr) == (0, "", "")

    @pytest.mark.parametrize(
        "sources",
        [[], ["--images", "a.png", "--video", "v.mp4"], ["--video", "v.mp4", "--camera", "0"],
         ["--images", "a.png", "--camera", "0"]],
        ids=["none", "images+video", "video+camera", "images+camera 0"],
    )  # fmt: skip
    def test_exactly_one_source(self, run: Run, sources: list[str]) -> None:
        code, out, err = run("--bundle", "x.pcbundle", *sources)
        assert code == 2 and out == ""
        assert "exactly one of --images, --video or --camera" in err

    def test_a_file_without_its_option_is_explained(self, run: Run) -> None:
        code, _, err = run("--bundle", "x.pcbundle", "part.png")
        assert code == 2
        assert "Unexpected 'part.png'. To score files say --images PATH...; commands: selftest." in err

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--threshold", "nan"], "'nan' is not a finite number"),
            (["--threshold", "inf"], "'inf' is not a finite number"),
            (["--threshold", "high"], "'high' is not a number"),
            (["--pixel-threshold", "-inf"], "not a finite number"),
            (["--threads", "-1"], "--threads"),
            (["--camera", "-1"], "--camera"),
            (["--max-frames", "0"], "--max-frames"),
            (["--ef", "0"], "--ef"),
            (["--exactness", "most"], "--exactness"),
            (["--provider", "gpu"], "--provider"),
            (["--format", "xml"], "--format"),
            (["--map-format", "jpg"], "--map-format"),
            (["--images"], "--images"),
            (["--treshold", "1"], "--threshold"),
        ],
    )
    def test_a_wrong_value_is_named(self, run: Run, arguments: list[str], words: str) -> None:
        code, out, err = run("--bundle", "x.pcbundle", *arguments)
        assert code == 2 and out == "" and words in err


class TestFindBundle:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("PCRUN_BUNDLE", raising=False)
        monkeypatch.chdir(tmp_path)

    def test_the_one_given_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PCRUN_BUNDLE", "/from/environment")
        Path("here.pcbundle").mkdir()
        assert find_bundle(Path("given")) == Path("given")

    def test_then_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PCRUN_BUNDLE", "/from/environment")
        Path("here.pcbundle").mkdir()
        assert find_bundle(None) == Path("/from/environment")

    def test_then_the_only_one_here(self) -> None:
        Path("here.pcbundle").mkdir()
        Path("other.zip").touch()
        assert find_bundle(None) == Path("here.pcbundle")

    def test_an_empty_variable_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PCRUN_BUNDLE", "")
        Path("here.pcbundle").touch()
        assert find_bundle(None) == Path("here.pcbundle")

    def test_none_at_all(self) -> None:
        with pytest.raises(BundleError, match=r"holds none\. Pass --bundle PATH or set \$PCRUN_BUNDLE"):
            find_bundle(None)

    def test_several_are_listed(self) -> None:
        for name in ("b.pcbundle", "a.pcbundle"):
            Path(name).mkdir()
        with pytest.raises(BundleError, match=r"holds 2 \(a\.pcbundle, b\.pcbundle\)"):
            find_bundle(None)


class TestScoring:
    def test_one_line_per_image_and_exit_code_0(self, run: Run, tiny_bundle: Path, images: Path) -> None:
        code, out, err = run("--bundle", tiny_bundle, "--images", images)
        normal, anomalous = records(out)
        assert code == 0
        assert normal["source"].endswith("a.png") and anomalous["source"].endswith("b.png")
        assert (normal["verdict"], anomalous["verdict"]) == ("normal", "anomalous")
        assert normal["score"] <= normal["threshold"] < anomalous["score"]
        assert anomalous["regions"] and anomalous["exactness"] == "image" and anomalous["search"] == "hnsw"
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

    @pytest.mark.parametrize(
        "threshold, verdicts", [("0", ["anomalous"] * 2), ("1e30", ["normal"] * 2), ("-5", ["anomalous"] * 2)]
    )
    def test_threshold(
        self, run: Run, tiny_bundle: Path, images: Path, threshold: str, verdicts: list[str]
    ) -> None:
        _, out, _ = run("--bundle", tiny_bundle, "--images", images, "--threshold", threshold)
        assert [r["verdict"] for r in records(out)] == verdicts

    @pytest.mark.parametrize("exactness", ["none", "image", "full"])
    def test_exactness_is_said(self, run: Run, tiny_bundle: Path, images: Path, exactness: str) -> None:
        _, out, _ = run("--bundle", tiny_bundle, "--images", images, "--exactness", exactness)
        assert {r["exactness"] for r in records(out)} == {exactness}

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
        code, out, err = run("--bundle", tiny_bundle, *arguments)
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


class TestSelftest:
    def test_a_good_bundle_passes(self, run: Run, tiny_bundle: Path) -> None:
        code, out, err = run("selftest", "--bundle", tiny_bundle)
        assert code == 0 and err == "" and "2 of 2 golden samples agree" in out

    def test_the_bundle_may_stand_before_the_command(self, run: Run, tiny_bundle: Path) -> None:
        assert run("--bundle", tiny_bundle, "selftest")[0] == 0

    def test_json(self, run: Run, tiny_bundle: Path) -> None:
        code, out, _ = run("selftest", "--bundle", tiny_bundle, "--json")
        report = json.loads(out)
        assert code == 0 and report["passed"] is True and len(report["checks"]) == 2

    def test_a_score_that_differs_is_exit_code_1(self, run: Run, tiny_bundle: Path) -> None:
        content = json.loads((tiny_bundle / "samples/expected.json").read_bytes())
        content["samples"][1]["image_score"] *= 1.01
        forge(tiny_bundle, "samples/expected.json", json.dumps(content).encode())

        code, out, _ = run("selftest", "--bundle", tiny_bundle)
        assert code == 1 and "DIFFERS" in out and "1 of 2 golden samples agree" in out

    def test_no_bundle_is_exit_code_2(self, run: Run) -> None:
        assert run("selftest", "--bundle", "gone.pcbundle")[0] == 2


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
        code, out, err = ended(pcrun_process("--bundle", tiny_bundle, "--camera", 99))
        assert code == 2 and err.count("\n") == 1
