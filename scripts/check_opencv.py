"""Make `import cv2` work in the environment of the Python that runs this (the Makefile, after installing).

The opencv-python wheel needs libGL.so.1 and libglib2.0, which a bare container lacks. The headless wheel of
the same version needs neither; what it cannot do is open windows (cv2.imshow).
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys

APT_LINE = "sudo apt-get install libgl1 libglib2.0-0"
MISSING_LIBRARY = re.compile(r"ImportError: (\S+): cannot open shared object file")


def main() -> int:
    error = cv2_import_error()
    if not error:
        return 0
    missing = MISSING_LIBRARY.search(error)
    if missing is None:
        say(error)
        say("cv2 cannot be imported, for the reason above; it is not a missing system library.")
        return 1

    version = opencv_version()
    say(
        f"opencv-python {version} cannot be imported because this machine has no {missing[1]}; "
        f"replacing it by opencv-python-headless {version} in {sys.prefix} "
        f"(to keep opencv-python: {APT_LINE}, and install again)."
    )
    if replace_by_headless(version) and not cv2_import_error():
        return 0
    say(f"opencv-python-headless {version} does not work here either. On Debian or Ubuntu: {APT_LINE}")
    return 1


def cv2_import_error() -> str:
    """What `import cv2` prints when it fails in a fresh interpreter; empty when it works."""
    run = subprocess.run([sys.executable, "-c", "import cv2"], capture_output=True, text=True, check=False)
    return run.stderr.strip() or f"exit status {run.returncode}" if run.returncode else ""


def opencv_version() -> str:
    """Version of the installed wheel; of the headless one where an earlier run has replaced it."""
    try:
        return importlib.metadata.version("opencv-python")
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version("opencv-python-headless")


def replace_by_headless(version: str) -> bool:
    """Both wheels own the folder cv2/, so both go before one comes back."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels = ["opencv-python", "opencv-python-headless"]
    subprocess.run([*pip, "uninstall", "-y", *wheels], stderr=subprocess.DEVNULL, check=False)
    install = [*pip, "install", "--no-deps", f"opencv-python-headless=={version}"]
    return subprocess.run(install, check=False).returncode == 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
