"""timm models, through their `forward_intermediates`; the patch tokens of a ViT become a grid."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from pcexport.backbones.at_hand import DEFAULT, UNTRAINED, timm_is_missing
from pcexport.backbones.download import no_download, probe
from pcexport.backbones.image_size import check_image_multiple
from pcexport.backbones.network import FrozenExtractor, Network, seeded
from pcexport.backbones.registry import TIMM_PREFIX, BackboneSpec, nearest
from pcexport.backbones.weights import (
    WeightsInfo,
    load_used,
    read_weights,
    sha256_of,
    untrained_info,
)
from pcexport.errors import BuildError

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class _TimmModel(Protocol):
    """What is used of a timm model."""

    feature_info: Any
    pretrained_cfg: dict[str, Any]

    def forward_intermediates(self, x: Tensor, **options: Any) -> list[Tensor]: ...
    def prune_intermediate_layers(self, indices: list[int], prune_norm: bool, prune_head: bool) -> Any: ...
    def state_dict(self) -> dict[str, Tensor]: ...


class IntermediatesExtractor(FrozenExtractor):
    """Asks a timm model for some of its intermediate maps."""

    def __init__(self, model: nn.Module, indices: tuple[int, ...], *, norm: bool) -> None:
        """Wrap `model`; `indices` count from 0; `norm` applies a ViT's final norm to every map."""
        super().__init__()
        self.model = model
        self.indices = indices
        self.norm = norm

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `FrozenExtractor.forward`."""
        ascending = sorted(self.indices)  # timm returns them so, whatever order it is given
        maps = cast(_TimmModel, self.model).forward_intermediates(
            images, indices=ascending, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        return [maps[ascending.index(i)] for i in self.indices]


def build(
    spec: BackboneSpec, layers: tuple[str, ...], *, weights: str, image_hw: tuple[int, int], seed: int
) -> Network:
    """Build a timm backbone; arguments and errors as for `loader.load_backbone`.

    Negative layer indices count from the end; the result names layers by index from the beginning.
    """
    name = _known_name(spec.name.removeprefix(TIMM_PREFIX))
    state, info = (
        read_weights(weights) if weights not in (DEFAULT, UNTRAINED) else (None, untrained_info(seed))
    )
    with seeded(seed):
        model = _create(name, image_hw)
    check_image_multiple(spec.name, image_hw, _patch_size(model))
    if weights == DEFAULT:
        with seeded(seed):
            model, info = _create_pretrained(name, model, image_hw)
    indices = _indices(model, spec.name, layers)
    known = list(model.state_dict())
    if state is not None:
        state = _converted(model, state, info.source)
    flat = _is_flat(model)
    # A CNN's final norm is not applied to its maps, so it is not needed either.
    cast(_TimmModel, model).prune_intermediate_layers(sorted(indices), prune_norm=not flat, prune_head=True)
    if state is not None:
        load_used(model, state, known=known, origin=info.source)
    mean, std = (tuple(float(v) for v in cast(_TimmModel, model).pretrained_cfg[k]) for k in ("mean", "std"))
    extractor = IntermediatesExtractor(model, indices, norm=flat)
    return Network(extractor, tuple(map(str, indices)), cast(Any, mean), cast(Any, std), info)


def _timm(name: str) -> Any:
    """The package, imported only when a timm backbone is asked for: it is optional, and slow to import."""
    try:
        return importlib.import_module("timm")
    except ImportError as e:
        raise timm_is_missing(TIMM_PREFIX + name) from e


def _known_name(name: str) -> str:
    timm = _timm(name)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = nearest(name, {*timm.list_models(), *timm.list_pretrained()})
        hint = ", ".join(TIMM_PREFIX + n for n in near)
        raise BuildError(f"timm {timm.__version__} has no model {name!r}; near it are {hint}.")
    tagged = timm.list_pretrained(architecture + ".*")
    if tag and name not in tagged:
        raise BuildError(
            f"timm {timm.__version__} knows no weights {name!r}; {architecture} has: {', '.join(tagged)}."
        )
    return name


def _create(name: str, image_hw: tuple[int, int], **options: Any) -> nn.Module:
    """An untrained timm model for this image size, in eval mode, that can give intermediates."""
    timm = _timm(name)
    cfg = timm.get_pretrained_cfg(name)
    sized = {"img_size": image_hw} if cfg is not None and cfg.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(name, **sized, **options).eval()
    except (TypeError, ValueError, AssertionError) as e:
        raise BuildError(f"timm cannot build {name} for {image_hw[0]}x{image_hw[1]} images: {e}") from e
    if not (hasattr(model, "forward_intermediates") and hasattr(model, "prune_intermediate_layers")):
        raise BuildError(f"timm's {name} cannot return intermediate maps. Choose another backbone.")
    return model


def _create_pretrained(
    name: str, model: nn.Module, image_hw: tuple[int, int]
) -> tuple[nn.Module, WeightsInfo]:
    cfg = cast(_TimmModel, model).pretrained_cfg
    hub_id = cfg.get("hf_hub_id") or cfg.get("url")
    if not hub_id:
        raise BuildError(f"timm has no pretrained weights for {name}. Name a tag, or pass --weights FILE.")
    try:
        cached = _cached_file(cfg)
        if cached is None:
            probe(_address(hub_id))
        overlay = {"file": str(cached)} if cached else None
        model = _create(name, image_hw, pretrained=True, pretrained_cfg_overlay=overlay)
    except BuildError:
        raise
    except Exception as e:  # the hub's client raises errors of several libraries; all mean "not fetched"
        raise no_download(hub_id, e) from e
    file = cached or _cached_file(cfg)
    return model, WeightsInfo(f"timm {hub_id}", sha256_of(file) if file else None)


def _address(hub_id: str) -> str:
    if "://" in hub_id:
        return hub_id
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{hub_id}"


def _cached_file(cfg: dict[str, Any]) -> Path | None:
    """The model's file in the Hugging Face cache, found without any network; None if it is not there."""
    if cfg.get("custom_load") or not cfg.get("hf_hub_id"):
        return None
    from huggingface_hub import try_to_load_from_cache

    names = [cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else _HUB_FILES
    found = (try_to_load_from_cache(cfg["hf_hub_id"], name) for name in names)
    return next((Path(f) for f in found if isinstance(f, str)), None)


def _patch_size(model: nn.Module) -> tuple[int, int]:
    size = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _reductions(model: nn.Module) -> list[int]:
    """Stride in pixels of each intermediate map."""
    return [int(f["reduction"]) for f in cast(_TimmModel, model).feature_info]


def _is_flat(model: nn.Module) -> bool:
    """Whether all maps have one stride, as in a ViT."""
    return len(set(_reductions(model))) == 1


def _indices(model: nn.Module, name: str, layers: tuple[str, ...]) -> tuple[int, ...]:
    reductions = _reductions(model)
    count = len(reductions)
    if not layers:
        mid = tuple(reductions.index(stride) for stride in (8, 16) if stride in reductions)
        return mid if len(mid) == 2 else (count - 1,)
    try:
        given = [int(layer) for layer in layers]
    except ValueError as e:
        raise BuildError(
            f"layers of {name} are indices, got {', '.join(layers)}; {_choices(reductions)}"
        ) from e
    outside = [i for i in given if not -count <= i < count]
    if outside:
        raise BuildError(f"{name} has no layer {', '.join(map(str, outside))}; {_choices(reductions)}")
    indices = tuple(i % count for i in given)
    if len(set(indices)) != len(indices):
        raise BuildError(f"layers {', '.join(layers)} of {name} name one layer twice; {_choices(reductions)}")
    return indices


def _choices(reductions: list[int]) -> str:
    strides = ", ".join(map(str, reductions))
    return f"expected 0 to {len(reductions) - 1} (strides in pixels: {strides}). Correct `layers`."


def _converted(model: nn.Module, state: dict[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Rename and resize as timm does for its own files, e.g. a ViT's position embedding."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return cast("dict[str, Tensor]", convert(state, model))
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError) as e:
        raise BuildError(f"{origin} is no checkpoint of this timm model ({type(e).__name__}: {e}).") from e
