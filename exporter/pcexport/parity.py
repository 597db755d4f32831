"""The traced torch module against `embedder.onnx`, before anything is built on the latter."""

from dataclasses import dataclass

import numpy as np
import torch

from pcexport.embedding import PatchEmbedder
from pcexport.errors import BuildError
from pcrun.embedder import Embedder
from pcrun.manifest import ParitySpec
from pcrun.types import FloatArray, UInt8Array


class TorchEmbedder:
    """The torch module behind the runtime's embedder interface."""

    precision = "fp32"

    def __init__(self, module: PatchEmbedder, device: str) -> None:
        self._module = module.to(device)
        self._device = device
        self.provider = f"torch-{device}"

    def embed(self, images: UInt8Array) -> FloatArray:
        """(batch, height, width, 3) uint8 RGB in, (batch, patches, dim) float32 out."""
        # TF32 would round the convolutions to 10 bits;
        # parity with the graph would fail or, worse, nearly hold.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        with torch.inference_mode():
            result = self._module(torch.from_numpy(images).to(self._device))
            return np.ascontiguousarray(result.cpu().numpy())


@dataclass(frozen=True)
class ParityReport:
    """Differences between two embedders on the same images.

    Attributes:
        images: number of images compared.
        max_absolute_error: largest difference of one component.
        max_relative_error: largest ||a - b|| / ||a|| of one patch embedding.
    """

    images: int
    max_absolute_error: float
    max_relative_error: float

    def require(self, tolerance: float) -> ParitySpec:
        """The manifest's entry.

        Raises:
            BuildError: the difference is above `tolerance`, or not a number.
        """
        if not self.max_relative_error <= tolerance:
            raise BuildError(
                f"PyTorch and ONNX differ by {self.max_relative_error:.2g} (relative) on "
                f"{self.images} images, more than the tolerance of {tolerance:g}. "
                "Expected the same embeddings; try another --opset or other versions of "
                "torch and onnxruntime. Nothing was written."
            )
        return ParitySpec(self.images, self.max_absolute_error, self.max_relative_error, tolerance)


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
