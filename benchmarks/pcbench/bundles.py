"""Bundles that must stay as they are while they are measured."""

from pathlib import Path

from pcrun.bundle.bundle import Bundle
from pcrun.errors import BundleError


def open_unchanged(path: str | Path, digest: str) -> Bundle:
    """The bundle, verified.

    Args:
        path: where it is.
        digest: its hash when the measurement began.

    Raises:
        BundleError: it has changed since.
    """
    bundle = Bundle.load(path)
    if bundle.digest != digest:
        raise BundleError(f"{path} has changed since the measurement began. Start it again.")
    return bundle
