"""Reading masks: which pixels of a test image show its defect."""

from pathlib import Path

import numpy as np

from pcexport.datasets.types import MARKED_ABOVE, ImageRef, TestImage
from pcexport.errors import BuildError
from pcrun.errors import SourceError
from pcrun.images.image_io import read_image
from pcrun.types import AnyArray, BoolArray, UInt8Array


def load_mask(image: TestImage, image_hw: tuple[int, int]) -> BoolArray | None:
    """The marked pixels of a test image: those of any of its masks.

    Args:
        image: whose masks.
        image_hw: its height and width in pixels; those of the tile, where it is one.

    Returns:
        (height, width) bool, or None where no mask was drawn.

    Raises:
        BuildError: a mask cannot be read, has another size than its image, or contradicts the label: nothing
            is marked in a defective image, or something in a normal one.
    """
    if not image.masks:
        return None
    marked = np.zeros(image_hw, bool)
    largest = 0
    for mask in image.masks:
        values = read_mask(mask)
        if values.shape != image_hw:
            raise BuildError(
                f"{mask} has {_size(values.shape)} px, its image {image.name} {_size(image_hw)}. Expected "
                "a mask of the image's size; draw or scale it again."
            )
        largest = max(largest, int(values.max()))
        marked |= values > image.mask_above
    if image.is_defective and not marked.any():
        raise BuildError(
            f"{image.masks[0]} marks nothing, but its image {image.name} is labelled {image.defect!r}. "
            f"Expected pixels above {image.mask_above}, the largest is {largest}; correct the mask, or "
            "remove it: an image may be without."
        )
    if marked.any() and not image.is_defective:
        raise BuildError(
            f"{image.masks[0]} marks {int(marked.sum())} pixels, but its image {image.name} is labelled "
            "normal. Expected an empty mask or none; correct the label or the mask."
        )
    return marked


def read_mask(mask: ImageRef) -> UInt8Array:
    """The values of a mask file, or of its tile or frame.

    Returns:
        (height, width) uint8; the largest channel of a coloured mask, 255 for all that is not 0 in a `.npy`.

    Raises:
        BuildError: it cannot be read, or has no such tile or frame.
    """
    if mask.path.suffix.lower() == ".npy":
        values = _npy_frame(mask)
    else:
        try:
            values = read_image(mask.path).max(axis=2)
        except SourceError as error:
            raise BuildError(f"The mask {error}") from error
    if mask.tile is None:
        return values
    x, y, width, height = mask.tile
    part = values[y : y + height, x : x + width]
    if part.shape != (height, width):
        raise BuildError(
            f"{mask.path} has {_size(values.shape)} px, which does not hold the tile {mask.tile} "
            "(x, y, width, height). Expected a mask of the whole image's size; draw it again."
        )
    return part


def marked_by(masks: tuple[ImageRef, ...], above: int = MARKED_ABOVE) -> BoolArray | None:
    """(height, width) bool, the pixels that any of these masks of one size marks; None without masks."""
    union: BoolArray | None = None
    for mask in masks:
        marked = read_mask(mask) > above
        union = marked if union is None else union | marked
    return union


def is_marked(mask: ImageRef, above: int = MARKED_ABOVE) -> bool:
    """Whether any pixel of a mask is marked; BuildError where it cannot be read."""
    return bool((read_mask(mask) > above).any())


def read_npy(path: Path) -> AnyArray:
    """Map an array of labels from disk; frames are read when they are looked at.

    Returns:
        The array of numbers or truth values, read-only.

    Raises:
        BuildError: it is not such an array. Pickled objects are never loaded.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BuildError(
            f"{path} cannot be read as an array ({error}). Expected a .npy file of numbers or truth values; "
            "save it again with numpy.save."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise BuildError(
            f"{path} holds {getattr(array, 'dtype', 'several arrays')}. Expected a .npy file of numbers or "
            "truth values; save it again with numpy.save."
        )
    return array


def _npy_frame(mask: ImageRef) -> UInt8Array:
    array = read_npy(mask.path)
    dimensions = 2 if mask.frame is None else 3
    if array.ndim != dimensions or (mask.frame is not None and mask.frame >= len(array)):
        wanted = "(height, width)" if mask.frame is None else f"({mask.frame + 1} or more, height, width)"
        raise BuildError(f"{mask.path} has shape {array.shape}. Expected {wanted}; save it again.")
    values = array if mask.frame is None else array[mask.frame]
    return np.where(np.asarray(values) != 0, np.uint8(255), np.uint8(0))


def _size(hw: tuple[int, ...]) -> str:
    return f"{hw[1]}x{hw[0]}"
