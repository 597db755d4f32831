"""AITEX: strips of fabric, cut into square tiles."""

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from pcexport.datasets.files import (
    MaskFolder,
    folders_in,
    images_in,
    name_of,
    require_none,
    split_normals,
)
from pcexport.datasets.types import Dataset, ImageRef, TestImage, Tile
from pcexport.errors import BuildError

if TYPE_CHECKING:
    from pcrun.types import BoolArray

TILE_PX = 256
_NORMAL, _DEFECTIVE, _MASKS = "NODefect_images", "Defect_images", "Mask_images"
# NUMBER_DEFECT_FABRIC
_STEM = re.compile(r"\d+_(\d+)_\d+")
# Some strips have two masks, named _mask1 and _mask2.
_MASK_ENDINGS = ("_mask", *(f"_mask{number}" for number in range(1, 10)))


class Aitex:
    """AITEX fabric images (Silvestre-Blanes et al., 2019).

    The set has no split. Every fifth normal strip is for the test, whole strips, so that no fabric next to a
    tile of the build is tested on.
    """

    name = "aitex"
    title = "AITEX"
    expects = """\
NODefect_images/FABRIC/*.png      normal strips, 4096x256, cut into 16 tiles of 256 px;
                                  every fifth strip is for the test
Defect_images/*.png               defective strips; tiles without a marked pixel are normal
Mask_images/STEM_mask.png         their masks; or STEM_mask1.png, STEM_mask2.png: any counts"""
    normals = "NODefect_images/"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return (root / _NORMAL).is_dir()

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        folders = (root / _NORMAL, *folders_in(root / _NORMAL))
        build, held_back = split_normals([strip for folder in folders for strip in images_in(folder)])
        normal = tuple(ImageRef(strip, tile) for strip in build for tile in tiles_of(strip))
        test = [TestImage(strip, None, tile=tile) for strip in held_back for tile in tiles_of(strip)]
        defective, remarks = _defective(root)
        return Dataset(name_of(root), self.name, root, normal, (*test, *defective), remarks)


def tiles_of(strip: Path) -> list[Tile]:
    """The whole square tiles of a strip, row by row; what is left at the right and below is not used.

    Raises:
        BuildError: it is no PNG, or smaller than a tile.
    """
    width, height = _png_size(strip)
    if width < TILE_PX or height < TILE_PX:
        raise BuildError(
            f"{strip} has {width}x{height} px. Expected a strip of 4096x256, at least {TILE_PX} px a side; "
            "copy it again."
        )
    return [
        (x, y, TILE_PX, TILE_PX)
        for y in range(0, height - TILE_PX + 1, TILE_PX)
        for x in range(0, width - TILE_PX + 1, TILE_PX)
    ]


def _defective(root: Path) -> tuple[list[TestImage], tuple[str, ...]]:
    # numpy and OpenCV: not needed to list the layouts.
    from pcexport.datasets.masks import marked_by

    masks = MaskFolder(root / _MASKS)
    strips = images_in(root / _DEFECTIVE)
    found: list[TestImage] = []
    unknown: list[Path] = []
    for strip in strips:
        own = masks.take(*(strip.stem + ending for ending in _MASK_ENDINGS))
        _require_size(strip, own)
        marked = marked_by(own)
        if marked is None or not marked.any():
            unknown.append(strip)
        else:
            found += _tiles(strip, own, marked)
    masks.require_all_taken(f"{_DEFECTIVE}/")
    if not unknown:
        return found, ()
    remark = (
        f"{len(unknown)} of {len(strips)} defective strips have no marked pixel in {_MASKS}, the first "
        f"{unknown[0].name}: which of their tiles are defective is not known, so they are not tested on"
    )
    return found, (remark,)


def _tiles(strip: Path, masks: tuple[ImageRef, ...], marked: "BoolArray") -> list[TestImage]:
    code = _STEM.fullmatch(strip.stem)
    found = []
    for tile in tiles_of(strip):
        x, y, width, height = tile
        if marked[y : y + height, x : x + width].any():
            parts = tuple(ImageRef(mask.path, tile) for mask in masks)
            found.append(TestImage(strip, code[1] if code else "defect", parts, tile))
        else:
            found.append(TestImage(strip, None, tile=tile))
    return found


def _require_size(strip: Path, masks: tuple[ImageRef, ...]) -> None:
    size = _png_size(strip)
    require_none(
        [mask.path.name for mask in masks if _png_size(mask.path) != size],
        f"{{n}} masks of {strip.name} have not its {size[0]}x{size[1]} px, the first {{first}}.",
        "Expected masks of the strip's size; copy them again.",
    )


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, from its header: decoding all strips would take seconds."""
    try:
        with path.open("rb") as file:
            header = file.read(24)
    except OSError as error:
        raise BuildError(
            f"{path} cannot be read ({error.strerror or error}). Check the file and its rights."
        ) from error
    if header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR" or len(header) < 24:
        raise BuildError(f"{path} is no PNG. Expected the strips and masks of AITEX as PNG; copy it again.")
    width, height = struct.unpack(">II", header[16:24])
    return width, height
