"""The network in PyTorch as an embedder: the graph is compared with it, and it embeds where asked to."""

import numpy as np
import torch

from pcexport.graph.embedding import PatchEmbedder
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
