"""Backbones of the table and other CNNs: what they return, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from pcexport.backbones.registry import find_backbone, list_backbones, nearest  # noqa: E402
from pcexport.errors import BuildError  # noqa: E402
from tests.exporter.backbones.untrained import DINOV2, hooked_maps, images, load, needs_timm, untrained_model  # noqa: E402

EXPECTED = {  # name: (channels, strides in pixels)
    "resnet18": ((128, 256), (8, 16)),
    "resnet34": ((128, 256), (8, 16)),
    "resnet50": ((512, 1024), (8, 16)),
    "resnet101": ((512, 1024), (8, 16)),
    "wide_resnet50_2": ((512, 1024), (8, 16)),
    "mobilenet_v2": ((32, 96), (8, 16)),
    "mobilenet_v3_large": ((40, 112), (8, 16)),
    "mobilenet_v3_small": ((24, 48), (8, 16)),
    "efficientnet_b0": ((40, 112), (8, 16)),
    "regnet_y_400mf": ((104, 208), (8, 16)),
    "convnext_tiny": ((192, 384), (8, 16)),
    DINOV2: ((384,), (14,)),
}


# ---- the table


def test_every_table_entry_has_expected_maps_listed_here() -> None:
    assert {spec.name for spec in list_backbones()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_table_entry_gives_the_stated_channels_and_strides(name: str) -> None:
    if name.startswith("timm:"):
        needs_timm()
    channels, strides = EXPECTED[name]
    hw = (56, 84) if strides == (14,) else (64, 96)
    backbone = load(name, hw=hw)
    maps = backbone.extractor(images(2, 3, *hw))
    assert backbone.channels == channels
    assert backbone.grids == tuple((hw[0] // s, hw[1] // s) for s in strides)
    assert [tuple(m.shape) for m in maps] == [
        (2, c, *g) for c, g in zip(channels, backbone.grids, strict=True)
    ]
    assert all(m.dtype == torch.float32 and not m.requires_grad for m in maps)
    assert str(sum(channels)) in find_backbone(name).note


def test_registry_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "from pcexport.backbones.registry import find_backbone, list_backbones\n"
        "from pcexport.errors import BuildError\n"
        "print(len(list_backbones()), find_backbone('resnet18').default_layers)\n"
        "try: find_backbone('resnt18')\n"
        "except BuildError as e: print(e)\n"
    )
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(EXPECTED)} ('layer2', 'layer3')" in done.stdout
    assert "nearest known one is 'resnet18'" in done.stdout


# ---- names


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnt18", "resnet18"), ("wideresnet50", "wide_resnet50_2"), (DINOV2.removeprefix("timm:"), DINOV2)],
)
def test_unknown_backbone_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(BuildError, match=f"nearest known one is '{near}'"):
        find_backbone(name)


def test_other_torchvision_cnn_needs_layers_and_then_works() -> None:
    with pytest.raises(BuildError, match="'shufflenet_v2_x0_5' has no default layers"):
        find_backbone("shufflenet_v2_x0_5")
    assert load("shufflenet_v2_x0_5", ("stage2", "stage3")).channels == (48, 96)


def test_torchvision_transformer_is_refused() -> None:
    with pytest.raises(BuildError, match=r"swin_t does not give .* maps"):
        find_backbone("swin_t", ("features.1",))


def test_unknown_layer_names_near_ones() -> None:
    with pytest.raises(BuildError, match="no layer 'layr2', near layer2"):
        load("resnet18", ("layr2", "layer3"))


def test_layer_without_a_map_is_refused() -> None:
    with pytest.raises(BuildError, match=r"'flatten' of resnet18 gives \(1, 512\), not a"):
        load("resnet18", ("flatten",))


def test_layer_named_twice_is_refused() -> None:
    with pytest.raises(BuildError, match="one layer twice"):
        load("resnet18", ("layer2", "layer2"))


def test_nearest_orders_by_likeness() -> None:
    assert nearest("layer22", ["layer4", "conv1", "layer2"], n=2) == ["layer2", "layer4"]


# ---- what the extractor computes


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ("layer2", "layer3")),
        ("resnet18", ("layer3", "layer2")),
        ("resnet18", ("layer2.0.bn2", "layer3")),  # followed by an in-place `out += identity`
        ("squeezenet1_1", ("features.0", "features.6")),  # a convolution followed by an in-place ReLU
        ("mobilenet_v3_small", ("features.3", "features.8")),
    ],
)
def test_features_equal_those_of_hooks_on_the_full_model(name: str, layers: tuple[str, ...]) -> None:
    x = images(2, 3, 64, 96)
    expected = hooked_maps(untrained_model(name), layers, x)
    got = load(name, layers).extractor(x)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_parameters_of_unused_layers_are_gone() -> None:
    names = [n for n, _ in load("resnet18").extractor.named_parameters()]
    assert any("layer3" in n for n in names)
    assert not any("layer4" in n or "fc" in n for n in names)


def test_extractor_stays_frozen_inside_a_module_set_to_train() -> None:
    extractor = load("resnet18").extractor
    before = {k: v.clone() for k, v in extractor.state_dict().items()}
    torch.nn.Sequential(extractor).train()
    extractor(images(2, 3, 64, 96))
    assert not any(m.training for m in extractor.modules())
    assert not any(p.requires_grad for p in extractor.parameters())
    assert all(torch.equal(v, before[k]) for k, v in extractor.state_dict().items())


def test_untrained_is_the_same_for_a_seed_and_another_for_another() -> None:
    x = images(1, 3, 64, 96)
    first, again, other = (load("mobilenet_v3_small", seed=s) for s in (3, 3, 4))
    assert torch.equal(first.extractor(x)[1], again.extractor(x)[1])
    assert not torch.equal(first.extractor(x)[1], other.extractor(x)[1])
    assert first.weights.source == "untrained (seed 3)" and first.weights.sha256 is None


@pytest.mark.parametrize("grad", [True, False])
def test_global_random_state_and_grad_mode_do_not_change(grad: bool) -> None:
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad):
        torch.manual_seed(1234)
        before = torch.get_rng_state()
        load("mobilenet_v3_small", seed=3)
        assert torch.is_grad_enabled() is grad
        assert torch.equal(torch.get_rng_state(), before)


def test_image_too_small_for_the_network_is_a_build_error() -> None:
    with pytest.raises(BuildError, match="cannot process images of 8x8 pixels"):
        load("squeezenet1_1", ("features.12",), hw=(8, 8))
