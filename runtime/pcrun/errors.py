"""Errors, few, named by who must act on them.

Every message is: the fact, then what was expected, then what to do next.
"""


class PcError(Exception):
    """Base class of every error this project raises for a person to read."""


class BundleError(PcError):
    """The bundle is damaged, incomplete, newer than this runtime, or its parts do not belong together."""


class BackendError(PcError):
    """The machine cannot run what was asked: no onnxruntime, a missing provider, an unusable library."""


class SourceError(PcError):
    """Images, a video or a camera cannot be read."""


class SinkError(PcError):
    """A result cannot be written where it was asked to go."""
