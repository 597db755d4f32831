"""Builds sdist and wheel, installs the wheel in clean virtual environments, tries each and measures its size.

    python scripts/environments.py                writes benchmarks/results/environments.json
    python scripts/environments.py -o FILE.json   elsewhere

Each environment runs `pcrun --version` and replays the golden samples of a bundle; one that builds, builds a
bundle first. Needs the project installed with its extra dev, a C++ compiler and a package index. Takes about
five minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcbench.machine import machine_facts
from pcbench.results import save_result

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "environments.json"
TITLES = {
    "cpu": "device: runs bundles",
    "cpu,openvino": "device with an Intel CPU",
    "cpu,mqtt,metrics,web": "device with MQTT, Prometheus and the live page",
    "build,cpu": "workstation without PyTorch",
    "export,cpu": "workstation with PyTorch, and the CUDA libraries it brings",
}
# What each environment prints about itself.
ABOUT = """
import importlib.metadata as m, importlib.util as u
names = {d.metadata["Name"] for d in m.distributions()} - {"pip", "setuptools"}
print(len(names), u.find_spec("torch") is not None, sum(n.startswith("onnxruntime") for n in names))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Build, install, try, measure; stops at the first thing that fails."""
    parser = argparse.ArgumentParser(description="Measure the environments that the wheel is installed in.")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    output = parser.parse_args(argv).output
    with tempfile.TemporaryDirectory(prefix="environments-") as folder:
        work = Path(folder)
        dist = build_distributions(work)
        rows = [try_environment(dist["wheel"], extras, work) for extras in TITLES]
        sizes = {f"{name}_bytes": path.stat().st_size for name, path in dist.items()}
    result = {"machine": machine_facts(), "versions": {}, **sizes, "environments": rows}
    save_result(output, "environments", result)
    print(f"written to {output}")
    return 0


def build_distributions(work: Path) -> dict[str, Path]:
    """The sdist of the committed files, and the wheel built from that sdist alone."""
    tree = work / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)
    run(sys.executable, "-m", "build", "--outdir", work / "dist", tree)
    (sdist,) = (work / "dist").glob("*.tar.gz")
    (wheel,) = (work / "dist").glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


def try_environment(wheel: Path, extras: str, work: Path) -> dict[str, Any]:
    """Install the wheel with extras, use it away from the checkout, and return what it takes on the disk."""
    print(f"\n== [{extras}] {TITLES[extras]}", flush=True)
    venv = work / extras.replace(",", "-")
    run(sys.executable, "-m", "venv", venv)
    run(
        venv / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet",
        "-c", ROOT / "constraints.txt", f"{wheel}[{extras}]",
    )  # fmt: skip
    size = disk_use(venv)
    run(venv / "bin" / "python", ROOT / "scripts" / "check_opencv.py")

    away = work / "away" / venv.name
    away.mkdir(parents=True)
    packages, has_torch, runtimes = run(venv / "bin" / "python", "-c", ABOUT, cwd=away).split()
    builds = "build" in extras or "export" in extras
    if (has_torch == "True") != ("export" in extras) or runtimes != "1":
        raise SystemExit(
            f"[{extras}] has {runtimes} onnxruntime, torch: {has_torch}. Expected 1, torch with export."
        )
    run(venv / "bin" / "pcrun", "--version", cwd=away)
    bundle = ROOT / "tests" / "data" / "tiny_schema3.pcbundle"
    if builds:
        run(venv / "bin" / "pcexport", "demo", cwd=away)
        bundle = away / "demo" / "parts.pcbundle"
    if has_torch == "True":
        bundle = away / "resnet18.pcbundle"
        run(
            venv / "bin" / "pcexport", "build", "demo/parts", "-o", bundle, "--backbone", "resnet18",
            "--weights", "untrained", "--no-tune", cwd=away,
        )  # fmt: skip
    run(venv / "bin" / "pcrun", "selftest", "--bundle", bundle, cwd=away)
    shutil.rmtree(venv)  # gigabytes, with PyTorch
    return {"extras": extras, "title": TITLES[extras], "packages": int(packages), "bytes": size}


def disk_use(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command without this checkout on the module path, return its output; stops where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if cwd is not None:
        environment["PCRUN_CACHE"] = str(cwd / "cache")  # device profiles of bundles that go with the folder
    words = [str(word) for word in command]
    process = subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"$ {' '.join(words)}\n{process.stdout[-2000:].rstrip()}", flush=True)
    if process.returncode:
        raise SystemExit(f"{words[0]} ended with exit code {process.returncode}. Expected 0; see above.")
    return process.stdout


if __name__ == "__main__":
    sys.exit(main())
