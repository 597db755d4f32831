"""BTAD, the beanTech anomaly detection data set."""

from pathlib import Path

from pcexport.datasets.files import MaskFolder, folders_in, images_in, name_of, refs
from pcexport.datasets.types import Dataset, TestImage


class Btad:
    """BTAD (Mishra et al., 2021): one folder per product, images in BMP or PNG."""

    name = "btad"
    title = "BTAD"
    expects = """\
train/ok/*.bmp                    normal images
test/ok/*.bmp                     normal test images
test/ko/*.bmp                     defective test images
ground_truth/ko/STEM.png          their masks; optional"""
    normals = "train/ok/"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`."""
        return (root / "train" / "ok").is_dir() and (root / "test").is_dir()

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        masks = MaskFolder(root / "ground_truth")
        test = tuple(
            TestImage(
                image,
                None if folder.name == "ok" else folder.name,
                masks.take(f"{folder.name}/{image.stem}"),
            )
            for folder in folders_in(root / "test")
            for image in images_in(folder)
        )
        masks.require_all_taken("test/ko/")
        return Dataset(name_of(root), self.name, root, refs(images_in(root / "train" / "ok")), test)
