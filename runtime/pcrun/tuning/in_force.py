"""What a detector really runs with, for reports."""

from typing import Any

from pcrun.detector import AnomalyDetector


def settings_in_force(detector: AnomalyDetector) -> dict[str, Any]:
    """Plain types; what only a detector loaded from a bundle has is left out where it was not."""
    settings = detector.settings
    return {
        "provider": detector.provider,
        "precision": detector.precision,
        "search": detector.search,
        "exactness": detector.exactness,
        **({"ef": settings.ef, "threads": settings.threads, "search_threads": settings.search_threads,
            "spinning": settings.spinning} if settings else {}),
        "device_profile": detector.profile is not None,
    }  # fmt: skip
