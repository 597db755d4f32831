"""`pcrun doctor`: what this machine can and cannot do, and what to do about it.

Whatever loads native code runs in a process of its own: a library compiled for another processor ends its
process without a word, and here that is a finding.
"""

import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pcrun.backends.session import PROVIDERS
from pcrun.commands.support import print_json
from pcrun.machine.facts import RUNTIME_PACKAGES, cpu_model, gpu_model, versions
from pcrun.machine.threads import available_cores

OK, NOTE, PROBLEM = "ok", "note", "problem"
EXIT_PROBLEM = 1
_LIMIT_S = 120
_MARK = "pcrun-doctor "
# What decides the speed of 8-bit and 16-bit arithmetic.
_CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm",
)  # fmt: skip
_MAX_CAMERAS = 10


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: for example "onnxruntime".
        state: "ok", "note" (works, but something is worth knowing) or "problem".
        text: the fact.
        fix: what to do about it; empty where nothing is to be done.
        facts: the same for machines.
    """

    topic: str
    state: str
    text: str
    fix: str
    facts: dict[str, Any]


def doctor(bundle: Path | None, *, as_json: bool) -> int:
    """Look at everything and print it; returns the exit code: 1 where there is a problem."""
    findings = []
    for finding in examine(bundle):
        findings.append(finding)
        if not as_json:
            print(_line(finding), flush=True)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    return EXIT_PROBLEM if any(finding.state == PROBLEM for finding in findings) else 0


def examine(bundle: Path | None) -> Iterator[Finding]:
    """All findings, one after the other.

    Args:
        bundle: also opened, replayed and timed; None leaves that out.
    """
    yield _python()
    yield _processor()
    yield from _onnxruntime()
    yield _openvino()
    yield _opencv()
    yield _hnswlib()
    yield _cameras()
    if bundle is not None:
        yield _bundle(bundle)


def _python() -> Finding:
    facts = {"python": platform.python_version(), "platform": platform.platform(terse=True), **versions()}
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return Finding("software", OK, f"Python {facts['python']}, {facts['platform']}; {packages}", "", facts)


def _processor() -> Finding:
    features = _cpu_features()
    facts = {"cpu": cpu_model(), "gpu": gpu_model(), "cores": available_cores(), "features": features}
    text = f"{facts['cpu']}, {facts['cores']} cores"
    if features is not None:
        text += f" ({', '.join(features) or 'no vector features known here'})"
    text += f"; GPU: {facts['gpu'] or 'none found'}"
    return Finding("processor", OK, text, "", facts)


def _onnxruntime() -> Iterator[Finding]:
    installed = [n for n in RUNTIME_PACKAGES if n.startswith("onnxruntime") and _version(n)]
    found, problem = _in_process(
        "from pcrun.backends.session import import_onnxruntime; o = import_onnxruntime(); "
        "give(version=o.__version__, providers=o.get_available_providers())"
    )
    if problem:
        fix = "pip install 'patchcore-edge[cpu]', or [gpu]: exactly one of them"
        yield Finding("onnxruntime", PROBLEM, _fact_and_step(problem)[0], fix, {"installed": installed})
        return
    text = f"{found['version']}, built with {', '.join(found['providers'])}"
    yield Finding("onnxruntime", OK, text, "", found)
    if gpu_model() and PROVIDERS["cuda"].onnxruntime_name not in found["providers"]:
        fix = "pip uninstall -y onnxruntime && pip install 'patchcore-edge[gpu]'"
        text = f"there is a GPU ({gpu_model()}), but this onnxruntime cannot use it"
        yield Finding("provider cuda", PROBLEM, text, fix, {})
    for spec in PROVIDERS.values():
        if spec.onnxruntime_name in found["providers"]:
            yield _provider(spec.name)


def _provider(name: str) -> Finding:
    """Whether a session really starts there and computes."""
    code = (
        "import numpy as np; from pcrun.search.graph import GraphSearch; "
        "rows = np.eye(64, dtype=np.float32); "
        f"s = GraphSearch(rows, provider={name!r}, threads=1); d, i = s.nearest(rows + np.float32(0.01)); "
        "give(right=bool((i == np.arange(64)).all()))"
    )
    found, problem = _in_process(code)
    if problem is None and not found["right"]:
        problem = "it computes wrong distances"
    if problem is None:
        return Finding(f"provider {name}", OK, "a session starts and computes", "", {})
    fix = "install onnxruntime again"
    if name != "cpu":
        fix = (
            "install driver and libraries in the versions that this onnxruntime needs, or say --provider cpu"
        )
    return Finding(f"provider {name}", PROBLEM, problem, fix, {})


def _openvino() -> Finding:
    if not _version("openvino"):
        fix = "on Intel and compatible processors: pip install 'patchcore-edge[cpu,openvino]'"
        return Finding("provider openvino", OK, f"not installed ({fix})", "", {"installed": False})
    code = (
        "from pcrun.backends.openvino_session import import_openvino; o = import_openvino(); c = o.Core(); "
        "give(devices=c.available_devices, "
        "capabilities=list(c.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')))"
    )
    found, problem = _in_process(code)
    if problem:
        return Finding("provider openvino", PROBLEM, problem, "pip install --force-reinstall openvino", {})
    bf16 = "BF16" in found["capabilities"]
    text = f"{_version('openvino')}; bfloat16 {'in hardware' if bf16 else 'not in this processor'}"
    return Finding("provider openvino", OK, text, "", {"bf16": bf16, **found})


def _opencv() -> Finding:
    code = (
        "import cv2; r = cv2.videoio_registry; give(version=cv2.__version__, "
        "ffmpeg=bool(r.hasBackend(cv2.CAP_FFMPEG)), gstreamer=bool(r.hasBackend(cv2.CAP_GSTREAMER)), "
        "v4l2=bool(r.hasBackend(cv2.CAP_V4L2)), "
        "window='GUI:                           NONE' not in cv2.getBuildInformation())"
    )
    found, problem = _in_process(code)
    if problem:
        fix = (
            "apt-get install libgl1 libglib2.0-0, or put opencv-python-headless in the place of opencv-python"
        )
        return Finding("opencv", PROBLEM, problem, fix, {})
    has = [name for name in ("ffmpeg", "gstreamer", "v4l2", "window") if found[name]]
    lacks = [name for name in ("ffmpeg", "gstreamer", "v4l2", "window") if not found[name]]
    text = f"{found['version']} with {', '.join(has)}" + (f", without {', '.join(lacks)}" if lacks else "")
    if not found["ffmpeg"]:
        fix = "pip install opencv-python, which has FFmpeg"
        return Finding("opencv", PROBLEM, f"{text}: no videos and no network streams", fix, found)
    return Finding("opencv", OK, text, "", found)


def _hnswlib() -> Finding:
    if not _version("hnswlib"):
        text = "not installed: large memory banks are searched by other means, slower, with the same verdicts"
        return Finding("hnswlib", NOTE, text, "pip install hnswlib (needs a C++ compiler and Python.h)", {})
    code = "import hnswlib; give(file=hnswlib.__file__)"
    found, problem = _in_process(code)
    if problem:
        fix = "HNSWLIB_NO_NATIVE=1 pip install --no-cache-dir --force-reinstall --no-binary hnswlib hnswlib"
        return Finding("hnswlib", PROBLEM, f"{problem}; it may be compiled for another processor", fix, {})
    # The names of its distance functions tell for which instructions it was compiled.
    binary = Path(found["file"]).read_bytes()
    native = next((name for name in ("AVX512", "AVX") if f"SIMD16Ext{name}".encode() in binary), None)
    facts = {"version": _version("hnswlib"), "compiled_for": native or "any processor"}
    text = f"{_version('hnswlib')}, compiled for {native or 'any processor of this kind'}"
    if native:
        text += ": do not copy it to an older processor"
    return Finding("hnswlib", OK, text, "", facts)


def _cameras() -> Finding:
    if sys.platform == "linux" and not list(Path("/dev").glob("video*")):
        return Finding("cameras", OK, "none (no /dev/video*)", "", {"cameras": []})
    code = (
        "import cv2\ncameras = []\n"
        f"for n in range({_MAX_CAMERAS}):\n"
        "    c = cv2.VideoCapture(n)\n    ok, f = c.read() if c.isOpened() else (False, None)\n"
        "    if ok: cameras.append([n, f.shape[1], f.shape[0]])\n    c.release()\ngive(cameras=cameras)"
    )
    found, problem = _in_process(code)
    if problem:
        return Finding("cameras", PROBLEM, problem, "unplug cameras one by one to find which one it is", {})
    listed = ", ".join(f"{n} ({width}x{height} px)" for n, width, height in found["cameras"])
    if listed:
        return Finding("cameras", OK, listed, "", found)
    fix = "close other programs that use it, and add the user to the group video"
    devices = [str(path) for path in sorted(Path("/dev").glob("video*"))]
    if devices:
        return Finding("cameras", PROBLEM, f"{', '.join(devices)} give no frame", fix, {"cameras": []})
    return Finding("cameras", OK, "none", "", {"cameras": []})


def _bundle(path: Path) -> Finding:
    code = (
        "import contextlib, io, json, pathlib, time; from pcrun.commands.selftest import selftest\n"
        "out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out):\n"
        f"    selftest(pathlib.Path({str(path)!r}), provider='auto', precision=None, threads=0, "
        "no_profile=False, as_json=True)\n"
        "give(report=json.loads(out.getvalue()))"
    )
    started = time.perf_counter()
    found, problem = _in_process(code)
    seconds = round(time.perf_counter() - started, 2)
    if problem:
        fact, step = _fact_and_step(problem)
        return Finding("bundle", PROBLEM, fact, step, {})
    report = found["report"]
    facts = {"seconds": seconds, **{key: report[key] for key in ("provider", "profile", "passed")}}
    text = f"{path}: all golden samples replayed {seconds} s after the start, on {report['provider']}"
    if not report["passed"]:
        fix = f"pcrun selftest --bundle {shlex.quote(str(path))} shows them; try --provider cpu"
        return Finding("bundle", PROBLEM, f"{path}: scores differ from the build's", fix, facts)
    if not report["profile"]:
        fix = f"pcrun tune --bundle {shlex.quote(str(path))}"
        return Finding("bundle", NOTE, f"{text}; no device profile", fix, facts)
    return Finding("bundle", OK, text, "", facts)


def _in_process(code: str) -> tuple[dict[str, Any], str | None]:
    """Run code in a process of its own; what it gives, or the problem in one line."""
    preamble = (
        "import json, os\nos.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')\n"
        f"def give(**facts): print({_MARK!r} + json.dumps(facts))\n"
    )
    command = [sys.executable, "-c", preamble + code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {}, f"no answer within {_LIMIT_S} s"
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            facts: dict[str, Any] = json.loads(line[len(_MARK) :])
            return facts, None
    if done.returncode < 0:
        return {}, f"the process died of signal {-done.returncode}"
    return {}, _last_error(done.stderr) or f"the process ended with code {done.returncode}"


def _last_error(stderr: str) -> str:
    """The message of the last exception in a trace, in one line."""
    lines = stderr.strip().splitlines()
    starts = [n for n, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception): ", line)]
    if not starts:
        return lines[-1] if lines else ""
    return " ".join(line.strip() for line in lines[starts[-1] :]).split(": ", 1)[1]


def _fact_and_step(problem: str) -> tuple[str, str]:
    """An error of ours ends with what to do about it; of any other the text says nothing of that."""
    fact, _, step = problem.rpartition(". ")
    return (f"{fact}.", step) if fact else (problem, "copy the bundle again, or build it again")


def _cpu_features() -> list[str] | None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return None
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.split(":", 1)[1].split())
            return [feature for feature in _CPU_FEATURES if feature in flags]
    return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _line(finding: Finding) -> str:
    mark = {OK: "ok     ", NOTE: "note   ", PROBLEM: "PROBLEM"}[finding.state]
    line = f"{mark} {finding.topic:<18} {finding.text}"
    return line + (f"\n{'':<27}-> {finding.fix}" if finding.fix else "")
