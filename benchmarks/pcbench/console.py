"""What commands tell a person while they work."""

import sys


def say(text: str) -> None:
    """A line on standard error, at once."""
    print(f"pcbench: {text}", file=sys.stderr, flush=True)
