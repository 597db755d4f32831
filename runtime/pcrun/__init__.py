"""PatchCore Edge runtime: loads a bundle and gives a verdict on images. No torch, ever.

from pcrun import AnomalyDetector
detector = AnomalyDetector.load("bottle.pcbundle")
result = detector(image_bgr)  # (height, width, 3) uint8, BGR as OpenCV reads it
"""

from typing import TYPE_CHECKING, Any

from pcrun._version import __version__
from pcrun.errors import BackendError, BundleError, PcError, SinkError, SourceError

if TYPE_CHECKING:
    from pcrun.bundle.bundle import Bundle
    from pcrun.detector import AnomalyDetector
    from pcrun.result import AnomalyResult

__all__ = [
    "AnomalyDetector",
    "AnomalyResult",
    "BackendError",
    "Bundle",
    "BundleError",
    "PcError",
    "SinkError",
    "SourceError",
    "__version__",
]

# Loaded on first use, so that `pcrun --version` and `--help` stay free of numpy and OpenCV.
_LAZY = {
    "AnomalyDetector": "pcrun.detector",
    "AnomalyResult": "pcrun.result",
    "Bundle": "pcrun.bundle.bundle",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pcrun' has no attribute {name!r}")
