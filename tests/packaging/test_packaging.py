"""What gets installed: the wheel built from this tree by way of its sdist, and the editable install.

The wheel is unpacked into a folder of its own and its console scripts run from there, so that these tests see
the installed files even where the project is also installed editable.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from configparser import ConfigParser
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_ROOTS = ("exporter", "runtime", "benchmarks")
BUILD_FILES = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")
EXTRAS = {"cpu", "gpu", "tensorrt", "openvino", "mqtt", "metrics", "web", "build", "export", "timm", "dev"}
TRACING = {"torch", "torchvision", "onnxscript", "safetensors"}
COMMANDS = ("pcexport", "pcrun", "pcbench")
HEAVY_MODULES = ("cv2", "hnswlib", "numpy", "onnx", "onnxruntime", "openvino", "torch")

LIST_HEAVY_AFTER = """
import sys
sys.argv = [{command!r}, {option!r}]
from {command}.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("heavy:", *sorted(set({heavy!r}) & set(sys.modules)))
"""

LIST_RECIPES = """
from importlib.resources import files
folder = files("pcexport.recipes")
print(folder)
print(*sorted(item.name for item in folder.iterdir() if item.name.endswith(".yaml") and item.read_text()))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads, so that no stale build/ leaks in and nothing is left behind."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in (*SOURCE_ROOTS, "configs"):
        leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc", "results")
        shutil.copytree(ROOT / folder, copy / folder, ignore=leftovers)
    for name in BUILD_FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist, so that a file missing in either is missed here."""
    out = tmp_path_factory.mktemp("dist")
    run_python("-m", "build", "--no-isolation", "--outdir", str(out), str(tree))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return email.message_from_string(dist_info_text(wheel, "METADATA"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder holding nothing but the installed wheel."""
    target = tmp_path_factory.mktemp("site")
    run_python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


def test_wheel_has_no_other_top_level_names(wheel_files: set[str]) -> None:
    top_level = {name.split("/")[0] for name in wheel_files}
    (dist_info,) = (name for name in top_level if name.endswith(".dist-info"))
    assert dist_info.startswith("patchcore_edge-")
    assert top_level - {dist_info} == {"pcexport", "pcrun", "pcbench"}


def test_wheel_holds_every_package(wheel_files: set[str]) -> None:
    expected = {
        init.relative_to(ROOT / root).as_posix()
        for root in SOURCE_ROOTS
        for init in (ROOT / root).rglob("__init__.py")
    }
    assert {"pcexport/__init__.py", "pcrun/__init__.py", "pcbench/__init__.py"} <= expected
    assert expected <= wheel_files


def test_wheel_holds_every_file_of_the_packages(wheel_files: set[str], tree: Path) -> None:
    """A module in a folder without __init__.py, or data with a suffix that package_data does not name."""
    expected = {
        path.relative_to(tree / root).as_posix()
        for root in SOURCE_ROOTS
        for path in (tree / root).glob("pc*/**/*")
        if path.is_file()
    }
    assert expected - wheel_files == set()


