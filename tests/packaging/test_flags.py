"""Every flag of every command is run, by a few real calls a command, each in a folder as a user has it."""

from __future__ import annotations

import contextlib
import http.server
import importlib
import io
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest

from pcrun.bundle.bundle import Bundle
from tests.packaging.commands import PROGRAMS, command_tree, flags_of
from tests.packaging.flag_runs import RUNS, STUDENT, TRACED, Run
from tests.packaging.workplace import IMAGE_HW, Ran, one_thread, run_program

TREE = command_tree()


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    """Takes every POST; `address` and the `bodies` that came."""
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield SimpleNamespace(address=f"http://127.0.0.1:{listening.server_port}", bodies=bodies)
        listening.shutdown()


@pytest.fixture
def call(place: Path, server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], Ran]:
    """Runs in a workplace with what only some runs need."""
    (place / "taken.zip").write_bytes(b"old")
    (place / "taken.onnx").write_bytes(b"old")
    (place / "strict.yaml").write_text("strict: true\nallow_flips: true\nevaluate: true\n", encoding="utf-8")
    (place / "broken").mkdir()
    (place / "broken" / "broken.png").write_bytes(b"no image")
    (place / "good.txt").write_text(
        "".join(f"{p}\n" for p in sorted(Path("good").iterdir())), encoding="utf-8"
    )
    (place / "figures").mkdir()
    begin, end = (getattr(importlib.import_module("pcbench.readme"), name) for name in ("BEGIN", "END"))
    (place / "page.md").write_text(f"{begin}\nold\n{end}\n", encoding="utf-8")
    (place / "weights.pth").write_bytes(b"of another program")
    np.save(place / "rows.npy", np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32))
    frames = io.BytesIO(bytes(2 * 3 * IMAGE_HW[0] * IMAGE_HW[1]))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(frames))

    def run(wanted: Run) -> Ran:
        if wanted.code == 2 and "strict" in wanted.arguments:
            broken = place / "parts" / "bottle" / "train" / "good" / "broken.png"
            broken.write_bytes(b"no image")
        program, *command = wanted.command.split()
        arguments = [word.format(server=server.address) for word in wanted.words]
        with one_thread() if wanted.needs_torch else contextlib.nullcontext():
            return run_program(program, [*command, *arguments])

    return run


@pytest.mark.parametrize("name", [name for name, command in TREE.items() if flags_of(command)])
def test_the_runs_of_a_command_have_all_of_its_flags(name: str) -> None:
    used: set[str] = set().union(*(run.flags for run in RUNS if run.command == name))
    if name == "pcbench build":
        used &= {"--name", "-o", "--output"}  # the others are those of the build
    assert with_short_names(used) == flags_of(TREE[name])


def with_short_names(flags: set[str]) -> set[str]:
    """`-o` and `--output` are one option."""
    return flags | ({"-o", "--output"} if flags & {"-o", "--output"} else set())


def run_names() -> list[str]:
    return [f"{run.command} {n}" for n, run in enumerate(RUNS)]


@pytest.mark.parametrize("run", RUNS, ids=run_names())
def test_a_command_does_what_its_flags_ask_for(
    run: Run, call: Callable[[Run], Ran], place: Path, server: SimpleNamespace
) -> None:
    ran = call(run)
    assert ran.code == run.code, ran.err
    assert "Traceback" not in ran.err
    for pattern in run.says:
        assert re.search(pattern, ran.out + ran.err), f"{pattern!r} is not in\n{ran.out}\n{ran.err}"
    for path in run.writes:
        assert any((place / path).iterdir()) if (place / path).is_dir() else (place / path).stat().st_size, (
            path
        )
    for path in run.absent:
        assert not (place / path).exists(), path
    if run in (TRACED, STUDENT):
        assert_recorded(run, place / "new.pcbundle")
    if "--json" in run.flags and run.code < 2:
        json.loads(ran.out)
    if "--webhook-all" in run.flags:
        assert {body["verdict"] for body in server.bodies} == {"normal", "anomalous"}


def assert_recorded(run: Run, bundle: Path) -> None:
    """The bundle of a build names the value of each of its flags."""
    recorded = Bundle.load(bundle).manifest.source.config
    told = {
        flag[2:].replace("-", "_"): value
        for flag, value in itertools.pairwise(run.words)
        if flag.startswith("--") and not value.startswith("--")
    }
    told = {key: value for key, value in told.items() if key in recorded}
    assert len(told) > 12
    for key, value in told.items():
        shown = recorded[key]
        shown = ",".join(shown) if isinstance(shown, list) else shown
        expected = Path(value).name if key == "backbone" else value
        assert str(shown) == expected or float(shown) == float(expected), key


# ---- what all commands have


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", TREE)
def test_help(name: str, flag: str) -> None:
    program, *command = name.split()
    ran = run_program(program, [*command, flag])
    assert ran.code == 0 and ran.err == ""
    assert ran.out.startswith(f"Usage: {name} ")
    for option in TREE[name].params:
        assert not isinstance(option, click.Option) or option.opts[-1] in ran.out


@pytest.mark.parametrize("program", PROGRAMS)
def test_version(program: str) -> None:
    from pcrun._version import __version__

    assert run_program(program, ["--version"]).out == f"{program}, version {__version__}\n"


FAILING = {
    "pcexport": "inspect absent.pcbundle",
    "pcrun": "selftest --bundle absent.pcbundle",
    "pcbench": "search --bundle absent.pcbundle --normal good --name x -o x.json",
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("first", [True, False])
def test_debug_shows_the_trace_wherever_it_stands(program: str, first: bool, place: Path) -> None:
    arguments = FAILING[program].split()
    ran = run_program(program, ["--debug", *arguments] if first else [*arguments, "--debug"])
    assert ran.code == 2 and "Traceback" in ran.err
    quiet = run_program(program, arguments)
    assert quiet.code == 2 and quiet.err.startswith(f"{program}: error: ") and quiet.err.count("\n") == 1
