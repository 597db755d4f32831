"""Addresses with credentials: filled in from the environment, and never shown."""

import os
import re

from pcrun.errors import SourceError

# user:password@ after a scheme, anywhere in a text; a password may hold an @ too.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?:@[^/\s@]*)*@")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
# Keys in queries that are secrets by their names.
_SECRET_KEYS = re.compile(r"(?i)([?&][\w.-]*(?:password|passwd|pwd|token|key|secret|auth)[^=&\s]*=)[^&\s]+")


def redacted(text: str) -> str:
    """The text without user names, passwords and tokens of the addresses in it."""
    return _SECRET_KEYS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def expanded(address: str) -> str:
    """The address with each `$NAME` or `${NAME}` taken from the environment.

    Raises:
        SourceError: a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise SourceError(
                f"{redacted(address)} names the variable {name}, which is not set. Set it in the environment."
            )
        return os.environ[name]

    return _VARIABLE.sub(value, address)


def is_url(text: str) -> bool:
    """Whether a source looks like the address of a stream."""
    return text.lower().startswith(
        ("rtsp://", "rtsps://", "http://", "https://", "rtmp://", "udp://", "srt://")
    )
