"""MVTec AD, and the many data sets that took its folders over."""

from pathlib import Path

from pcexport.datasets.files import MaskFolder, folders_in, images_in, name_of, refs
from pcexport.datasets.mvtec_ad2 import MvtecAd2
from pcexport.datasets.mvtec_loco import MvtecLoco
from pcexport.datasets.types import Dataset, TestImage


class MvtecAd:
    """MVTec AD (Bergmann et al., 2019): one folder per kind of defect, one mask per image."""

    name = "mvtec"
    title = "MVTec AD"
    expects = """\
train/good/*.png                  normal images
test/good/*.png                   normal test images
test/CLASS/*.png                  defective test images
ground_truth/CLASS/STEM_mask.png  their masks, or STEM.png; optional"""
    normals = "train/good/"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        newer = MvtecLoco().matches(root) or MvtecAd2().matches(root)
        return (root / "train" / "good").is_dir() and not newer

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        masks = MaskFolder(root / "ground_truth")
        test = tuple(
            TestImage(
                image,
                None if folder.name == "good" else folder.name,
                masks.take(f"{folder.name}/{image.stem}_mask", f"{folder.name}/{image.stem}"),
            )
            for folder in folders_in(root / "test")
            for image in images_in(folder)
        )
        masks.require_all_taken("test/CLASS/")
        return Dataset(name_of(root), self.name, root, refs(images_in(root / "train" / "good")), test)
