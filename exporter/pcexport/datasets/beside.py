"""Folders where every image has its mask beside it, and that mask is the label: both Kolektor data sets."""

from pathlib import Path

from pcexport.datasets.files import images_in, refs, require_none
from pcexport.datasets.types import TestImage

DEFECT = "defect"
# Theirs are drawn with any value but 0.
_MARKED_ABOVE = 0


def is_mask(path: Path, ending: str) -> bool:
    """Whether a file is a mask by its name: STEM + ending."""
    return path.stem.endswith(ending)


def labelled_by_masks(folder: Path, ending: str) -> list[TestImage]:
    """The images of a folder; defective where any pixel of their mask is marked.

    Args:
        folder: images and masks.
        ending: what a mask's stem has after that of its image.

    Raises:
        BuildError: an image without a mask, a mask without an image, or one that cannot be read.
    """
    # numpy and OpenCV: not needed to list the layouts.
    from pcexport.datasets.masks import is_marked

    files = images_in(folder)
    masks = {p.stem.removesuffix(ending): p for p in files if is_mask(p, ending)}
    images = [p for p in files if not is_mask(p, ending)]
    require_none(
        [p.name for p in images if p.stem not in masks],
        f"{{n}} images in {folder} have no mask, the first {{first}}.",
        f"Expected STEM{ending} beside each image STEM, empty for a normal one; copy the masks.",
    )
    require_none(
        sorted(masks[stem].name for stem in masks.keys() - {p.stem for p in images}),
        f"{{n}} masks in {folder} belong to no image, the first {{first}}.",
        f"Expected an image STEM beside each STEM{ending}; copy the images, or remove the masks.",
    )
    found = []
    for image in images:
        own = refs([masks[image.stem]])
        if is_marked(own[0], _MARKED_ABOVE):
            found.append(TestImage(image, DEFECT, own, mask_above=_MARKED_ABOVE))
        else:
            found.append(TestImage(image, None))
    return found
