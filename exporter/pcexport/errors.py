"""The exporter's own error, beside those of `pcrun.errors`."""

from pcrun.errors import PcError


class BuildError(PcError):
    """A bundle cannot be built from what was given: an unknown backbone, unusable weights, too few images."""
