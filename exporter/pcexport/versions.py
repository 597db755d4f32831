"""Versions of the installed packages that shape a bundle's bytes."""

import importlib.metadata
import platform

# Those that trace a network; other builds do not depend on them.
TRACING = ("onnxscript", "torch", "torchvision", "timm")
_VERSIONED = ("numpy", "hnswlib", "onnx", "scipy")
_VERSIONED_ALTERNATIVES = (
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    ("onnxruntime", "onnxruntime-gpu"),
)


def installed_versions(*used: str) -> dict[str, str]:
    """Name and version of every package that shapes a bundle and is installed, Python included.

    Args:
        used: further packages that this build used.
    """
    found: dict[str, str | None] = {
        "patchcore-edge": _version("patchcore-edge"),
        "python": platform.python_version(),
    }
    for names in (*((name,) for name in (*_VERSIONED, *used)), *_VERSIONED_ALTERNATIVES):
        for name in names:
            found[name] = _version(name)
    return {name: version for name, version in found.items() if version is not None}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
