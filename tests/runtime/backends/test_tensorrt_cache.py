"""onnxruntime's TensorRT provider: where its engines are kept, what it is asked for, and who is told.

The provider itself is recorded: its sessions run on the CPU.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import stat
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extras: cpu, gpu)")

from pcrun import AnomalyDetector, BackendError, Bundle
from pcrun.backends import device_session as device_module
from pcrun.backends import session as session_module
from pcrun.backends import tensorrt_cache as cache_module
from pcrun.backends.session import import_onnxruntime, open_embedder
from pcrun.backends.tensorrt_cache import EngineKey, cache_folder, engines_in, tensorrt_options
from pcrun.cli import main
from pcrun.machine import gpu as gpu_module
from pcrun.machine.gpu import Gpu, find_gpu, tensorrt_version
from pcrun.search import graph as graph_module
from tests.conftest import BundleMaker
from tests.data.make_tiny_bundle import IMAGE_HW
from tests.runtime.fake_tensorrt import Calls, fake_tensorrt

KEY = EngineKey("NVIDIA A/B 100", "8.7", "10.9.0", "1.22.0", "a" * 64, "fp32")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU and a TensorRT."""
    monkeypatch.setattr(cache_module, "find_gpu", lambda: Gpu("NVIDIA Fake 100", "8.7"))
    monkeypatch.setattr(cache_module, "tensorrt_version", lambda: "10.9.0")


def options_of(bundle: Bundle, **changes: Any) -> dict[str, str]:
    arguments = {"precision": "fp32", "onnxruntime": "1.22.0", "beside": bundle.path, **changes}
    return tensorrt_options(bundle.embedder, **arguments)


def quietly(bundle: Bundle) -> dict[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return options_of(bundle)


# Where engines are


def test_engines_lie_beside_the_bundle_and_never_in_it(tiny_bundle: Path, machine: None) -> None:
    before = sorted(tiny_bundle.rglob("*"))
    options = quietly(Bundle.load(tiny_bundle))
    folder = Path(options["trt_engine_cache_path"])
    assert folder.parent == tiny_bundle.with_name(tiny_bundle.name + ".trt-cache")
    assert options["trt_timing_cache_path"] == str(folder)
    assert sorted(tiny_bundle.rglob("*")) == before
    Bundle.load(tiny_bundle)


def test_the_folder_names_gpu_and_versions_and_holds_them_in_full(tmp_path: Path) -> None:
    folder = cache_folder(KEY, beside=tmp_path / "x.pcbundle")
    assert folder.name.startswith("NVIDIA-A-B-100-trt10.9.0-ort1.22.0-fp32-")
    assert json.loads((folder / "key.json").read_bytes()) == dataclasses.asdict(KEY)
    assert not stat.S_IMODE(folder.stat().st_mode) & (stat.S_IWGRP | stat.S_IWOTH)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineKey)])
def test_every_part_of_the_key_has_a_folder_of_its_own(field: str) -> None:
    # Also what a name cannot show, such as a space in place of a slash.
    changed = dataclasses.replace(KEY, **{field: getattr(KEY, field).replace("/", " ") + "1"})
    assert changed.folder_name != KEY.folder_name


def test_a_graph_that_is_in_no_bundle_yet_has_its_engines_in_the_users_cache(profile_cache: Path) -> None:
    assert cache_folder(KEY, beside=None) == profile_cache / "tensorrt" / KEY.folder_name


def test_where_nothing_can_be_written_beside_the_bundle_that_is_said(
    tmp_path: Path, profile_cache: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="cannot be kept beside the bundle .*they are in"):
        folder = cache_folder(KEY, beside=tmp_path / "file" / "x.pcbundle")
    assert folder.is_relative_to(profile_cache)


def test_where_nothing_can_be_written_at_all_that_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PCRUN_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackendError, match=r"can be kept nowhere .*\$PCRUN_CACHE"):
        cache_folder(KEY, beside=tmp_path / "file" / "x.pcbundle")


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("which", ["cache", "machine"])
def test_a_folder_into_which_others_may_write_is_refused(tmp_path: Path, which: str) -> None:
    folder = cache_folder(KEY, beside=tmp_path / "x.pcbundle")
    (folder if which == "machine" else folder.parent).chmod(0o777)
    with pytest.raises(BackendError, match=r"Others may write into .*chmod go-w"):
        cache_folder(KEY, beside=tmp_path / "x.pcbundle")


