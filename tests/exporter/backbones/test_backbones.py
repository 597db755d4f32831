"""Backbones: what they return, where their weights come from, and what they refuse."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import URLError

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed (extra: export)")

from pcexport.backbones import download  # noqa: E402
from pcexport.backbones.loader import LoadedBackbone, load_backbone  # noqa: E402
from pcexport.backbones.registry import find_backbone, list_backbones, nearest  # noqa: E402
from pcexport.errors import BuildError  # noqa: E402

DINOV2 = "timm:vit_small_patch14_dinov2.lvd142m"
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


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network and an empty torch.hub cache; returns the cache's checkpoint folder."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise URLError("no route to host (simulated)")

    monkeypatch.setattr(download, "urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return Path(torch.hub.get_dir()) / "checkpoints"


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


# ---- weights from a file


def saved(path: Path, state: object) -> str:
    torch.save(state, path)
    return str(path)


def small_state(seed: int = 5) -> dict[str, torch.Tensor]:
    return untrained_model("mobilenet_v3_small", seed).state_dict()


@pytest.mark.parametrize("form", ["pth", "nested", "safetensors"])
def test_file_gives_the_features_of_the_model_it_was_saved_from(form: str, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    state = small_state()
    if form == "safetensors":
        pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file(state, path)
    else:
        saved(path, {"epoch": 3, "state_dict": state} if form == "nested" else state)
    x = images(1, 3, 64, 96)
    backbone = load("mobilenet_v3_small", weights=str(path), seed=0)
    torch.testing.assert_close(
        backbone.extractor(x), load("mobilenet_v3_small", seed=5).extractor(x), rtol=0, atol=0
    )
    assert backbone.weights.source == f"file {path.name}"
    assert backbone.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_file_may_lack_unused_layers_and_batch_counters_and_hold_foreign_names(tmp_path: Path) -> None:
    state = {
        k: v for k, v in small_state().items() if "num_batches" not in k and not k.startswith("features.9")
    }
    state = {k: v for k, v in state.items() if not k.startswith("classifier")}
    load("mobilenet_v3_small", weights=saved(tmp_path / "w.pth", {**state, "ema.decay": torch.ones(1)}))


def test_all_missing_and_misshapen_used_parameters_are_in_one_error(tmp_path: Path) -> None:
    state = small_state()
    del state["features.0.0.weight"], state["features.8.block.0.0.weight"]
    state["features.1.block.0.0.weight"] = torch.zeros(16, 1, 5, 5)
    state["features.0.1.bias"] = state["features.0.1.bias"].to(torch.int8)
    state["module.extra"] = torch.zeros(1)
    with pytest.raises(BuildError) as error:
        load("mobilenet_v3_small", weights=saved(tmp_path / "w.pth", state))
    message = str(error.value)
    assert "2 used parameters are missing: features.0.0.weight, features.8.block.0.0.weight" in message
    assert "2 have another shape or type" in message
    assert (
        "features.1.block.0.0.weight (file: (16, 1, 5, 5) float32, expected (16, 1, 3, 3) float32)" in message
    )
    assert "features.0.1.bias (file: (16,) int8, expected (16,) float32)" in message
    assert "module.extra" in message


def test_long_list_of_missing_parameters_is_cut_with_a_count(tmp_path: Path) -> None:
    weights = saved(tmp_path / "w.pth", {"features.0.0.weight": torch.zeros(16, 3, 3, 3)})
    with pytest.raises(BuildError, match=r"used parameters are missing: (\S+, ){9}\S+ and \d+ more") as error:
        load("mobilenet_v3_small", weights=weights)
    assert len(str(error.value)) < 1000


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    victim = tmp_path / "executed"
    weights = saved(tmp_path / "w.pth", {**small_state(), "evil": Touch(victim)})
    with pytest.raises(BuildError, match=r"was refused: .* could run code"):
        load("mobilenet_v3_small", weights=weights)
    assert not victim.exists()
    torch.load(weights, weights_only=False)
    assert victim.exists(), "the file was harmless, so the test above proved nothing"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"not weights at all", "w.pth was refused: it is damaged"),
        ("w.pth", b"", "w.pth cannot be read"),
        ("w.pth", b"PK\x03\x04 cut short", "w.pth cannot be read"),
        ("w.safetensors", b"\x00\x01", "w.safetensors cannot be read"),
        ("w.npz", b"x", "neither 'default', 'untrained' nor a .pth"),
        ("w.pt", pickle.dumps([1, 2], protocol=2), "w.pt cannot be read"),
        ("w.pth", None, "does not exist"),
    ],
)
def test_unusable_weights_file_is_a_build_error(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BuildError, match=message):
        load("mobilenet_v3_small", weights=str(tmp_path / name))


def test_file_without_named_tensors_is_a_build_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="holds no named tensors"):
        load("mobilenet_v3_small", weights=saved(tmp_path / "w.pth", [torch.zeros(1)]))


# ---- pretrained weights


def test_default_without_network_names_the_v1_url_and_the_way_out(offline: Path) -> None:
    # wide_resnet50_2's DEFAULT is V2 (…-9ba9bcbe.pth); the published PatchCore numbers need V1.
    with pytest.raises(BuildError, match=r"models/wide_resnet50_2-95faca4d.pth .*--weights FILE"):
        load("wide_resnet50_2", weights="default")
    assert not offline.exists()


def test_probe_gives_up_in_time_on_a_network_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def hang(*_args: object, **_kwargs: object) -> None:
        never.wait(30)
        raise URLError("the test is over")

    monkeypatch.setattr(download, "urlopen", hang)
    start = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        download.probe("https://example.invalid/w.pth", timeout_s=0.2)
    assert time.perf_counter() - start < 5
    never.set()
    assert download.PROBE_TIMEOUT_S <= 15


def test_cached_default_weights_are_used_without_network(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline.mkdir(parents=True)
    saved(offline / "w.pth", small_state())
    sha256 = hashlib.sha256((offline / "w.pth").read_bytes()).hexdigest()
    member = torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(member), "url", f"https://example.invalid/net-{sha256[:8]}.pth")
    (offline / "w.pth").rename(offline / f"net-{sha256[:8]}.pth")
    backbone = load("mobilenet_v3_small", weights="default")
    assert backbone.weights.source == "torchvision MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    assert backbone.weights.sha256 == sha256
    x = images(1, 3, 64, 96)
    torch.testing.assert_close(backbone.extractor(x), load("mobilenet_v3_small", seed=5).extractor(x))


def test_damaged_cached_weights_are_refused(offline: Path) -> None:
    offline.mkdir(parents=True)
    (offline / "resnet18-f37072fd.pth").write_bytes(b"cut short")
    with pytest.raises(BuildError, match=r"are damaged: .* expected f37072fd\. Delete the file"):
        load("resnet18", weights="default")


# ---- timm


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


# ---- real weights


@pytest.mark.realdata
def test_resnet18_file_without_layer4_loads_for_layers_2_and_3_exactly(realdata_dir: Path) -> None:
    path = realdata_dir / "weights" / "resnet18_torchvision_conv1-layer3.pth"
    state = torch.load(path, weights_only=True)
    backbone = load("resnet18", weights=str(path))
    full = untrained_model("resnet18")
    full.load_state_dict(state, strict=False)
    x = images(1, 3, 64, 96)
    torch.testing.assert_close(backbone.extractor(x), hooked_maps(full, backbone.layers, x))
    assert backbone.weights.sha256 is not None and backbone.weights.sha256.startswith("474b9457")


@pytest.mark.realdata
def test_resnet18_file_without_layer4_is_refused_when_layer4_is_used(realdata_dir: Path) -> None:
    path = realdata_dir / "weights" / "resnet18_torchvision_conv1-layer3.pth"
    with pytest.raises(BuildError, match=r"25 used parameters are missing: layer4\.0\.conv1\.weight"):
        load("resnet18", ("layer3", "layer4"), weights=str(path))


@pytest.mark.realdata
def test_complete_mobilenet_v2_file_loads_exactly(realdata_dir: Path) -> None:
    path = realdata_dir / "weights" / "mobilenet_v2_tf2ptq_dequant_imagenetnorm.pth"
    full = untrained_model("mobilenet_v2")
    full.load_state_dict(torch.load(path, weights_only=True))
    backbone = load("mobilenet_v2", weights=str(path))
    x = images(1, 3, 64, 96)
    torch.testing.assert_close(backbone.extractor(x), hooked_maps(full, backbone.layers, x))
