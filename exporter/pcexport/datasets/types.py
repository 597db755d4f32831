"""What a data set is: images, their labels and masks, and what reads a folder layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# x, y, width, height in pixels of the whole image.
Tile = tuple[int, int, int, int]

# Above half of white. Masks are often drawn with grey edges, and some hold faint noise.
MARKED_ABOVE = 127


@dataclass(frozen=True)
class ImageRef:
    """Where the pixels of one image are.

    Attributes:
        path: an image file, or a video or `.npy` file with frames.
        tile: part of it as (x, y, width, height) in pixels; None for all of it.
        frame: which frame of the file, from 0; None for a file that holds one image.
    """

    path: Path
    tile: Tile | None = None
    frame: int | None = None

    @property
    def part(self) -> str:
        """What follows the file's name where it is only a part, as in W3C media fragments; may be empty."""
        parts = []
        if self.frame is not None:
            parts.append(f"frame={self.frame}")
        if self.tile is not None:
            parts.append("xywh=" + ",".join(map(str, self.tile)))
        return "#" + "&".join(parts) if parts else ""

    @property
    def name(self) -> str:
        """The file's own name, with the part."""
        return self.path.name + self.part

    def __str__(self) -> str:
        return f"{self.path}{self.part}"


@dataclass(frozen=True)
class TestImage:
    """A labelled image.

    Attributes:
        path, tile, frame: where its pixels are, see `ImageRef`.
        defect: the class of its defect; None for a normal image.
        masks: what marks its defect, where that was drawn; all of them together count.
        mask_above: pixels of a mask above this 8-bit value are marked.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    path: Path
    defect: str | None
    masks: tuple[ImageRef, ...] = ()
    tile: Tile | None = None
    frame: int | None = None
    mask_above: int = MARKED_ABOVE

    @property
    def is_defective(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect is not None

    @property
    def ref(self) -> ImageRef:
        """Where its pixels are."""
        return ImageRef(self.path, self.tile, self.frame)

    @property
    def name(self) -> str:
        """See `ImageRef.name`."""
        return self.ref.name


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed order.

    Attributes:
        name: the folder's own name.
        layout: which layout it was read as.
        root: names are reported relative to it.
        normal: images to build from.
        test: labelled images, possibly none.
        remarks: what a person should know of images or masks that do not count.
    """

    name: str
    layout: str
    root: Path
    normal: tuple[ImageRef, ...]
    test: tuple[TestImage, ...]
    remarks: tuple[str, ...] = ()


class Layout(Protocol):
    """One way in which data sets are laid out in folders.

    Attributes:
        name: as `--layout` takes it and a bundle records it.
        title: whose data sets look like this.
        expects: the folders in a few lines, for people.
        normals: where the normal images are, for errors.
    """

    name: str
    title: str
    expects: str
    normals: str

    def matches(self, root: Path) -> bool:
        """Whether a folder looks like this layout; opens no image."""

    def read(self, root: Path) -> Dataset:
        """Find all images, in a fixed order.

        Raises:
            BuildError: images, masks and labels do not fit together.
        """
