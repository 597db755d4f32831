"""The examples of README and docs are run: shell blocks line by line, all others by their language."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pcrun.detector import AnomalyDetector
from pcrun.pipeline.drift import DriftWatch
from pcrun.sinks.record import event_record, result_record
from pcrun.sources import Frame
from tests.contract.damage import edit_manifest
from tests.packaging.commands import PROGRAMS
from tests.packaging.example_lines import (
    ADDED,
    ENDS,
    NOT_RUN,
    PAGES,
    ROOT,
    all_blocks,
    blocks,
    program_lines,
    reason_not_run,
    shell_lines,
)
from tests.packaging.workplace import Ran, one_thread, run_program, write_images
from tests.runtime.servers import mjpeg_server

# (page, language) -> blocks, and the test that takes them. "sh" is run here, line by line.
TAKEN_BY = {
    ("architecture.md", ""): (1, "a drawing"),
    ("bundle.md", "python"): (1, "test_docs.test_example_without_this_project_gives_the_detectors_score"),
    ("cli.md", "csv"): (1, "test_docs.test_documented_result_lines_have_the_fields_of_real_ones"),
    ("cli.md", "json"): (3, "test_docs.test_documented_result_lines_have_the_fields_of_real_ones"),
    ("cli.md", "yaml"): (1, "test_docs.test_example_recipe_loads"),
    ("datasets.md", "text"): (
        15,
        "test_docs.test_datasets_page_shows_every_layout_as_the_command_does, and the lists below",
    ),
    ("deploy.md", "ini"): (1, "test_the_environment_file_of_a_service_is_one"),
    ("outputs.md", "json"): (1, "test_the_event_of_drift_has_the_facts_of_a_real_one"),
    ("README.md", "json"): (1, "test_the_result_line_of_the_readme_has_the_fields_of_a_real_one"),
    ("README.md", "python"): (1, "test_the_python_of_the_readme_runs"),
}

# Prints what the shell made of a line, in the place of the program.
STUB = """#!{python}
import json, os, sys
with open({record!r}, "w") as file:
    json.dump([os.path.basename(sys.argv[0]), *sys.argv[1:]], file)
"""


@pytest.fixture
def outfitted(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workplace with what the examples name."""
    rng = np.random.default_rng(9)
    (place / "shots").mkdir()
    for folder, count in (("2024-01", 14), ("2024-06", 24)):
        write_images(place / "shots" / folder, rng, normal=count)
        for image in list((place / "shots" / folder).iterdir()):
            image.rename(image.with_name(f"good_{image.name}"))
    for name in ("part.png", "extra.png", "shots/a.jpg", "parts/a.png"):
        cv2.imwrite(name, cv2.imread("incoming/000.png"))
    write_images(place / "data" / "mtd", rng, normal=8)
    shutil.copytree("good", "good_from_line3")
    shutil.copytree("results/old", "results/line3")
    for cell in Path("results/old").iterdir():
        shutil.copy(cell, "results")
    shutil.copy("students/edge-s.onnx", "student.onnx")
    Path("resnet18.pth").write_bytes(b"for another program")
    np.save("rows.npy", rng.normal(size=(500, 8)).astype(np.float32))
    Path("good.txt").write_text("".join(f"{path}\n" for path in Path("good").iterdir()), encoding="utf-8")
    Path("evaluation.json").write_text("{}", encoding="utf-8")
    (recipe,) = blocks(ROOT / "docs" / "cli.md", "yaml")
    Path("line3.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.setenv("CAM_USER", "viewer")
    monkeypatch.setenv("CAM_PASSWORD", "secret")
    monkeypatch.setenv("PCRUN_TOKEN", "0123456789abcdef")
    take_small_network(place, monkeypatch)
    take_processes_here(monkeypatch)
    return place


def take_small_network(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of pretrained backbones, which would have to be downloaded."""
    build, network = (importlib.import_module(f"pcexport.{name}") for name in ("build", "graph.network"))
    replace = importlib.import_module("dataclasses").replace
    own = {"layers": None, "weights": "default", "neighbourhood": 3}

    def trace(config: Any, preprocessing: Any) -> Any:
        small = replace(config, backbone=str(place / "students" / "edge-s.onnx"), **own)
        return network.trace_network(small, preprocessing)

    monkeypatch.setattr(build, "trace_network", trace)


def take_processes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a process for a build and for each cell of a sweep; tests/benchmarks start them."""
    sweep, worker = (importlib.import_module(f"pcbench.latency.{name}") for name in ("sweep", "worker"))
    monkeypatch.setattr(
        sweep, "run_worker", lambda request, **_: {"error": None, **worker.measure_cell(request)}
    )

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "pcexport.cli"]
        ran = run_program("pcexport", command[3:])
        return subprocess.CompletedProcess(command, ran.code, ran.out, ran.err)

    build = importlib.import_module("pcbench.build")
    monkeypatch.setattr(build, "subprocess", types.SimpleNamespace(run=run, PIPE=subprocess.PIPE))


@pytest.fixture
def words_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """What bash gives to the program of a line: quotes, globs and redirections are the shell's."""
    stubs, record = tmp_path / "stubs", tmp_path / "record.json"
    stubs.mkdir()
    for program in PROGRAMS:
        (stubs / program).write_text(STUB.format(python=sys.executable, record=str(record)), encoding="utf-8")
        (stubs / program).chmod(0o755)

    def words(line: str) -> list[str]:
        path = f"{stubs}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", "-euc", line], check=True, timeout=20, env={**os.environ, "PATH": path})
        found: list[str] = json.loads(record.read_text(encoding="utf-8"))
        return found

    return words


