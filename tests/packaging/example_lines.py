"""The lines of the documentation's shell blocks: which a test cannot run, and what is added to others."""

from __future__ import annotations

import re
from pathlib import Path

from tests.packaging.commands import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "peers" / "README.md",
]

# Lines that a test does not run -> why.
NOT_RUN = {
    r"make (demo|test)": "installs this project and all it needs; tests of this suite build the demo",
    r"pip install .*": "needs a package index; test_packaging looks at what each extra installs",
    r"pip wheel .*": "needs a package index",
    r"python3? -m venv .*": "begins an installation",
    r"\S*/bin/pip install .*": "needs a package index",
    r"sudo .*": "changes the machine",
    r"sudoedit .*": "opens an editor",
    r"journalctl .*": "shows the log of a service until it is interrupted",
    r"ln -sfn \S+ /var/lib/pcrun/\S+": "writes outside of the workplace, where the service has its bundle",
    r"anomalib-env/bin/.*": "needs the environment of another program; the same commands are run elsewhere",
}

# Lines -> what is added to them, and why. Of a flag given twice the last one counts.
ADDED: tuple[tuple[str, str, str], ...] = (
    (r"pcexport build", "--no-tune", "tuning takes longer than the small build itself"),
    (
        r"pcexport distill",
        "--weights untrained --pictures 272 --size 32 --steps 2 --batch 2 --force",
        "it would take hours, and download weights",
    ),
    (r"pcexport calibrate .* 0\.005", "--allow-shortage", "the workplace holds fewer than 199 normal images"),
    (r"pcrun --.*(--camera|rtsp|gstreamer)", "--max-frames 3", "where there is a camera it would never end"),
    (r"pcrun bench", "--duration 0.1 --queries 3 --starts 1", "it would take a minute"),
    (r"pcrun tune", "--frames 6", "it would take longer"),
    (r"pcbench search", "--max-images 6 --no-cold-start", "it would take longer"),
    (r"pcbench embedder", "--max-images 6", "it would take longer"),
    (r"pcbench peers", "--max-images 6 --rounds 2 --peer onnxruntime", "all peers take minutes"),
    (r"pcbench latency", "--duration 0 --queries 3", "it would take minutes"),
    (r"pcbench soak", "--minutes 0.01 --all-normal", "it would take hours, and the bundle is of other parts"),
    (
        r"pcbench coreset",
        "--rows 400 --dim 8 --picks 12 --plain-picks 6 --repeats 1",
        "it would take minutes",
    ),
    (r"pcbench build", "--no-tune", "as for the build itself"),
)

# Lines that end with another exit code than 0 -> the codes, and what is said with an error (2).
ENDS: tuple[tuple[str, set[int], str], ...] = (
    (r"--engine", {2}, r"The engine's header bottle\.engine\.json cannot be read"),
    (r"pcrun compile", {2}, r"tensorrt cannot be imported"),
    (r"rtsp:", {0}, ""),
    (r"gstreamer:", {2}, r"Provider 'cuda' is not in|GStreamer"),
    (r"--camera 0", {0, 2}, r"Camera 0 cannot be opened\. Expected a connected camera"),
    (r"pcrun warmup", {0, 2}, r"tensorrt|TensorRT"),
    (r"--provider cuda", {0, 2}, r"Provider 'cuda' is not in"),
    (r"--fail-on-anomaly", {0, 1}, ""),
    (r"pcrun doctor", {0, 1}, ""),
    (r"--budget-ms", {0, 1}, ""),
)


def shell_lines() -> dict[str, list[str]]:
    """Each line of a shell block, without its comment -> the pages that have it."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                # What differs in the bundle's name alone is one line.
                line = re.sub(r"\s+#.*", "", line).replace("--bundle line3.", "--bundle bottle.").strip()
                found.setdefault(line, []).append(page.name)
    return found


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in all_blocks(page) if found == language]


def all_blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def reason_not_run(line: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.fullmatch(pattern, line)), None)


def program_lines() -> list[str]:
    """Those that call a program of this project and are run."""
    called = re.compile(rf"^(\w+=\S+ )?({'|'.join(PROGRAMS)}) ")
    return [line for line in shell_lines() if called.match(line) and not reason_not_run(line)]
