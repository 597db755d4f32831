"""MVTec AD 2: a public test set with labels, private ones without."""

from pathlib import Path

from pcexport.datasets.files import MaskFolder, folders_in, images_in, name_of, refs
from pcexport.datasets.types import Dataset, TestImage

_MASKS = "ground_truth"


class MvtecAd2:
    """MVTec AD 2 (Heckler-Kram et al., 2025)."""

    name = "mvtec_ad2"
    title = "MVTec AD 2"
    expects = """\
train/good/*.png                  normal images
validation/good/*.png             more of them; optional
test_public/good/*.png            normal test images
test_public/bad/*.png             defective test images
test_public/ground_truth/bad/STEM_mask.png  their masks
test_private*/                    not read: has no labels"""
    normals = "train/good/ and validation/good/"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return (root / "train" / "good").is_dir() and (root / "test_public").is_dir()

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        public = root / "test_public"
        masks = MaskFolder(public / _MASKS)
        test = tuple(
            TestImage(
                image,
                None if folder.name == "good" else folder.name,
                masks.take(f"{folder.name}/{image.stem}_mask"),
            )
            for folder in folders_in(public)
            if folder.name != _MASKS
            for image in images_in(folder)
        )
        masks.require_all_taken("test_public/bad/, for masks named STEM_mask")
        normal = (*images_in(root / "train" / "good"), *images_in(root / "validation" / "good"))
        return Dataset(name_of(root), self.name, root, refs(normal), test)
