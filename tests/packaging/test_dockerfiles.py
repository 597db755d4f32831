"""The Dockerfiles as text: pinned, without root, and nothing copied that is not there."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "packaging").glob("Dockerfile.*"))
KNOWN = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "ARG", "STOPSIGNAL", "ENTRYPOINT", "CMD"}


def instructions(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line.strip()]


def test_there_is_one_for_each_kind_of_device() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.jetson"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
class TestDockerfile:
    def test_instructions_are_known(self, path: Path) -> None:
        assert {name for name, _ in instructions(path)} <= KNOWN

    def test_bases_are_pinned(self, path: Path) -> None:
        for name, rest in instructions(path):
            if name == "FROM":
                image = rest.split()[0]
                assert re.search(r":\w*\d+\.\d+", image) and not image.endswith("latest")

    def test_packages_are_pinned(self, path: Path) -> None:
        for name, rest in instructions(path):
            for command in rest.split("&&") if name == "RUN" else []:
                if " install " in command and "/pip " in command and "-c constraints.txt" not in command:
                    packages = [
                        word for word in shlex.split(command.split(" install ", 1)[1]) if word[0] != "-"
                    ]
                    loose = [p for p in packages if not re.search(r"[=<]\d|^\./|^\.$", p)]
                    assert loose == [] or "--no-deps" in command

    def test_it_does_not_run_as_root(self, path: Path) -> None:
        names = [name for name, _ in instructions(path)]
        assert "USER" in names and names.index("USER") < names.index("ENTRYPOINT")
        assert names[::-1].index("USER") < names[::-1].index("FROM")
        assert not any(name == "USER" and rest.startswith("root") for name, rest in instructions(path))

    def test_what_is_copied_exists(self, path: Path) -> None:
        for name, rest in instructions(path):
            if name == "COPY" and not rest.startswith("--from"):
                for source in rest.split()[:-1]:
                    assert source.startswith("${") or (ROOT / source).exists(), source

    def test_lists_of_packages_are_not_left_behind(self, path: Path) -> None:
        for name, rest in instructions(path):
            if name == "RUN" and "apt-get install" in rest:
                assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists" in rest

    def test_json_arrays_for_entry_points(self, path: Path) -> None:
        for name, rest in instructions(path):
            if name in ("ENTRYPOINT", "CMD"):
                assert rest.startswith("[") and rest.endswith("]")
