"""torchvision CNNs, cut at the asked layers by torch.fx."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from pcexport.backbones.at_hand import DEFAULT, UNTRAINED
from pcexport.backbones.download import fetch
from pcexport.backbones.network import IMAGENET_MEAN, IMAGENET_STD, FrozenExtractor, Network, seeded
from pcexport.backbones.registry import BackboneSpec, nearest
from pcexport.backbones.weights import (
    WeightsInfo,
    load_used,
    read_tensors,
    read_weights,
    untrained_info,
)
from pcexport.errors import BuildError

# Both were ported from TensorFlow; torchvision turns the colour transform on together with the weights.
_PORTED: dict[str, Any] = {"transform_input": True, "init_weights": True}
_MODEL_ARGS: dict[str, dict[str, Any]] = {"googlenet": _PORTED, "inception_v3": _PORTED}


class GraphExtractor(FrozenExtractor):
    """Runs a traced graph whose outputs are the feature maps, keyed by layer."""

    def __init__(self, body: fx.GraphModule, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.body = body
        self.layers = layers

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `FrozenExtractor.forward`."""
        maps = self.body(images)
        return [maps[layer] for layer in self.layers]


def build(
    spec: BackboneSpec, layers: tuple[str, ...], *, weights: str, image_hw: tuple[int, int], seed: int
) -> Network:
    """Build a torchvision backbone; arguments and errors as for `loader.load_backbone`."""
    state, info = _find_weights(spec.name, weights, seed)
    with seeded(seed):
        model = torchvision.models.get_model(spec.name, weights=None, **_MODEL_ARGS.get(spec.name, {})).eval()
    body = _cut(model, spec.name, layers)
    if state is not None:
        load_used(body, state, known=model.state_dict(), origin=info.source)
    return Network(GraphExtractor(body, layers), layers, IMAGENET_MEAN, IMAGENET_STD, info)


def _find_weights(name: str, weights: str, seed: int) -> tuple[dict[str, Tensor] | None, WeightsInfo]:
    if weights == UNTRAINED:
        return None, untrained_info(seed)
    if weights != DEFAULT:
        return read_weights(weights)
    choices = torchvision.models.get_model_weights(name)
    # V1 by name: PatchCore's published numbers use it, and torchvision's DEFAULT has moved to V2.
    member = choices.__members__.get("IMAGENET1K_V1")
    if member is None:
        raise BuildError(
            f"torchvision has no IMAGENET1K_V1 weights for {name} (it has {', '.join(choices.__members__)}). "
            "Download the ones you want and pass --weights FILE."
        )
    path, sha256 = fetch(member.url)
    return read_tensors(path), WeightsInfo(f"torchvision {member!r}", sha256)


def _cut(model: nn.Module, name: str, layers: tuple[str, ...]) -> fx.GraphModule:
    """Trace `model` (in eval mode) up to `layers`; parameters of later layers are gone from the result."""
    for module in model.modules():
        if getattr(module, "inplace", False):
            # An activation written in place would overwrite the map before it.
            # (nn.Module declares its unknown attributes as Tensor or Module, hence the ignore.)
            module.inplace = False  # type: ignore[assignment]
    nodes = {layer: layer for layer in layers}
    try:
        traced = create_feature_extractor(model, return_nodes=nodes, suppress_diff_warning=True).eval()
    except ValueError as e:
        raise _unknown_layer(model, name, layers) or BuildError(
            f"{name} cannot be cut at {layers}: {e}"
        ) from e
    # The traced module carries a second graph for training mode; keep only this one.
    return fx.GraphModule(traced, traced.graph)


def _unknown_layer(model: nn.Module, name: str, layers: tuple[str, ...]) -> BuildError | None:
    known: set[str] = set()
    for node in get_graph_node_names(model, suppress_diff_warning=True)[1]:
        parts = node.split(".")
        known.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    unknown = [layer for layer in layers if layer not in known]
    if not unknown:
        return None
    hints = "; ".join(f"{layer!r}, near {', '.join(nearest(layer, known))}" for layer in unknown)
    return BuildError(f"{name} has no layer {hints}. Correct the name under `layers`.")