def test_engines_that_are_there_are_used_from_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache_folder(KEY, beside=tmp_path / "x.pcbundle")
    (folder / "graph.engine").write_bytes(b"engine")

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert cache_folder(KEY, beside=tmp_path / "x.pcbundle") == folder


# What is asked for, and who is told


def test_a_build_is_announced_before_it_begins_and_only_then(tiny_bundle: Path, machine: None) -> None:
    bundle = Bundle.load(tiny_bundle)
    message = r"TensorRT 10\.9\.0 builds an engine for NVIDIA Fake 100, which takes minutes.*`pcrun warmup`"
    with pytest.warns(UserWarning, match=message):
        options = options_of(bundle)
    (Path(options["trt_engine_cache_path"]) / "graph_sm87.engine").write_bytes(b"engine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options_of(bundle) == options


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_no_option_asks_for_another_precision_than_the_graphs(
    tiny_bundle: Path, machine: None, precision: str
) -> None:
    with pytest.warns(UserWarning, match="builds an engine"):
        options = options_of(Bundle.load(tiny_bundle), precision=precision)
    switches = {"trt_engine_cache_enable", "trt_timing_cache_enable"}
    paths = {"trt_engine_cache_path", "trt_timing_cache_path"}
    assert set(options) == switches | paths
    assert all(options[name] == "True" for name in switches)


def test_an_open_batch_has_a_range_so_that_no_size_builds_again(
    copied_bundle: BundleMaker, machine: None
) -> None:
    options = quietly(Bundle.load(copied_bundle(batch=None)))
    shapes = {kind: options[f"trt_profile_{kind}_shapes"] for kind in ("min", "opt", "max")}
    height, width = IMAGE_HW
    assert shapes == {
        kind: f"image:{count}x{height}x{width}x3" for kind, count in (("min", 1), ("opt", 1), ("max", 8))
    }


class Recorder:
    """An onnxruntime with GPU providers; sessions run on the CPU and say what they were asked for."""

    def __init__(self, *, starts: bool = True, builds: bool = True) -> None:
        self.real = import_onnxruntime()
        self.asked: list[Any] = []
        self.starts = starts
        self.builds = builds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, model: bytes, *, sess_options: Any, providers: list[Any], **_: Any) -> Any:
        self.asked.append(providers)
        session = self.real.InferenceSession(model, sess_options, providers=["CPUExecutionProvider"])
        first = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
        if self.builds and first == "TensorrtExecutionProvider":
            (Path(providers[0][1]["trt_engine_cache_path"]) / "TRTKernel_sm87.engine").write_bytes(b"engine")
        if self.starts:
            session.get_providers = lambda: [first]
        return session


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, machine: None) -> Recorder:
    recorder = Recorder()
    install(monkeypatch, recorder)
    return recorder


