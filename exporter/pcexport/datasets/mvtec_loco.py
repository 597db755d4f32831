"""MVTec LOCO AD: defects of structure and of logic, several masks an image."""

from pathlib import Path

from pcexport.datasets.files import MaskFolder, folders_in, images_in, name_of, refs
from pcexport.datasets.types import Dataset, TestImage

_CLASSES = ("logical_anomalies", "structural_anomalies")


class MvtecLoco:
    """MVTec LOCO AD (Bergmann et al., 2022)."""

    name = "mvtec_loco"
    title = "MVTec LOCO AD"
    expects = """\
train/good/*.png                  normal images
validation/good/*.png             more of them; optional
test/good/*.png                   normal test images
test/CLASS/*.png                  defective: logical_anomalies, structural_anomalies
ground_truth/CLASS/STEM/*.png     all masks of one image; any of them counts"""
    normals = "train/good/ and validation/good/"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return (root / "train" / "good").is_dir() and (
            any((root / "test" / name).is_dir() for name in _CLASSES)
            or any(folders_in(folder) for folder in folders_in(root / "ground_truth"))
        )

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        masks = MaskFolder(root / "ground_truth")
        test = tuple(
            TestImage(
                image,
                None if folder.name == "good" else folder.name,
                masks.take_inside(f"{folder.name}/{image.stem}"),
            )
            for folder in folders_in(root / "test")
            for image in images_in(folder)
        )
        masks.require_all_taken("test/CLASS/, for the masks in ground_truth/CLASS/STEM/")
        normal = (*images_in(root / "train" / "good"), *images_in(root / "validation" / "good"))
        return Dataset(name_of(root), self.name, root, refs(normal), test)
