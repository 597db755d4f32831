"""What the tests of backbones share: networks without weights."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed (extra: export)")

from pcexport.backbones.loader import LoadedBackbone, load_backbone  # noqa: E402
from pcexport.backbones.registry import find_backbone  # noqa: E402

DINOV2 = "timm:vit_small_patch14_dinov2.lvd142m"


def load(
    name: str, layers: tuple[str, ...] | None = None, *, weights: str = "untrained", hw=(64, 96), seed=0
) -> LoadedBackbone:
    return load_backbone(find_backbone(name, layers), weights=weights, image_hw=hw, seed=seed)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def needs_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra: timm)")


def hooked_maps(model: torch.nn.Module, layers: tuple[str, ...], x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of submodules of the full model, copied before anything can overwrite them."""
    seen: dict[str, torch.Tensor] = {}
    for layer in layers:
        module = model.get_submodule(layer)
        module.register_forward_hook(lambda _m, _i, out, layer=layer: seen.update({layer: out.clone()}))
    with torch.no_grad():
        model.eval()(x)
    return [seen[layer] for layer in layers]


def untrained_model(name: str, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torchvision.models.get_model(name, weights=None)


def saved(path: Path, state: object) -> str:
    torch.save(state, path)
    return str(path)


def small_state(seed: int = 5) -> dict[str, torch.Tensor]:
    return untrained_model("mobilenet_v3_small", seed).state_dict()