def provide(words: list[str]) -> None:
    """Copies of the bundle under the names that a command reads, and nothing where it writes."""
    output = next((words[n + 1] for n, word in enumerate(words[:-1]) if word in ("-o", "--output")), "")
    packed = f"{words[2]}.zip" if words[:2] == ["pcexport", "pack"] and not output else ""
    for word in words:
        if word.endswith(".pcbundle") and word != output and not Path(word).exists():
            shutil.copytree("bottle.pcbundle", word)
            edit_manifest(Path(word), functools.partial(dict.update, name=word))
        if word.endswith(".pcbundle.zip") and word != packed:
            assert run_program("pcexport", ["pack", word.removesuffix(".zip")]).code == 0
    if words[:2] == ["pcbench", "readme"]:
        shutil.copy(ROOT / "README.md", ".")
        shutil.copytree(ROOT / "benchmarks" / "results", "benchmarks/results")
    if words[1] in ("build", "distill") and "--force" not in words and output.endswith(".pcbundle"):
        shutil.rmtree(output, ignore_errors=True)


@pytest.mark.parametrize("line", program_lines())
def test_a_line_of_the_documentation_runs(
    line: str,
    outfitted: Path,
    words_of: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    stream: str,
) -> None:
    codes, said = next(
        ((codes, said) for pattern, codes, said in ENDS if re.search(pattern, line)), ({0}, "")
    )
    for name, value in re.findall(r"^(\w+)=(\S+) ", line):
        monkeypatch.setenv(name, value)
    program, *arguments = words_of(line)
    provide([program, *arguments])
    arguments = [stand_in(word, stream) for word in arguments]
    added = " ".join(more for pattern, more, _ in ADDED if re.match(pattern, line))
    with one_thread() if "distill" in line else contextlib.nullcontext():
        ran = run_program(program, [*arguments, *added.split()])
    assert ran.code in codes, ran.err
    assert "Traceback" not in ran.err
    if ran.code == 2:
        assert re.search(said, ran.err), ran.err
    assert_written(arguments, ran)
    if "--json" in arguments and ran.code == 0:
        json.loads(ran.out)


def stand_in(word: str, stream: str) -> str:
    """The same with the loopback in the place of a camera on the network, and a free port."""
    word = re.sub(r"rtsp://(.*)@10\.0\.0\.5/ch1", rf"http://\1@{stream}", word)
    return re.sub(r"^(0\.0\.0\.0:)?8080$", r"\g<1>0", word) if re.search("8080$", word) else word


@pytest.fixture(scope="module")
def stream() -> Iterator[str]:
    with mjpeg_server() as server:
        yield server.url.removeprefix("http://")


def assert_written(arguments: list[str], ran: Ran) -> None:
    """Where a command was told to write, there is something."""
    for flag, target in itertools.pairwise(arguments):
        if ran.code == 0 and flag in ("-o", "--output", "--save-overlays", "--save-maps"):
            path = Path(target)
            assert any(path.iterdir()) if path.is_dir() else path.stat().st_size, target


