"""Facts about this machine and its software: what a measurement or a device profile is valid for."""

import importlib.metadata
import os
import platform
from pathlib import Path

from pcrun.machine.threads import available_cores

# What can change the speed or the arithmetic of the runtime.
RUNTIME_PACKAGES = (
    "patchcore-edge",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "hnswlib",
)


def machine_facts() -> dict[str, object]:
    """CPU, GPU, cores this process may use, memory, platform."""
    return {
        "cpu": cpu_model(),
        "gpu": gpu_model(),
        "cores": available_cores(),
        "memory_gib": _memory_gib(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def versions(packages: tuple[str, ...] = RUNTIME_PACKAGES) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name, as far as the platform tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def gpu_model() -> str | None:
    """The NVIDIA GPU's name from its driver, or the Jetson board's; None where there is neither."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    board = Path("/proc/device-tree/model")
    if board.is_file():
        name = board.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        return name if "jetson" in name.lower() else None
    return None


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
