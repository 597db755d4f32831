"""KolektorSDD2, the second of the two Kolektor data sets."""

from pathlib import Path

from pcexport.datasets.beside import is_mask, labelled_by_masks
from pcexport.datasets.files import images_in, name_of, refs
from pcexport.datasets.types import Dataset

_MASK = "_GT"


class KolektorSdd2:
    """KolektorSDD2 (Božič et al., 2021): surfaces in two folders, some of the training ones defective."""

    name = "ksdd2"
    title = "KolektorSDD2"
    expects = """\
train/10000.png                   images to build from; defective ones are not used
train/10000_GT.png                mask of each image; defective where any pixel is not 0
test/20000.png                    test images
test/20000_GT.png                 their masks"""
    normals = "train/, with empty masks"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        folders = (root / "train", root / "test")
        return any(is_mask(p, _MASK) for folder in folders for p in images_in(folder))

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        train = labelled_by_masks(root / "train", _MASK)
        normal = refs(image.path for image in train if not image.is_defective)
        return Dataset(name_of(root), self.name, root, normal, tuple(labelled_by_masks(root / "test", _MASK)))