def test_wheel_holds_the_recipes(wheel_files: set[str]) -> None:
    recipes = {f"pcexport/recipes/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert recipes, "configs/ holds no recipe"
    assert {name for name in wheel_files if name.endswith(".yaml")} == recipes


def test_wheel_holds_the_license(wheel_files: set[str], metadata: Message) -> None:
    assert any(name.endswith("/LICENSE") for name in wheel_files)
    assert "Apache-2.0" in (metadata["License-Expression"], metadata["License"])


def test_version_is_the_one_in_version_py(metadata: Message) -> None:
    assert metadata["Version"] == source_version()
    assert metadata["Name"] == "patchcore-edge"
    assert metadata["Requires-Python"] == ">=3.10"


def test_base_install_has_neither_torch_nor_onnxruntime(metadata: Message) -> None:
    assert required_names(metadata, extra=None) == {
        "numpy",
        "opencv-python",
        "hnswlib",
        "click",
        "rich",
        "threadpoolctl",
    }


def test_extras_are_the_documented_ones(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS


def test_export_is_build_and_what_traces_a_network(metadata: Message) -> None:
    built = required_names(metadata, "build")
    assert not built & {*TRACING, "timm"} and "onnx" in built
    assert required_names(metadata, "export") == {"patchcore-edge"} | TRACING
    (own,) = (line for line in metadata.get_all("Requires-Dist", []) if line.startswith("patchcore-edge"))
    assert own.startswith("patchcore-edge[build]")


def test_each_onnxruntime_comes_with_its_own_extra(metadata: Message) -> None:
    """Both wheels write the folder onnxruntime/; installing both leaves a mixture."""
    runtimes = {
        extra: {name for name in required_names(metadata, extra) if name.startswith("onnxruntime")}
        for extra in EXTRAS
    }
    expected: dict[str, set[str]] = {extra: set() for extra in EXTRAS}
    expected |= {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}
    assert runtimes == expected


def test_every_requirement_has_a_pin_in_constraints(metadata: Message) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    # TensorRT's version is that of the GPU's driver and of onnxruntime; `make` and CI install none.
    extras = EXTRAS - {"tensorrt"}
    wanted = required_names(metadata, None).union(*(required_names(metadata, extra) for extra in extras))
    assert wanted - pinned == {"patchcore-edge"}  # of `export`, which contains `build`


def test_entry_points(wheel: Path) -> None:
    parser = ConfigParser()
    parser.read_string(dist_info_text(wheel, "entry_points.txt"))
    assert parser.sections() == ["console_scripts"]
    assert dict(parser["console_scripts"]) == {name: f"{name}.cli:main" for name in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_console_script_prints_its_version(command: str, site: Path) -> None:
    assert source_version() in run_installed(site, str(site / "bin" / command), "--version")


@pytest.mark.parametrize("command", COMMANDS)
def test_console_script_prints_help(command: str, site: Path) -> None:
    assert "usage" in run_installed(site, str(site / "bin" / command), "--help").lower()


@pytest.mark.parametrize("option", ["--version", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_version_and_help_import_nothing_heavy(command: str, option: str, site: Path) -> None:
    code = LIST_HEAVY_AFTER.format(command=command, option=option, heavy=HEAVY_MODULES)
    assert run_installed(site, sys.executable, "-c", code).splitlines()[-1].split() == ["heavy:"]


def test_recipes_are_readable_from_an_installed_wheel(site: Path) -> None:
    folder, names = run_installed(site, sys.executable, "-c", LIST_RECIPES).splitlines()
    assert folder == str(site / "pcexport" / "recipes")
    assert names.split() == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def test_recipes_are_readable_from_an_editable_install(
    tree: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkout = tmp_path_factory.mktemp("editable") / "checkout"
    shutil.copytree(tree, checkout)
    pip_options = ["-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path)]
    run_python("-m", "pip", "install", *pip_options, "-e", str(checkout))
    # -S keeps out an editable install of the real checkout; the dependencies come by PYTHONPATH.
    code = f"import site; site.addsitedir({str(tmp_path)!r})\n{LIST_RECIPES}"
    dependencies = os.pathsep.join(sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    output = run([sys.executable, "-S", "-c", code], PYTHONPATH=dependencies, cwd=tmp_path)
    folder, names = output.splitlines()
    assert folder == str(checkout / "configs")
    assert names.split() == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def source_version() -> str:
    text = (ROOT / "runtime/pcrun/_version.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found, text
    return found[1]


def required_names(metadata: Message, extra: str | None) -> set[str]:
    """Lower-case names required by the base install (`None`) or added by one extra."""
    names = set()
    for requirement in metadata.get_all("Requires-Dist", []):
        found = re.match(r"[\w.-]+", requirement)
        marker = re.search(r"extra == ['\"](.+?)['\"]", requirement)
        if found and (marker[1] if marker else None) == extra:
            names.add(found[0].lower())
    return names


def dist_info_text(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (item for item in archive.namelist() if item.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


def run_installed(site: Path, *command: str) -> str:
    """Run a command that sees the installed wheel before any other copy of the packages."""
    return run(list(command), PYTHONPATH=str(site), cwd=site)


def run_python(*arguments: str) -> str:
    return run([sys.executable, *arguments], cwd=ROOT)


def run(command: list[str], *, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
