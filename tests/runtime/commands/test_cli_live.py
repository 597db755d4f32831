"""`pcrun` on live sources: real processes, a real server that dies, signals at any time."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.runtime.commands.test_cli_run import ended, pcrun_process, records
from tests.runtime.conftest import Run
from tests.runtime.servers import mjpeg_server

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import smooth_image, with_defect  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
NORMAL = smooth_image(np.random.default_rng(11))
DEFECT = with_defect(NORMAL)


def live(tiny_bundle: Path, url: str, *options: object, **how: Any) -> "subprocess.Popen[str]":
    return pcrun_process(
        "--bundle", tiny_bundle, "--source", url, "--provider", "cpu", "--stall-timeout", 2, *options, **how
    )


def wait_for(condition: Any, limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines so far."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def events_in(path: Path) -> list[str]:
    return [record["event"] for record in lines_of(path) if "event" in record]


def resources(pid: int) -> tuple[int, int]:
    """Threads and file descriptors of a process."""
    threads, files = (len(list(Path(f"/proc/{pid}/{kind}").iterdir())) for kind in ("task", "fd"))
    return threads, files


@contextlib.contextmanager
def running(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="threads and files are counted in /proc")
def test_a_camera_that_dies_twenty_times(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with mjpeg_server("--fps", 100) as server, running(live(tiny_bundle, server.url, "--output", path)) as p:
        wait_for(lambda: len(lines_of(path)) > 10)
        used: list[tuple[int, int]] = []
        for death in range(20):
            server.kill()
            server.start("--fps", 100, "--first", 100 * (death + 1))
            wait_for(lambda death=death: events_in(path).count("reconnected") > death)  # type: ignore[misc]
            count = len(lines_of(path))
            wait_for(lambda count=count: len(lines_of(path)) > count + 3)  # type: ignore[misc]
            used.append(resources(p.pid))
        p.send_signal(signal.SIGTERM)
        code, _, err = ended(p)
    assert code == 0, err
    # An attempt while the server was still starting is one more loss.
    assert events_in(path).count("reconnected") == 20 <= events_in(path).count("lost")
    frames = [record for record in lines_of(path) if "frame" in record]
    # Every line is there: what was not dropped has a verdict.
    indexes = [frame["frame"] for frame in frames]
    assert indexes == sorted(set(indexes))
    assert indexes[-1] + 1 == len(frames) + sum(frame["dropped"] for frame in frames)
    assert {frame["verdict"] for frame in frames} <= {"normal", "anomalous"}
    # No growth; the first deaths may still start something.
    threads, files = zip(*used, strict=True)
    assert max(threads[10:]) <= max(threads[:10]) and max(files[10:]) <= max(files[:10])


def test_a_stalled_camera_is_lost_within_its_time_out(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with mjpeg_server("--stall-after", 30) as server:
        command = live(tiny_bundle, server.url, "--output", path, "--stall-timeout", 1)
        with running(command):
            wait_for(lambda: "lost" in events_in(path))
    lost = next(record for record in lines_of(path) if record.get("event") == "lost")
    assert lost["reason"] == "no frame for 1 s" and lost["source"] == server.url


def test_sigterm_ends_well(tiny_bundle: Path) -> None:
    with mjpeg_server() as server, running(live(tiny_bundle, server.url)) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        code, out, err = ended(process)
    got = records(first + out)
    assert code == 0, err
    assert got[0]["event"] == "connected" and got[-1]["event"] == "stopped"
    assert got[-1]["scored"] == sum("frame" in record for record in got)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_any_time_only_the_last_line_may_be_torn(
    tiny_bundle: Path, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "r.jsonl"
    moment = random.Random(5)
    with mjpeg_server("--fps", 200) as server:
        for _ in range(4):
            before = len(lines_of(path))
            with running(live(tiny_bundle, server.url, "--output", path)) as process:
                wait_for(lambda before=before: len(lines_of(path)) > before + 2)  # type: ignore[misc]
                time.sleep(moment.uniform(0, 0.2))
                process.send_signal(number)
                ended(process)
    broken = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            json.loads(line)
        except ValueError:
            broken += 1
    # At most the last one of each life, and none where it could end by itself.
    assert broken <= (4 if number == signal.SIGKILL else 0)


def test_a_camera_that_hangs_does_not_spoil_the_end(tiny_bundle: Path) -> None:
    with mjpeg_server("--stall-after", 10) as server:
        with running(live(tiny_bundle, server.url, "--stall-timeout", 30)) as process:
            assert process.stdout is not None
            for _ in range(5):
                process.stdout.readline()
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            code, out, err = ended(process)
    assert code == 0 and err == "" and time.monotonic() - started < 25
    assert records(out)[-1]["event"] == "stopped"


def test_no_secret_in_any_line(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAM_PASSWORD", "geheim-77")
    path = tmp_path / "r.jsonl"
    with mjpeg_server() as server:
        url = server.url.replace("http://", "http://operator:$CAM_PASSWORD@")
        with running(live(tiny_bundle, url, "--output", path)) as process:
            wait_for(lambda: len(lines_of(path)) > 3)
            server.kill()
            wait_for(lambda: "lost" in events_in(path))
            process.send_signal(signal.SIGTERM)
            _, out, err = ended(process)
    everything = path.read_text(encoding="utf-8") + out + err
    assert "geheim-77" not in everything and "operator" not in everything
    assert lines_of(path)[0]["source"] == server.url.replace("http://", "http://***@")


def test_two_cameras_one_process(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with mjpeg_server() as one, mjpeg_server() as two:
        with running(live(tiny_bundle, one.url, "--source", two.url, "--output", path)) as process:
            wait_for(lambda: len({r["source"] for r in lines_of(path) if "frame" in r}) == 2)
            one.kill()
            wait_for(lambda: "lost" in events_in(path))
            lost = len(lines_of(path))
            # One frame may have been in work when its camera was lost, and one may have waited.
            wait_for(lambda: len(lines_of(path)) > lost + 5)
            count = len(lines_of(path))
            wait_for(lambda: len(lines_of(path)) > count + 10)
            process.send_signal(signal.SIGTERM)
            assert ended(process)[0] == 0
    after = [r["source"] for r in lines_of(path)[count:] if "frame" in r]
    assert set(after) == {two.url}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_survived(tiny_bundle: Path, small_disk: Path) -> None:
    path, ballast = small_disk / "r.jsonl", small_disk / "ballast"
    ballast.write_bytes(bytes(40_000))
    with mjpeg_server("--fps", 60) as server, running(live(tiny_bundle, server.url, "--output", path)) as p:
        wait_for(lambda: path.exists() and path.stat().st_size > 16_000)
        assert p.stderr is not None
        assert "No space left on device" in p.stderr.readline()
        lines_of(path)  # whole ones only
        assert path.read_bytes().endswith(b"\n")
        ballast.unlink()
        wait_for(lambda: "sink_recovered" in events_in(path))
        p.send_signal(signal.SIGTERM)
        ended(p)
    frames = [r["frame"] for r in lines_of(path) if "frame" in r]
    missing = set(range(frames[-1] + 1)) - set(frames)
    dropped = sum(r["dropped"] for r in lines_of(path) if "frame" in r)
    assert len(missing) == dropped
    recovered = next(r for r in lines_of(path) if r.get("event") == "sink_recovered")
    assert recovered["lost"] == 0


class TestOptions:
    """In this process, on files."""

    @pytest.fixture
    def parts(self, tmp_path: Path) -> Path:
        folder = tmp_path / "parts"
        folder.mkdir()
        for number in range(6):
            image = DEFECT if number in (1, 3, 4) else NORMAL
            cv2.imwrite(str(folder / f"{number}.png"), image)
        return folder

    def verdicts(self, run: Run, *arguments: object) -> list[dict[str, Any]]:
        code, out, err = run("--provider", "cpu", *arguments)
        assert code in (0, 1), err
        return records(out)

    def test_debounce(self, run: Run, tiny_bundle: Path, parts: Path) -> None:
        got = self.verdicts(run, "--bundle", tiny_bundle, "--images", parts, "--debounce", "2/3")
        assert [r["verdict"] == "anomalous" for r in got] == [False, True, False, True, True, False]
        assert [r["alarm"] for r in got] == [False, False, False, True, True, True]

    @pytest.mark.parametrize("debounce, code", [("2/2", 1), ("3/3", 0)])
    def test_fail_on_anomaly_means_the_alarm(
        self, run: Run, tiny_bundle: Path, parts: Path, debounce: str, code: int
    ) -> None:
        arguments = ("--bundle", tiny_bundle, "--images", parts, "--provider", "cpu")
        assert run(*arguments, "--fail-on-anomaly", "--debounce", debounce)[0] == code

    def test_source_is_any_source(self, run: Run, tiny_bundle: Path, parts: Path) -> None:
        one = self.verdicts(run, "--bundle", tiny_bundle, "--images", parts)
        same = self.verdicts(run, "--bundle", tiny_bundle, "--source", parts)
        assert [r["score"] for r in one] == [r["score"] for r in same]

    def test_a_bundle_per_source(self, run: Run, tiny_bundle: Path, parts: Path, copied_bundle: Any) -> None:
        other = copied_bundle(seed=1)
        sources = ("--source", parts / "0.png", "--source", parts / "1.png")
        got = self.verdicts(run, "--bundle", tiny_bundle, "--bundle", other, *sources)
        alone = [
            self.verdicts(run, "--bundle", bundle, "--images", parts / name)[0]["score"]
            for bundle, name in ((tiny_bundle, "0.png"), (other, "1.png"))
        ]
        by_source = {Path(r["source"]).name: r for r in got}
        assert [by_source[name]["score"] for name in ("0.png", "1.png")] == alone
        code, _, err = run("--bundle", tiny_bundle, "--bundle", other, "--source", parts)
        assert code == 2 and "2 bundles were given for 1 sources" in err

    def test_roi_reports_regions_in_the_whole_frame(
        self, run: Run, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        big = np.full((100, 120, 3), 200, np.uint8)
        height, width = DEFECT.shape[:2]
        big[20 : 20 + height, 30 : 30 + width] = DEFECT
        cv2.imwrite(str(tmp_path / "big.png"), big)
        cv2.imwrite(str(tmp_path / "small.png"), DEFECT)
        (small,) = self.verdicts(run, "--bundle", tiny_bundle, "--images", tmp_path / "small.png")
        (got,) = self.verdicts(
            run, "--bundle", tiny_bundle, "--images", tmp_path / "big.png",
            "--roi", f"30,20,{width},{height}",
            "--save-overlays", tmp_path / "o", "--save-maps", tmp_path / "m",
        )  # fmt: skip
        assert got["score"] == small["score"]
        assert [(r["x"] - 30, r["y"] - 20) for r in got["regions"]] == [
            (r["x"], r["y"]) for r in small["regions"]
        ]
        (overlay,), (saved,) = list((tmp_path / "o").iterdir()), list((tmp_path / "m").iterdir())
        drawn = cv2.imread(str(overlay))
        assert drawn is not None and drawn.shape[1] == 120 and drawn.shape[0] > 100
        heat = np.load(saved)
        assert heat.shape == (100, 120)
        assert np.isnan(heat[:20]).all() and not np.isnan(heat[20 : 20 + height, 30 : 30 + width]).any()

    def test_raw_frames_on_standard_input(self, tiny_bundle: Path) -> None:
        height, width = NORMAL.shape[:2]
        command = ["--bundle", str(tiny_bundle), "--provider", "cpu", "--stdin-frames", f"{width}x{height}"]
        process = subprocess.run(
            [sys.executable, "-m", "pcrun.cli", *command],
            input=NORMAL.tobytes() + DEFECT.tobytes(),
            capture_output=True,
            check=False,
            timeout=60,
        )
        got = records(process.stdout.decode())
        assert [r["verdict"] for r in got] == ["normal", "anomalous"] and got[0]["source"] == "stdin"

    def test_a_watched_folder_as_a_process(self, tiny_bundle: Path, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        command = ("--bundle", tiny_bundle, "--watch", folder, "--provider", "cpu", "--max-frames", 2)
        with running(pcrun_process(*command)) as process:
            # How long a start takes is not known, and what arrives before it is not scored: the same again.
            for number in range(200):
                for name, image in ((f"a{number}", NORMAL), (f"b{number}", DEFECT)):
                    cv2.imwrite(str(tmp_path / f"{name}.png"), image)
                    (tmp_path / f"{name}.png").rename(folder / f"{name}.png")
                    time.sleep(0.3)
                if process.poll() is not None:
                    break
            code, out, err = ended(process)
        assert code == 0, err
        verdicts = {Path(r["source"]).name[0]: r["verdict"] for r in records(out)}
        assert verdicts == {"a": "normal", "b": "anomalous"}

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["--roi", "1,2,3"], "is not x,y,w,h in whole pixels"),
            (["--roi", "1,2,0,3"], "has no area"),
            (["--rotate", "45"], "'45' is not one of"),
            (["--debounce", "5/3"], "is not k/n with 1 <= k <= n"),
            (["--prop", "EXPOSURE"], "is not NAME=VALUE"),
            (["--fps", "0"], "--fps"),
            (["--rotate-mb", "5"], "--rotate-mb does nothing without --output"),
            (["--output", "x", "--keep", "2"], "--keep does nothing without --rotate-mb"),
            (["--prop", "EXPOSURE=1"], "has no properties to set"),
        ],
    )
    def test_wrong_uses(
        self, run: Run, tiny_bundle: Path, parts: Path, arguments: list[str], words: str
    ) -> None:
        code, out, err = run("--bundle", tiny_bundle, "--source", parts, *arguments)
        assert (code, out) == (2, "") and words in err


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = json.loads((ROOT / "docs" / "results.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


class TestSchema:
    """docs/results.schema.json says what every line is, and nothing else."""

    def test_lines_of_files(self, validator: Any, run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
        for number, image in enumerate((NORMAL, DEFECT)):
            cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        (tmp_path / "broken.png").write_bytes(b"x")
        _, out, _ = run(
            "--bundle", tiny_bundle, "--images", tmp_path, "--provider", "cpu", "--debounce", "1/2"
        )
        got = records(out)
        assert {record["verdict"] for record in got} == {"normal", "anomalous", "error"}
        for record in got:
            validator.validate(record)

    def test_lines_about_drift(self, validator: Any, run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        for number in range(160):
            normal = smooth_image(rng)
            image = with_defect(normal) if number < 80 else normal
            cv2.imwrite(str(tmp_path / f"{number:03d}.png"), image)
        _, out, _ = run(
            "--bundle", tiny_bundle, "--images", tmp_path, "--provider", "cpu", "--drift-window", 20
        )
        events = [record for record in records(out) if "event" in record]
        told = [event["event"] for event in events if event["statistic"] == "image_score"]
        assert told == ["drift", "drift_ended"]
        for event in events:
            validator.validate(event)
            assert not validator.is_valid({**event, "p_value": 2})

    def test_lines_of_a_live_source(self, validator: Any, tiny_bundle: Path) -> None:
        with mjpeg_server() as server, running(live(tiny_bundle, server.url)) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(5)]
            server.kill()
            while "lost" not in lines[-1]:
                lines.append(process.stdout.readline())
            server.start()
            while "reconnected" not in lines[-1]:
                lines.append(process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            lines += ended(process)[1].splitlines()
        got = records("".join(line.strip() + "\n" for line in lines if line.strip()))
        assert {"connected", "lost", "reconnected", "stopped"} <= {r.get("event") for r in got}
        for record in got:
            validator.validate(record)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"verdict": "good"},
            {"score": "3.5"},
            {"age_ms": -1},
            {"surprise": 1},
            {"time": "2026-03-01 08:15:30"},
            {"regions": [{"x": 1}]},
            {"error": "why"},
        ],
        ids=str,
    )
    def test_it_refuses_what_is_none(self, validator: Any, wrong: dict[str, Any]) -> None:
        from tests.runtime.sinks.results import RECORDS

        validator.validate(RECORDS[0])
        assert not validator.is_valid({**RECORDS[0], **wrong})
