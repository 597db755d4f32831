"""Words as people write them, in messages of all three programs."""


def plural(number: int, noun: str) -> str:
    """The noun as it stands behind a number: 1 image, 0 or 2 images."""
    return noun if number == 1 else f"{noun}s"
