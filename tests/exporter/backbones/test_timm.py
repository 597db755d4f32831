"""Backbones of timm: DINOv2 and others."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from pcexport.errors import BuildError  # noqa: E402
from tests.exporter.backbones.untrained import (  # noqa: E402
    DINOV2,
    hooked_maps,
    images,
    load,
    needs_timm,
    saved,
    small_state,
)


def test_dinov2_gives_a_grid_of_14_pixel_patches() -> None:
    needs_timm()
    backbone = load(DINOV2, hw=(98, 56))
    assert (backbone.layers, backbone.channels, backbone.grids) == (("11",), (384,), ((7, 4),))
    assert backbone.mean == (0.485, 0.456, 0.406)


def test_vit_map_keeps_the_position_of_patches() -> None:
    needs_timm()
    backbone = load("timm:vit_tiny_patch16_224", ("0",), hw=(32, 64))
    with torch.no_grad():  # without attention and position embedding, each token sees only its own patch
        backbone.extractor.model.blocks[0].attn.proj.weight.zero_()
        backbone.extractor.model.pos_embed.zero_()
    x = torch.zeros(1, 3, 32, 64)
    changed = x.clone()
    changed[:, :, 16:32, 48:64] = images(1, 3, 16, 16)  # the patch in row 1, column 3
    moved = (backbone.extractor(x)[0] - backbone.extractor(changed)[0]).abs().sum(1)[0] > 1e-4
    assert moved.nonzero().tolist() == [[1, 3]]


def test_image_that_patches_do_not_tile_is_refused_with_the_nearest_sizes() -> None:
    needs_timm()
    with pytest.raises(BuildError, match=r"multiples of 14 pixels\. Use 56x56 or 70x70"):
        load(DINOV2, hw=(60, 64))
    with pytest.raises(BuildError, match=r"multiples of 16 pixels\. Use 48x64 or 64x64"):
        load("timm:vit_tiny_patch16_224", hw=(60, 64))


def test_timm_layers_keep_the_order_given_and_drop_deeper_blocks() -> None:
    needs_timm()
    x = images(1, 3, 64, 64)
    forward = load("timm:vit_tiny_patch16_224", ("1", "3"), hw=(64, 64))
    turned = load("timm:vit_tiny_patch16_224", ("-9", "1"), hw=(64, 64))
    assert turned.layers == ("3", "1")
    torch.testing.assert_close(turned.extractor(x), forward.extractor(x)[::-1])
    assert len(forward.extractor.model.blocks) == 4


def test_timm_cnn_without_layers_reads_strides_8_and_16() -> None:
    needs_timm()
    assert load("timm:resnet18", hw=(64, 96)).grids == ((8, 12), (4, 6))


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("timm:vit_smal_patch14_dinov2", None, "near it are timm:vit_small_patch14_dinov2"),
        ("timm:resnet18.a9_in9k", None, "knows no weights 'resnet18.a9_in9k'; resnet18 has: .*a1_in1k"),
        ("timm:resnet18", ("5",), "no layer 5; expected 0 to 4"),
        ("timm:resnet18", ("layer2",), "are indices, got layer2"),
        ("timm:resnet18", ("-1", "4"), "one layer twice"),
    ],
)
def test_wrong_timm_name_or_layer_is_a_build_error(
    name: str, layers: tuple[str, ...] | None, message: str
) -> None:
    needs_timm()
    with pytest.raises(BuildError, match=message):
        load(name, layers)


def test_vit_weights_of_another_image_size_are_resized_to_this_one(tmp_path: Path) -> None:
    needs_timm()
    trained = load("timm:vit_tiny_patch16_224", hw=(64, 64), seed=5)
    state = trained.extractor.model.state_dict()
    backbone = load("timm:vit_tiny_patch16_224", hw=(32, 96), weights=saved(tmp_path / "w.pth", state))
    assert backbone.extractor.model.pos_embed.shape == (1, 1 + 2 * 6, 192)
    torch.testing.assert_close(
        backbone.extractor.model.blocks[11].mlp.fc1.weight, state["blocks.11.mlp.fc1.weight"]
    )


def test_file_of_another_network_for_timm_names_what_is_missing(tmp_path: Path) -> None:
    needs_timm()
    with pytest.raises(BuildError, match=r"used parameters are missing: .*cls_token"):
        load("timm:vit_tiny_patch16_224", hw=(32, 32), weights=saved(tmp_path / "w.pth", small_state()))


def test_timm_default_without_network_names_the_hub_id_and_the_way_out(
    offline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs_timm()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    with pytest.raises(BuildError, match=r"timm/resnet18.a1_in1k .*--weights FILE"):
        load("timm:resnet18.a1_in1k", weights="default")


def test_timm_default_is_read_from_the_hub_cache_without_network(
    offline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs_timm()
    save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
    import timm

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--timm--resnet18.a1_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    file = repo / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    full = timm.create_model("resnet18").eval()
    save_file(full.state_dict(), file)
    backbone = load("timm:resnet18.a1_in1k", weights="default")
    assert backbone.weights.source == "timm timm/resnet18.a1_in1k"
    assert backbone.weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    x = images(1, 3, 64, 96)
    torch.testing.assert_close(backbone.extractor(x), hooked_maps(full, ("layer2", "layer3"), x))


def test_missing_timm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BuildError, match=r"pip install 'patchcore-edge\[timm\]'"):
        load(DINOV2, hw=(56, 56))