# ---- nothing is left out in silence


def test_every_shell_line_is_run_or_has_a_reason() -> None:
    run = {*program_lines(), *TOKEN_LINES}
    assert [line for line in shell_lines() if line not in run and not reason_not_run(line)] == []


def test_no_reason_and_no_addition_is_stale() -> None:
    lines = list(shell_lines())
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    for pattern in [entry[0] for entry in ADDED]:
        assert any(re.match(pattern, line) for line in program_lines()), pattern
    for pattern in [entry[0] for entry in ENDS]:
        assert any(re.search(pattern, line) for line in program_lines()), pattern
    # Nothing that this project does is excused, but in another environment.
    excused = [line for line in lines if reason_not_run(line) and re.match(rf"({'|'.join(PROGRAMS)}) ", line)]
    assert excused == []


def test_every_block_is_taken_by_a_test() -> None:
    found = collections.Counter(
        (page.name, language) for page in PAGES for language, _ in all_blocks(page) if language != "sh"
    )
    assert found == {block: count for block, (count, _) in TAKEN_BY.items()}


# ---- blocks of other languages

TOKEN_LINES = [line for line in shell_lines() if line.startswith("export PCRUN_TOKEN=")]


@pytest.mark.parametrize("line", TOKEN_LINES)
def test_the_token_is_long_enough(line: str) -> None:
    command = ["bash", "-euc", f"{line}; printenv PCRUN_TOKEN"]
    assert len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()) >= 16


def test_the_python_of_the_readme_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = blocks(ROOT / "README.md", "python")
    exec(compile(source, "README.md", "exec"), {"image_bgr": cv2.imread("bad/000.png")})
    expected = AnomalyDetector.load("bottle.pcbundle")(cv2.imread("bad/000.png"))
    printed = capsys.readouterr().out
    assert printed == f"{expected.is_anomalous} {expected.image_score} {expected.regions}\n"


def test_the_result_line_of_the_readme_has_the_fields_of_a_real_one(tiny_bundle: Path) -> None:
    (block,) = blocks(ROOT / "README.md", "json")
    shown = json.loads(block)
    image = cv2.imread(str(tiny_bundle / "samples/001.png"))
    real = result_record(Frame("p.png", 0, image, None, 1.0), AnomalyDetector.load(tiny_bundle)(image))
    assert list(shown) == list(real)
    assert list(shown["timings_ms"]) == list(real["timings_ms"])
    assert list(shown["regions"][0]) == list(real["regions"][0])


def test_the_event_of_drift_has_the_facts_of_a_real_one(tiny_bundle: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "outputs.md", "json")
    detector, watch = AnomalyDetector.load(tiny_bundle), DriftWatch(20)
    white = np.full((32, 48, 3), 255, np.uint8)
    events = [event for _ in range(40) for event in watch.update("camera:0", detector, detector(white))]
    assert list(json.loads(block)) == list(event_record(events[0], 0.0))


def test_the_environment_file_of_a_service_is_one() -> None:
    (block,) = blocks(ROOT / "docs" / "deploy.md", "ini")
    values = dict(line.split("=", 1) for line in block.splitlines())
    assert set(values) == {"PCRUN_BUNDLE", "PCRUN_ARGS", "CAM_USER", "CAM_PASSWORD"}
    named = set(re.findall(r"\$\{(\w+)\}", values["PCRUN_ARGS"]))
    assert named <= set(values)
    command = importlib.import_module("pcrun.cli").cli
    command.make_context("pcrun", ["--bundle", values["PCRUN_BUNDLE"], *values["PCRUN_ARGS"].split()])


@pytest.mark.parametrize("name, number", [("images.csv", 1), ("images.jsonl", 2)])
def test_the_lists_of_the_datasets_page_are_read(name: str, number: int, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8").partition("## `list`")[2]
    listed = re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[number]
    (tmp_path / name).write_text(listed, encoding="utf-8")
    for image in re.findall(r"[\w/]+\.png", listed):
        (tmp_path / image).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / image), np.full((16, 16, 3), int(image[-5:-4] == "2") * 255, np.uint8))
    found = importlib.import_module("pcexport.datasets").find_dataset(str(tmp_path / name), "auto")
    assert found.layout == "list"
    assert (len(found.normal), len(found.test)) == (1, 1)
