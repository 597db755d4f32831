"""Embedding the normal images, streamed to disk."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcexport.config import BuildConfig
from pcexport.datasets import Dataset, ImageRef
from pcexport.datasets.reader import ImageReader
from pcexport.errors import BuildError
from pcexport.memory_bank.projection import fit_projection
from pcexport.memory_bank.store import RowFile, Rows, SelectedRows
from pcexport.progress import Step
from pcrun.backends.embedder import Embedder
from pcrun.bundle.manifest import EmbeddingSpec
from pcrun.preprocess import PreprocessSpec, preprocess
from pcrun.types import FloatArray, Int64Array, UInt8Array

_DYNAMIC_BATCH_IMAGES = 8
_PROJECT_ROWS = 8192


@dataclass(frozen=True)
class EmbeddedImages:
    """Patch embeddings of all readable normal images.

    Image i holds rows i * patches .. (i + 1) * patches - 1.

    Attributes:
        refs: the readable images, in order.
        patches: per image.
        full: (images * patches, dim) rows.
        projected: the same rows in the space where the coreset is selected (at first `full` itself).
    """

    refs: list[ImageRef]
    patches: int
    full: RowFile
    projected: Rows

    def rows_of(self, images: Int64Array) -> Int64Array:
        """Row numbers of some images, ascending when the images are."""
        return (images[:, None] * self.patches + np.arange(self.patches)).ravel()

    def candidates(self, images: Int64Array) -> Rows:
        """The projected rows of some images."""
        if len(images) == len(self.refs):
            return self.projected
        return SelectedRows(self.projected, self.rows_of(images))

    def image(self, index: int) -> FloatArray:
        """(patches, dim) float32 embeddings of one image."""
        return self.full.block(index * self.patches, (index + 1) * self.patches)

    def with_projection(
        self, config: BuildConfig, images: Int64Array, folder: Path, step: Step
    ) -> "EmbeddedImages":
        """Project all rows for coreset selection; a PCA is fitted on the given images."""
        # A random choice looks at no distances.
        method = config.projection if config.coreset == "kcenter" else "none"
        projection = fit_projection(
            method,
            SelectedRows(self.full, self.rows_of(images)),
            config.projection_dim,
            seed=config.seed,
        )
        if projection is None:
            return self
        projected = RowFile(folder / "projected.f32", projection.shape[1])
        for start in range(0, len(self.full), _PROJECT_ROWS):
            projected.append(self.full.block(start, start + _PROJECT_ROWS) @ projection)
            step.advance_to(min(start + _PROJECT_ROWS, len(self.full)))
        return dataclasses.replace(self, projected=projected)


def embed_images(
    dataset: Dataset,
    reader: ImageReader,
    embedder: Embedder,
    *,
    spec: EmbeddingSpec,
    preprocessing: PreprocessSpec,
    folder: Path,
    step: Step,
) -> EmbeddedImages:
    """Read, prepare and embed every normal image; memory does not grow with their number.

    Raises:
        BuildError: none of them is readable, or an embedding is not finite.
    """
    full = RowFile(folder / "embeddings.f32", spec.dim)
    readable: list[ImageRef] = []
    waiting: list[UInt8Array] = []

    def flush() -> None:
        if waiting:
            rows = embedder.embed(np.stack(waiting)).reshape(-1, spec.dim)
            _require_finite(rows)
            full.append(rows)
            waiting.clear()

    for done, (ref, image) in enumerate(reader.read_all(dataset.normal), start=1):
        if image is not None:
            readable.append(ref)
            waiting.append(preprocess(image, preprocessing))
        if len(waiting) == (spec.batch or _DYNAMIC_BATCH_IMAGES):
            flush()
        step.advance_to(done)
    flush()
    if not readable:
        raise BuildError(
            f"None of the {len(dataset.normal)} normal images could be read. Expected image files."
        )
    return EmbeddedImages(readable, spec.patches, full, full)


def _require_finite(rows: FloatArray) -> None:
    if not np.isfinite(rows).all():
        raise BuildError(
            "The embedder gives values that are not finite. Expected finite embeddings; "
            "check the weights file and the mean and standard deviation of the backbone."
        )
