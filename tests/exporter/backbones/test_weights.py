"""Where weights come from: files, the cache, the network; and which are refused."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from pathlib import Path
from urllib.error import URLError

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed (extra: export)")

from pcexport.backbones import download  # noqa: E402
from pcexport.errors import BuildError  # noqa: E402
from tests.exporter.backbones.untrained import hooked_maps, images, load, saved, small_state, untrained_model  # noqa: E402

# ---- weights from a file


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
    path = saved(tmp_path / "w.pth", {**state, "ema.decay": torch.ones(1)})
    x = images(1, 3, 64, 96)
    found = load("mobilenet_v3_small", weights=path).extractor(x)
    torch.testing.assert_close(found, load("mobilenet_v3_small", seed=5).extractor(x), rtol=0, atol=0)


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
        ("w.pth", b"not weights at all", r"w.pth is not one that torch.save wrote: .*b'not weights at a'"),
        ("w.pth", b"hello", "w.pth is not one that torch.save wrote"),
        ("w.pth", b"", "w.pth is empty"),
        ("w.pth", b"PK\x03\x04 cut short", r"w.pth cannot be read: [^.]*[^.]\. Expected"),
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
