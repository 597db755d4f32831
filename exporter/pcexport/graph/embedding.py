"""The patch embedder as a torch module: the network that is traced to `embedder.onnx`."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pcexport.backbones.loader import LoadedBackbone
from pcexport.errors import BuildError

REFERENCE_DIM = 1024
_REFERENCE_CHANNELS = (512, 1024)


class PatchEmbedder(nn.Module):
    """Backbone, locally aware patches and concatenation (Roth et al. 2022, section 3.1)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: LoadedBackbone,
        *,
        aggregation: str,
        neighbourhood: int,
        grid_hw: tuple[int, int] | None,
    ) -> None:
        """Put the network together.

        Args:
            backbone: frozen feature maps.
            aggregation: "locally_aware" or "reference" (the original repository's 1024-d descriptor,
                closed form).
            neighbourhood: odd side of the average around each patch; the reference descriptor is
                defined for 3.
            grid_hw: patch grid; None takes the first layer's.

        Raises:
            BuildError: "reference" with other channel counts than 512 and 1024, another neighbourhood or a
                given grid.
        """
        super().__init__()
        if aggregation == "reference":
            _check_reference(backbone, neighbourhood, grid_hw)
        self.extractor = backbone.extractor
        self.aggregation = aggregation
        self.neighbourhood = neighbourhood
        self.grid_hw = grid_hw or backbone.grids[0]
        self.dim = REFERENCE_DIM if aggregation == "reference" else sum(backbone.channels)
        # Images arrive as 0..255: scale and normalisation are one subtraction and one division.
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1) * 255)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (batch, height, width, 3) uint8, RGB.

        Returns:
            (batch, grid_h * grid_w, dim) float32, patches row-major.
        """
        # Converted first: TensorRT takes uint8 as an input, but has no operator on it other than Cast.
        normalised = (images.float().permute(0, 3, 1, 2) - self.mean) / self.std
        features = self.extractor(normalised)
        grid = self._reference(features) if self.aggregation == "reference" else self._locally_aware(features)
        return grid.flatten(2).transpose(1, 2)

    def _locally_aware(self, features: list[Tensor]) -> Tensor:
        return torch.cat([self._on_grid(self._pool(feature)) for feature in features], dim=1)

    def _reference(self, features: list[Tensor]) -> Tensor:
        """Closed form of unfolding 3x3, pooling each layer to 1024 and both to 1024.

        See docs/architecture.md.
        """
        shallow, deep = features
        # (sum of the neighbourhood + centre) / 10;
        # the average pool counts zero padding, so times 9 is the sum.
        first = (self._pool(shallow) * 9 + shallow) / 10
        second = self._on_grid(self._pool(deep))
        batch, channels, height, width = second.shape
        pairs = second.reshape(batch, channels // 2, 2, height, width).mean(dim=2)
        return torch.cat([first, pairs], dim=1)

    def _pool(self, feature: Tensor) -> Tensor:
        if self.neighbourhood == 1:
            return feature
        side = self.neighbourhood
        return functional.avg_pool2d(feature, side, stride=1, padding=side // 2, count_include_pad=True)

    def _on_grid(self, feature: Tensor) -> Tensor:
        if tuple(feature.shape[-2:]) == tuple(self.grid_hw):
            return feature
        return functional.interpolate(feature, size=self.grid_hw, mode="bilinear", align_corners=False)


def _check_reference(backbone: LoadedBackbone, neighbourhood: int, grid_hw: tuple[int, int] | None) -> None:
    if tuple(backbone.channels) != _REFERENCE_CHANNELS:
        raise BuildError(
            "aggregation 'reference' needs two layers of 512 and 1024 channels, "
            f"{', '.join(backbone.layers)} have {', '.join(map(str, backbone.channels))}. "
            "Use layer2,layer3 of resnet50, resnet101 or wide_resnet50_2, or aggregation 'locally_aware'."
        )
    if neighbourhood != 3 or grid_hw not in (None, backbone.grids[0]):
        raise BuildError(
            "aggregation 'reference' is defined for neighbourhood 3 on the first layer's grid alone."
        )
