"""Plain images in one folder: the layout where no other fits."""

from pathlib import Path

from pcexport.datasets.files import images_in, name_of, refs, require_one_suffix
from pcexport.datasets.types import Dataset


class FlatFolder:
    """Normal images only, directly in the folder."""

    name = "flat"
    title = "Plain folder or glob"
    expects = """\
*.png                             normal images; folders in it are not looked into"""
    normals = "directly in it"

    def matches(self, root: Path) -> bool:
        """See `Layout.matches`; true also of folders that other layouts know better."""
        return bool(images_in(root))

    def read(self, root: Path) -> Dataset:
        """See `Layout.read`."""
        return Dataset(name_of(root), self.name, root, refs(require_one_suffix(images_in(root))), ())
