"""Prepared images of a data set for what looks at some of them, beside the reader that counts and warns."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pcexport.datasets import Dataset, ImageRef
from pcexport.datasets.reader import ImageReader
from pcexport.errors import BuildError
from pcexport.golden import spread
from pcrun.preprocess import PreprocessSpec, preprocess
from pcrun.types import UInt8Array


@dataclass(frozen=True)
class ImageSamples:
    """Reads images that the build's own reader reads too, in silence: that one names the unreadable ones."""

    dataset: Dataset
    preprocessing: PreprocessSpec
    white_level_16bit: int

    def reader(self, *, strict: bool) -> ImageReader:
        """A reader that keeps its warnings for itself."""
        return ImageReader(
            self.dataset.root,
            white_level_16bit=self.white_level_16bit,
            strict=strict,
            warn=lambda text: None,
        )

    def prepared(self, images: Iterable[ImageRef]) -> Iterator[tuple[ImageRef, UInt8Array]]:
        """The readable ones of these images, each as (height, width, 3) uint8 RGB for the embedder."""
        for image, pixels in self.reader(strict=False).read_all(images):
            if pixels is not None:
                yield image, preprocess(pixels, self.preprocessing)

    def first(self, wanted: int) -> list[UInt8Array]:
        """The first readable normal images.

        Raises:
            BuildError: there is none.
        """
        normal = self.dataset.normal
        images = [image for _, image in itertools.islice(self.prepared(normal), wanted)]
        if not images:
            raise BuildError(f"None of the {len(normal)} normal images could be read. Expected image files.")
        return images

    def spread(self, wanted: int) -> Iterator[UInt8Array]:
        """Normal images at even distances; those that cannot be read are missing."""
        return (image for _, image in self.prepared(spread(self.dataset.normal, wanted)))
