"""Finding images that a bundle was built from: their own patches are in its memory bank."""

import numpy as np

from pcexport.datasets import ImageRef
from pcexport.errors import BuildError
from pcexport.golden import TOLERANCE_RELATIVE
from pcrun.detector import AnomalyDetector
from pcrun.search.exact import ExactSearch
from pcrun.types import FloatArray


class SeenImages:
    """Keeps account of images of which a patch is in the memory bank.

    An entry of the bank is a patch of one image. Where that image comes again, the distance is zero but for
    rounding; the closest patches of 191 unseen magnetic tiles lay at 11 % of an embedding's length, and 751
    of 761 seen ones were recognised (the coreset took no patch of the others). An entry that several images
    meet is something they have in common, an evenly black corner for example, and proves nothing.
    """

    def __init__(self, detector: AnomalyDetector) -> None:
        """Look out for images of this detector's bundle.

        With an exactness below `full` a search may miss the entry that an image gave, and the image with it.
        """
        assert detector.bundle is not None  # the caller opens one
        rows = detector.bundle.memory_bank
        self._exact = ExactSearch(rows, threads=1)
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        self._zero = TOLERANCE_RELATIVE[detector.manifest.embedding.precision] * float(np.median(lengths))
        self._entries: dict[ImageRef, set[int]] = {}

    def look(self, image: ImageRef, embeddings: FloatArray, patch_scores: FloatArray) -> None:
        """Take an image.

        Args:
            image: which one.
            embeddings: (patches, dim) float32.
            patch_scores: their exact distances to the memory bank, of any shape.
        """
        equal = np.flatnonzero(patch_scores.ravel() <= self._zero)
        if len(equal):
            self._entries[image] = set(self._exact.nearest(embeddings[equal])[1].tolist())

    def found(self) -> list[ImageRef]:
        """Images with an entry of the bank that no other image has, in the order in which they were taken."""
        owners: dict[int, int] = {}
        for entries in self._entries.values():
            for entry in entries:
                owners[entry] = owners.get(entry, 0) + 1
        return [image for image, entries in self._entries.items() if any(owners[e] == 1 for e in entries)]

    def require_none(self) -> None:
        """Refuse images that the bundle was built from.

        Raises:
            BuildError: there are some.
        """
        found = self.found()
        if found:
            raise BuildError(
                f"{len(found)} of the images are in the memory bank, the first {found[0]}: they score lower "
                "than new images do, so a threshold from them would be too low. Expected images that the "
                "build did not see; leave these out."
            )
