"""What PyTorch gives against `embedder.onnx`, before anything is built on the latter."""

from dataclasses import dataclass

import numpy as np

from pcexport.backbones.student_facts import CheckValues, check_picture
from pcexport.errors import BuildError
from pcrun.backends.embedder import Embedder
from pcrun.bundle.manifest import ParitySpec
from pcrun.types import UInt8Array


@dataclass(frozen=True)
class ParityReport:
    """Differences between two embedders on the same images.

    Attributes:
        images: number of images compared.
        max_absolute_error: largest difference of one component.
        max_relative_error: largest ||a - b|| / ||a|| of one patch embedding; of recorded values, the largest
            difference in units of the embedding's root mean square.
        recorded_values: number of components compared with those in a student file; None: all, with PyTorch.
    """

    images: int
    max_absolute_error: float
    max_relative_error: float
    recorded_values: int | None = None

    def require(self, tolerance: float) -> ParitySpec:
        """The manifest's entry.

        Raises:
            BuildError: the difference is above `tolerance`, or not a number.
        """
        if not self.max_relative_error <= tolerance:
            raise BuildError(
                f"PyTorch and ONNX differ by {self.max_relative_error:.2g} (relative) {self._where}, more "
                f"than the tolerance of {tolerance:g}. Expected the same embeddings; {self._remedy}. "
                "Nothing was written."
            )
        return ParitySpec(
            self.images, self.max_absolute_error, self.max_relative_error, tolerance, self.recorded_values
        )

    @property
    def _where(self) -> str:
        if self.recorded_values is None:
            return f"on {self.images} images"
        return f"in the {self.recorded_values} values that the student file holds of its check picture"

    @property
    def _remedy(self) -> str:
        if self.recorded_values is None:
            return "try another --opset or other versions of torch and onnxruntime"
        return "try another --provider or version of onnxruntime, or get the file again"


def compare_embedders(reference: Embedder, candidate: Embedder, images: list[UInt8Array]) -> ParityReport:
    """Embed images with both and measure the differences.

    Args:
        reference: gives the norm that differences are related to.
        candidate: what will be used.
        images: (height, width, 3) uint8 RGB each.
    """
    absolute, relative = 0.0, 0.0
    for image in images:
        a = reference.embed(image[None])[0].astype(np.float64)
        b = candidate.embed(image[None])[0].astype(np.float64)
        difference = np.abs(a - b)
        norms = np.linalg.norm(a, axis=1)
        errors = np.linalg.norm(difference, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
        # max(x, nan) would forget a NaN depending on order; np.fmax would always: keep it on purpose.
        absolute = float(np.max([absolute, difference.max()]))
        relative = float(np.max([relative, errors.max()]))
    return ParityReport(len(images), absolute, relative)


def compare_with_record(embedder: Embedder, check: CheckValues) -> ParityReport:
    """Embed the check picture and measure the differences from what PyTorch gave for it.

    Args:
        embedder: the student's graph at the size of the check.
        check: recorded when the student was made.
    """
    embedding = embedder.embed(check_picture(check.height, check.width)[None])[0].astype(np.float64)
    patches, channels = np.array(check.positions).T
    worst = float(np.abs(embedding[patches, channels] - check.values).max())
    return ParityReport(1, worst, worst / check.scale, len(check.values))