def install(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    for module in (session_module, device_module):
        monkeypatch.setattr(module, "import_onnxruntime", lambda: recorder)
    for module in (device_module, graph_module):
        monkeypatch.setattr(module, "CUDA_DEVICE", "cpu")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    # Undone at the end: the session sets it for good.
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")


def test_a_tensorrt_session_has_its_cache_cuda_behind_it_and_no_tf32(
    tiny_bundle: Path, recorder: Recorder
) -> None:
    bundle = Bundle.load(tiny_bundle)
    with pytest.warns(UserWarning, match="builds an engine"):
        open_embedder(bundle.embedder, bundle.manifest.embedding, provider="tensorrt", beside=bundle.path)
    (((name, options), cuda, cpu),) = recorder.asked
    assert (name, cpu) == ("TensorrtExecutionProvider", "CPUExecutionProvider")
    assert Path(options["trt_engine_cache_path"]).is_relative_to(tiny_bundle.parent)
    assert cuda == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_detector_on_a_gpu_searches_there_too(
    tiny_bundle: Path, recorder: Recorder, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = AnomalyDetector.load(tiny_bundle, provider=provider, profile=False)
    assert (detector.provider, detector.search, detector.copies) == (provider, "exact_graph", True)
    # The search is CUDA's on both: TensorRT would build it anew for every bank.
    search, embedder = recorder.asked
    assert search[0] == ("CUDAExecutionProvider", {"use_tf32": "0"}) and len(search) == 2
    assert embedder[0][0].lower().startswith(provider)
    monkeypatch.setattr(
        device_module.DeviceEmbeddings, "host", lambda self: pytest.fail("copied to the host")
    )
    plain = AnomalyDetector.load(tiny_bundle, provider="cpu", search="exact", profile=False)
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE_HW, 3), np.uint8)
    assert detector(image).image_score == pytest.approx(plain(image).image_score, rel=1e-5)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_provider_that_does_not_come_up_is_an_error(
    tiny_bundle: Path, machine: None, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    install(monkeypatch, Recorder(starts=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BackendError, match=f"'{provider}' was asked for, but onnxruntime started on CPU"):
            AnomalyDetector.load(tiny_bundle, provider=provider, search="exact", profile=False)


# pcrun warmup


def test_warmup_builds_the_engine_and_says_where(
    tiny_bundle: Path, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["warmup", "--bundle", str(tiny_bundle), "--provider", "tensorrt"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "builds an engine" in err and "provider tensorrt fp32, search exact_graph: opened in" in out
    cache = tiny_bundle.with_name(tiny_bundle.name + ".trt-cache")
    assert f"engines built now, in {cache}" in out
    (folder,) = cache.iterdir()
    (engine,) = engines_in(folder)
    recorder.builds = False
    os.utime(engine, (1, 1))
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert (facts["engine_folder"], facts["engines_built"]) == (str(folder), False)
    assert facts["opened_s"] > 0 and facts["first_ms"] > 0 and "builds an engine" not in err


def test_warmup_notices_that_tensorrt_took_nothing(
    tiny_bundle: Path, machine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Recorder(builds=False))
    assert main(["warmup", "--bundle", str(tiny_bundle), "--provider", "tensorrt"]) == 2
    assert "kept no engine in" in capsys.readouterr().err


def test_warmup_says_where_there_is_nothing_to_build(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["warmup", "--bundle", str(tiny_bundle), "--provider", "cpu"]) == 0
    assert "cpu builds nothing that could be kept: each start takes as long" in capsys.readouterr().out


def test_a_warning_is_shown_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    from pcrun.commands.run import warnings_on_stderr

    with warnings_on_stderr():
        warnings.warn("minutes of waiting begin", stacklevel=1)
        assert capsys.readouterr().err == "pcrun: warning: minutes of waiting begin\n"


# What is on this machine


def driver(*, broken: str | None = None) -> SimpleNamespace:
    """CUDA's driver with one GPU."""
    attributes = {75: 8, 76: 7}

    def get_name(name: Any, size: int, device: Any) -> int:
        name.value = b"Orin"
        return 0

    def get_attribute(value: Any, attribute: int, device: Any) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = attributes[attribute]
        return 0

    functions = {
        "cuInit": lambda flags: 0,
        "cuDeviceGet": lambda device, number: 0,
        "cuDeviceGetName": get_name,
        "cuDeviceGetAttribute": get_attribute,
    }
    if broken:
        functions[broken] = lambda *_: 100
    return SimpleNamespace(**functions)


def test_the_gpu_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "_load", lambda name: driver())
    assert find_gpu() == Gpu("Orin", "8.7")


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGet"])
def test_a_driver_that_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.setattr(gpu_module, "_load", lambda name: driver(broken=function))
    with pytest.raises(BackendError, match=rf"driver does not work \({function} gives error 100\)"):
        find_gpu()


def test_a_missing_driver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "_DRIVER", "no-such-library.so.1")
    with pytest.raises(BackendError, match=r"No NVIDIA driver was found.*--provider cpu"):
        find_gpu()


def test_tensorrts_version_is_its_packages_or_its_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module.importlib.util, "find_spec", lambda name: None)
    libraries = {"libnvinfer.so.10": SimpleNamespace(getInferLibVersion=lambda: 100_304)}
    monkeypatch.setattr(gpu_module, "_load", libraries.get)
    assert tensorrt_version() == "10.3.4"
    monkeypatch.setattr(gpu_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(Calls(), version="10.9.0.34"))
    assert tensorrt_version() == "10.9.0.34"


def test_a_missing_tensorrt_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "_load", lambda name: None)
    monkeypatch.setattr(gpu_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"TensorRT was not found.*patchcore-edge\[tensorrt\]"):
        tensorrt_version()
