"""KolektorSDD, the first of the two Kolektor data sets."""

from pathlib import Path

from pcexport.datasets.beside import is_mask, labelled_by_masks
from pcexport.datasets.files import folders_in, images_in, name_of, refs, split_normals
from pcexport.datasets.types import Dataset

_LABEL = "_label"


class KolektorSdd:
    """KolektorSDD (Tabernik et al., 2019): eight surfaces of each of fifty commutators.

    The set has no split for one-class methods. The normal surfaces of every fifth commutator are for the
    test: whole commutators, because surfaces of one look alike.
    """

    name = "ksdd"
    title = "KolektorSDD"
    expects = """\
kos01/Part0.jpg                   images, a folder per part; the normal images of every fifth
                                  part are for the test
kos01/Part0_label.bmp             mask of each image; defective where any pixel is not 0"""
    normals = "kos01/, kos02/, ..., with empty labels"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return any(is_mask(p, _LABEL) for folder in _parts(root) for p in images_in(folder))

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        labelled = {folder: labelled_by_masks(folder, _LABEL) for folder in _parts(root)}
        build, held_back = split_normals(list(labelled))
        normal = [image.path for part in build for image in labelled[part] if not image.is_defective]
        test = [image for part in held_back for image in labelled[part] if not image.is_defective]
        defective = [image for images in labelled.values() for image in images if image.is_defective]
        return Dataset(name_of(root), self.name, root, refs(normal), (*test, *defective))


def _parts(root: Path) -> tuple[Path, ...]:
    return tuple(folder for folder in folders_in(root) if folder.name.startswith("kos"))
