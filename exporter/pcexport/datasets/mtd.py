"""Magnetic Tile Defects."""

import json
from pathlib import Path

from pcexport.datasets.files import images_in, name_of, refs, repeated, require_none
from pcexport.datasets.types import Dataset, ImageRef, TestImage
from pcexport.errors import BuildError


class MagneticTiles:
    """Magnetic Tile Defects (Huang et al., 2018), with a split of its normal tiles where there is one."""

    name = "mtd"
    title = "Magnetic Tile Defects"
    expects = """\
MT_Free/Imgs/*.jpg                normal images
MT_CLASS/Imgs/*.jpg               defective test images
MT_CLASS/Imgs/STEM.png            their masks; optional
split.json                        lists of names, train_good and test_good; optional: without it,
                                  all normal images are for the build"""
    normals = "MT_Free/Imgs/"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return (root / "MT_Free").is_dir()

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        all_normal = {p.name: p for p in _tiles_in(root / "MT_Free" / "Imgs")}
        train, test_good = _split(root, all_normal)
        defective, remarks = _defective(root)
        test = (*(TestImage(path, None) for path in test_good), *defective)
        return Dataset(name_of(root), self.name, root, refs(train), test, remarks)


def _defective(root: Path) -> tuple[list[TestImage], tuple[str, ...]]:
    found: list[TestImage] = []
    empty: list[Path] = []
    for folder in sorted(root.glob("MT_*")):
        if folder.name == "MT_Free" or not folder.is_dir():
            continue
        tiles = _tiles_in(folder / "Imgs")
        _require_tiles_of_masks(folder, tiles)
        for tile in tiles:
            masks, is_empty = _mask_of(tile)
            found.append(TestImage(tile, folder.name, masks))
            empty += [tile] if is_empty else []
    return found, _remarks_on(empty)


def _tiles_in(folder: Path) -> tuple[Path, ...]:
    # Masks stand beside the images, as PNG of the same name.
    return tuple(p for p in images_in(folder) if p.suffix.lower() != ".png")


def _mask_of(tile: Path) -> tuple[tuple[ImageRef, ...], bool]:
    """The mask of a defective tile, and whether there is one that marks nothing: that one is none."""
    # numpy and OpenCV: not needed to list the layouts.
    from pcexport.datasets.masks import is_marked

    mask = tile.with_suffix(".png")
    if not mask.is_file():
        return (), False
    masks = refs([mask])
    return (masks, False) if is_marked(masks[0]) else ((), True)


def _require_tiles_of_masks(folder: Path, tiles: tuple[Path, ...]) -> None:
    stems = {tile.stem for tile in tiles}
    stray = [p.name for p in images_in(folder / "Imgs") if p.suffix.lower() == ".png" and p.stem not in stems]
    require_none(
        stray,
        f"{{n}} masks in {folder / 'Imgs'} belong to no image, the first {{first}}.",
        "Expected a .jpg of the same name beside each .png; copy the images, or remove the masks.",
    )


def _remarks_on(empty: list[Path]) -> tuple[str, ...]:
    if not empty:
        return ()
    return (
        f"{len(empty)} defective images have a mask that marks nothing, the first {empty[0].name}: "
        "they count as images without a mask",
    )


def _split(root: Path, normal: dict[str, Path]) -> tuple[list[Path], list[Path]]:
    split_file = root / "split.json"
    if not split_file.is_file():
        return list(normal.values()), []
    try:
        split = json.loads(split_file.read_text(encoding="utf-8"))
        train, test = list(split["train_good"]), list(split["test_good"])
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"{split_file} is not a split ({error}). Expected lists `train_good` and `test_good`."
        ) from error
    names = [*train, *test]
    require_none(
        repeated(names),
        f"{split_file} names {{n}} images twice, the first '{{first}}'.",
        "Expected every image in one of the two lists, once; correct the split.",
    )
    require_none(
        [name for name in names if name not in normal],
        f"{split_file} names {{n}} images that MT_Free/Imgs lacks, the first '{{first}}'.",
        "Expected the complete data; copy them again or correct the split.",
    )
    return [normal[name] for name in train], [normal[name] for name in test]
