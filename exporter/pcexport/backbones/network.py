"""What both families give the loader: a frozen extractor, and the facts that come with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pcexport.backbones.weights import WeightsInfo

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenExtractor(nn.Module):
    """Base of the extractors: no gradients, and always in eval mode, whatever its parent is told.

    A parent's `.train()` would otherwise update the batch-norm statistics of the backbone.
    """

    def freeze(self) -> None:
        """Switch gradients off and eval mode on."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenExtractor:
        """Stay in eval mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps, one (B, C, h, w) float32 tensor per layer, in the order the layers were asked for.

        Args:
            images: (B, 3, H, W) float32, RGB, scaled to [0, 1] and then normalised with mean and std.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Network:
    """A built backbone before it is measured. `mean` and `std`: RGB, for images in [0, 1]."""

    extractor: FrozenExtractor
    layers: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: WeightsInfo


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initialise weights from `seed` on the CPU and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed CUDA's generators too, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(seed)
        yield
