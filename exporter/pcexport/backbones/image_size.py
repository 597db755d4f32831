"""Which image sizes a backbone takes."""

from pcexport.errors import BuildError


def check_image_multiple(name: str, image_hw: tuple[int, int], multiple_hw: tuple[int, int]) -> None:
    """Refuse an image size that the backbone's patches do not tile.

    Raises:
        BuildError: height or width is not a multiple; the message proposes the sizes around it.
    """
    if all(size % m == 0 for size, m in zip(image_hw, multiple_hw, strict=True)):
        return
    below = [max(size // m, 1) * m for size, m in zip(image_hw, multiple_hw, strict=True)]
    above = [-(-size // m) * m for size, m in zip(image_hw, multiple_hw, strict=True)]
    wanted = (
        str(multiple_hw[0]) if multiple_hw[0] == multiple_hw[1] else f"{multiple_hw[0]} and {multiple_hw[1]}"
    )
    raise BuildError(
        f"image size {image_hw[0]}x{image_hw[1]} (height x width) does not fit {name}: expected multiples of "
        f"{wanted} pixels. Use {below[0]}x{below[1]} or {above[0]}x{above[1]}."
    )
