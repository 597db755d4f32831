"""Build a frozen backbone that returns feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pcexport.backbones import timm_family, torchvision_family
from pcexport.backbones.image_size import check_image_multiple
from pcexport.backbones.network import FrozenExtractor, Network
from pcexport.backbones.registry import BackboneSpec
from pcexport.backbones.weights import WeightsInfo
from pcexport.errors import BuildError

_FAMILIES: dict[str, Callable[..., Network]] = {
    "torchvision": torchvision_family.build,
    "timm": timm_family.build,
}


@dataclass(frozen=True)
class LoadedBackbone:
    """A frozen backbone and what was measured of it.

    Attributes:
        extractor: (B, 3, H, W) float32 normalised RGB -> list of (B, C, h, w) float32, in the order of
            `layers`; in eval mode (and staying in it), without gradients, on the CPU.
        layers: the layers read.
        channels: C of each layer.
        grids: (h, w) of each layer at the image size it was loaded for.
        mean: RGB, for images in [0, 1].
        std: RGB, for images in [0, 1].
        weights: where the weights came from.
    """

    extractor: nn.Module
    layers: tuple[str, ...]
    channels: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: WeightsInfo


def load_backbone(
    spec: BackboneSpec,
    layers: Sequence[str] | None = None,
    *,
    weights: str,
    image_hw: tuple[int, int],
    seed: int,
) -> LoadedBackbone:
    """Build `spec`, load its weights, freeze it and measure its maps.

    The global random state and gradient mode are left as they were.

    Args:
        spec: from `registry.find_backbone`.
        layers: layers to read, in the order wanted; None or empty takes `spec.default_layers`.
        weights: "default" (the library's pretrained ones, downloaded or from its cache), "untrained", or the
            path of a .pth, .pt or .safetensors file, which need only hold the parameters that `layers` use.
        image_hw: image height and width in pixels.
        seed: of the initialisation; it shows only in untrained weights.

    Raises:
        BuildError: unknown layer, unfit image size, weights that are missing, unreadable or of another net.
        ValueError: an image size that is not positive.
    """
    if min(image_hw) < 1:
        raise ValueError(f"image_hw must be positive, got {image_hw}")
    chosen = tuple(str(layer) for layer in layers or spec.default_layers)
    if len(set(chosen)) != len(chosen):
        raise BuildError(f"layers {', '.join(chosen)} name one layer twice. Name each once.")
    check_image_multiple(spec.name, image_hw, (spec.image_multiple, spec.image_multiple))
    network = _FAMILIES[spec.family](spec, chosen, weights=weights, image_hw=image_hw, seed=seed)
    network.extractor.freeze()
    maps = _zeros_forward(network.extractor, spec.name, image_hw)
    _check_maps(spec.name, network.layers, maps)
    return LoadedBackbone(
        extractor=network.extractor,
        layers=network.layers,
        channels=tuple(m.shape[1] for m in maps),
        grids=tuple((m.shape[2], m.shape[3]) for m in maps),
        mean=network.mean,
        std=network.std,
        weights=network.weights,
    )


def _zeros_forward(extractor: FrozenExtractor, name: str, image_hw: tuple[int, int]) -> list[Tensor]:
    try:
        with torch.no_grad():
            maps: list[Tensor] = extractor(torch.zeros(1, 3, *image_hw))
    except (RuntimeError, AssertionError, ValueError) as e:
        raise BuildError(
            f"{name} cannot process images of {image_hw[0]}x{image_hw[1]} pixels (height x width): {e}. "
            "Choose another image size."
        ) from e
    return maps


def _check_maps(name: str, layers: tuple[str, ...], maps: list[Tensor]) -> None:
    for layer, m in zip(layers, maps, strict=True):
        if not isinstance(m, Tensor) or m.ndim != 4:
            got = tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__
            raise BuildError(
                f"layer {layer!r} of {name} gives {got}, not a (batch, channels, height, width) map. "
                "Choose a convolutional layer before the pooling."
            )
