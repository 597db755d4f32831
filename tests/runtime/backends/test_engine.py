"""Native TensorRT engines: what is built, what is checked before one is loaded, how one is run.

TensorRT and CUDA are recorded fakes: the order of calls is looked at, no number of theirs.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extras: cpu, gpu)")

from pcrun import AnomalyDetector, BackendError, Bundle, BundleError
from pcrun.backends import engine_file as engine_module
from pcrun.backends import tensorrt_build as build_module
from pcrun.backends import tensorrt_session as session_module
from pcrun.backends.engine_file import header_path, load_engine
from pcrun.backends.session import ENGINE_PROVIDER
from pcrun.backends.tensorrt_build import build_engine, engine_precision
from pcrun.backends.tensorrt_session import TensorRtEmbedder, import_cuda
from pcrun.cli import main
from pcrun.machine import gpu as gpu_module
from pcrun.machine.gpu import Gpu, import_tensorrt
from tests.conftest import BundleMaker
from tests.data.make_tiny_bundle import IMAGE_HW, smooth_image
from tests.runtime.fake_tensorrt import PLAN, Calls, FakeCuda, fake_tensorrt

GPU = Gpu("NVIDIA Fake 100", "8.7")
MODULES = (build_module, session_module, engine_module)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """TensorRT 10 and a GPU, both recorded."""
    recorded = Calls()
    install(monkeypatch, fake_tensorrt(recorded))
    monkeypatch.setattr(session_module, "import_cuda", lambda: FakeCuda(recorded))
    return recorded


def install(monkeypatch: pytest.MonkeyPatch, tensorrt: Any, gpu: Gpu = GPU) -> None:
    from pcrun.commands import compile as compile_command

    for module in (*MODULES, compile_command):
        monkeypatch.setattr(module, "import_tensorrt", lambda: tensorrt)
    for module in (engine_module, compile_command):
        monkeypatch.setattr(module, "find_gpu", lambda: gpu)


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(11)
    return np.stack([smooth_image(rng) for _ in range(4)])


Compile = Callable[..., Path]


@pytest.fixture
def compile_engine(calls: Calls, tmp_path: Path) -> Compile:
    """`pcrun compile`, which must succeed; gives the engine's path."""

    def run(bundle: Path, *arguments: str) -> Path:
        output = tmp_path / "line.engine"
        assert main(["compile", "--bundle", str(bundle), "-o", str(output), *arguments]) == 0
        return output

    return run


# What is built


def test_compile_writes_an_engine_and_a_header_that_says_what_it_is(
    tiny_bundle: Path, compile_engine: Compile, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, bundle = compile_engine(tiny_bundle), Bundle.load(tiny_bundle)
    assert engine.read_bytes() == PLAN + bundle.embedder
    header = json.loads(header_path(engine).read_bytes())
    assert (header["bundle"], header["gpu"], header["compute_capability"]) == (
        bundle.digest,
        *dataclasses.astuple(GPU),
    )
    assert (header["tensorrt"], header["precision"], header["flips"]) == ("10.9.0", "fp32", [])
    assert header["image"] == {"name": "image", "dtype": "uint8", "dims": [1, *IMAGE_HW, 3]}
    assert header["golden_samples"] == len(bundle.golden_samples().samples)
    out, err = capsys.readouterr()
    assert "TensorRT 10.9.0 builds an engine in fp32 for NVIDIA Fake 100; this takes minutes" in err
    assert "golden samples differ by at most 0 (relative), all verdicts are the same" in out


def test_the_network_is_strongly_typed_and_never_rounds_to_tf32(
    tiny_bundle: Path, compile_engine: Compile, calls: Calls
) -> None:
    compile_engine(tiny_bundle)
    assert calls.of("create_network") == [(1 << 1,)]
    assert calls.of("parse") == [(Bundle.load(tiny_bundle).embedder,)]
    assert calls.of("clear_flag") == [("TF32",)] and calls.of("set_flag") == []


def test_float16_of_a_float32_bundle_is_tensorrts_own_choice(
    tiny_bundle: Path, compile_engine: Compile, calls: Calls
) -> None:
    engine = compile_engine(tiny_bundle, "--precision", "fp16")
    assert calls.of("create_network") == [(0,)] and calls.of("set_flag") == [("FP16",)]
    assert json.loads(header_path(engine).read_bytes())["precision"] == "fp16"


def test_an_open_batch_gets_a_range_of_sizes(
    copied_bundle: BundleMaker, compile_engine: Compile, calls: Calls
) -> None:
    engine = compile_engine(copied_bundle(batch=None))
    one, eight = (1, *IMAGE_HW, 3), (8, *IMAGE_HW, 3)
    assert calls.of("set_shape") == [("image", one, one, eight)] and "add_profile" in calls.names()
    assert json.loads(header_path(engine).read_bytes())["image"]["dims"][0] == -1


@pytest.mark.parametrize(
    "stored, wanted, fp16_flag, message",
    [
        ("fp32", "fp16", False, "types that a graph states.*--precision fp16"),
        ("fp32", "int8", True, "--precision int8 --int8-activations signed"),
        ("fp16", "fp32", True, "computes in fp16, fp32 was asked for"),
        ("int8", "fp16", True, "computes in int8, fp16 was asked for"),
        ("bf16", None, True, "built for bfloat16 in OpenVINO"),
    ],
)
def test_precisions_that_no_engine_can_be_made_of(
    stored: str, wanted: str | None, fp16_flag: bool, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        engine_precision(stored, wanted, fake_tensorrt(Calls(), version="11.4.0", fp16_flag=fp16_flag))


@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8"])
def test_the_bundles_own_precision_needs_no_flag(stored: str) -> None:
    assert engine_precision(stored, None, fake_tensorrt(Calls(), fp16_flag=False)) == stored


def test_a_graph_that_tensorrt_cannot_read_is_an_error_with_its_reason(
    tiny_bundle: Path, calls: Calls
) -> None:
    calls.parse_error = "In node 3:\n unsupported"
    with pytest.raises(BackendError, match="cannot read the bundle's embedder: In node 3: unsupported"):
        build_engine(Bundle.load(tiny_bundle), "fp32")


def test_unsigned_rounding_is_named_as_what_to_change(tiny_bundle: Path, calls: Calls) -> None:
    bundle = Bundle.load(tiny_bundle)
    spec = dataclasses.replace(bundle.manifest.embedding, precision="int8")
    rounded = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, embedding=spec))
    calls.parse_error = "unsupported ONNX data type: UINT8"
    with pytest.raises(BackendError, match=r"UINT8.*--int8-activations signed"):
        build_engine(rounded, "int8")


def test_a_failed_build_is_an_error_with_tensorrts_reason(tiny_bundle: Path, calls: Calls) -> None:
    calls.build_fails = True
    with pytest.raises(BackendError, match="cannot build the bundle's embedder: no kernel fits in memory"):
        build_engine(Bundle.load(tiny_bundle), "fp32")


# Verdicts that change


def test_flips_stop_the_compilation_and_nothing_is_written(
    tiny_bundle: Path, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.factor = 0.2
    output = tmp_path / "line.engine"
    assert main(["compile", "--bundle", str(tiny_bundle), "-o", str(output)]) == 2
    message = capsys.readouterr().err
    assert "samples/" in message and "in place of" in message and "--allow-flips" in message
    assert not output.exists() and not header_path(output).exists()


def test_flips_can_be_allowed_and_are_told_at_every_start(
    tiny_bundle: Path, compile_engine: Compile, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.factor = 0.2
    engine = compile_engine(tiny_bundle, "--allow-flips")
    header = json.loads(header_path(engine).read_bytes())
    assert header["flips"] and header["flips_allowed"] and header["largest_difference"] > 0.05
    assert "verdicts change" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"runs on tensorrt-engine fp32.*verdicts are others \(samples/"):
        AnomalyDetector.load(tiny_bundle, engine=engine)


# How one is run


@pytest.mark.parametrize("batch", [1, 3, None])
def test_an_engine_gives_its_own_output_for_any_number_of_images(
    copied_bundle: BundleMaker, compile_engine: Compile, calls: Calls, batch: int | None
) -> None:
    path = copied_bundle(batch=batch)
    bundle = Bundle.load(path)
    embedder = TensorRtEmbedder(load_engine(compile_engine(path), bundle), bundle.manifest.embedding)
    plain = AnomalyDetector.load(path, provider="cpu", profile=False)._embedder
    rng = np.random.default_rng(1)
    calls.asked.clear()
    for count in (1, 2, 10):
        images = np.stack([smooth_image(rng) for _ in range(count)])
        assert np.array_equal(embedder.embed(images), plain.embed(images))
    sizes = [shape[0] for (shape,) in calls.of("set_input_shape")]
    assert sizes == {1: [1] * 13, 3: [3] * 6, None: [1, 2, 8, 2]}[batch]


def test_memory_is_allocated_once_and_given_back(
    tiny_bundle: Path, compile_engine: Compile, calls: Calls, images: np.ndarray
) -> None:
    bundle = Bundle.load(tiny_bundle)
    engine = load_engine(compile_engine(tiny_bundle), bundle)
    gc.collect()
    calls.asked.clear()
    embedder = TensorRtEmbedder(engine, bundle.manifest.embedding)
    for image in images:
        embedder.embed(image[None])
    made = {"cudaMalloc": 2, "cudaMallocHost": 2, "cudaStreamCreate": 1, "deserialise": 1}
    assert {name: calls.names().count(name) for name in made} == made
    per_image = ["cudaMemcpyAsync", "cudaStreamSynchronize", "set_input_shape", "execute"]
    per_image += ["cudaStreamSynchronize", "cudaMemcpyAsync", "cudaStreamSynchronize"]
    assert calls.names()[6:] == per_image * len(images)
    del embedder
    gc.collect()
    freed = {"cudaFree": 2, "cudaFreeHost": 2, "cudaStreamDestroy": 1}
    assert {name: calls.names().count(name) for name in freed} == freed


def test_a_result_is_not_overwritten_by_the_next_call(
    tiny_bundle: Path, compile_engine: Compile, images: np.ndarray
) -> None:
    bundle = Bundle.load(tiny_bundle)
    embedder = TensorRtEmbedder(load_engine(compile_engine(tiny_bundle), bundle), bundle.manifest.embedding)
    first = embedder.embed(images[:1])
    kept = first.copy()
    embedder.embed(images[1:2])
    assert np.array_equal(first, kept)


def test_a_detector_runs_an_engine_and_states_its_copies(
    tiny_bundle: Path, compile_engine: Compile, images: np.ndarray
) -> None:
    engine = compile_engine(tiny_bundle)
    with pytest.warns(UserWarning, match="runs on tensorrt-engine fp32, the build used"):
        detector = AnomalyDetector.load(tiny_bundle, engine=engine, profile=False)
    assert (detector.provider, detector.precision, detector.copies) == (ENGINE_PROVIDER, "fp32", True)
    # No CUDA in this onnxruntime: the search is the processor's.
    assert detector.search == "quantised"
    plain = AnomalyDetector.load(tiny_bundle, provider="cpu", profile=False)
    result = detector(images[0])
    assert result.image_score == plain(images[0]).image_score
    assert result.timings.host_to_device_ms is not None and result.timings.device_to_host_ms is not None


@pytest.mark.parametrize("command", [["selftest"], ["warmup"], ["--images"]])
def test_commands_take_an_engine(
    tiny_bundle: Path, compile_engine: Compile, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = compile_engine(tiny_bundle)
    capsys.readouterr()
    if command == ["--images"]:
        command = ["--images", str(tiny_bundle / "samples"), "--format", "jsonl"]
    assert main([*command, "--bundle", str(tiny_bundle), "--engine", str(engine)]) == 0
    out, err = capsys.readouterr()
    assert "tensorrt-engine fp32" in err and out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"provider": "cuda"}, "An engine runs in TensorRT, provider 'cuda' was asked for"),
        ({"precision": "bf16"}, "The engine computes in fp32, bf16 was asked for"),
    ],
)
def test_what_contradicts_an_engine_is_refused(
    tiny_bundle: Path, compile_engine: Compile, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        AnomalyDetector.load(tiny_bundle, engine=compile_engine(tiny_bundle), **arguments)  # type: ignore[arg-type]


def test_detectors_share_an_engine_but_not_with_one_without(
    tiny_bundle: Path, compile_engine: Compile
) -> None:
    engine, bundle = compile_engine(tiny_bundle), Bundle.load(tiny_bundle)
    with pytest.warns(UserWarning, match="tensorrt-engine"):
        first = AnomalyDetector.load(bundle, engine=engine)
    with pytest.warns(UserWarning, match="tensorrt-engine"):
        second = AnomalyDetector.load(bundle, engine=engine, share_with=[first])
    plain = AnomalyDetector.load(bundle, provider="cpu", profile=False, share_with=[first])
    assert second._embedder is first._embedder and plain._embedder is not first._embedder


def test_an_engine_that_fails_is_a_backend_error(
    tiny_bundle: Path, compile_engine: Compile, calls: Calls, images: np.ndarray
) -> None:
    bundle = Bundle.load(tiny_bundle)
    embedder = TensorRtEmbedder(load_engine(compile_engine(tiny_bundle), bundle), bundle.manifest.embedding)
    with pytest.raises(BackendError, match=r"takes images of \[32, 48, 3\], got \[16, 16, 3\]"):
        embedder.embed(np.zeros((1, 16, 16, 3), np.uint8))
    calls.run_fails = True
    with pytest.raises(BackendError, match="TensorRT cannot run the engine"):
        embedder.embed(images[:1])
    calls.run_fails, calls.factor = False, np.nan
    with pytest.raises(BackendError, match="values on tensorrt-engine that are not finite"):
        embedder.embed(images[:1])
    calls.cuda_error = "cudaMemcpyAsync"
    with pytest.raises(BackendError, match=r"CUDA fails \(cudaMemcpyAsync: out of memory\)"):
        embedder.embed(images[:1])


# What is checked before native code is loaded


def flip_a_byte(engine: Path) -> None:
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(bytes(data))


def cut_off(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-1])


def edit_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(engine: Path) -> None:
        header = json.loads(header_path(engine).read_bytes())
        change(header)
        header_path(engine).write_text(json.dumps(header))

    return edit


def setting(key: str, value: Any) -> Callable[[Path], None]:
    return edit_header(lambda header: header.__setitem__(key, value))


DAMAGE: list[tuple[Callable[[Path], None], type[Exception], str]] = [
    (flip_a_byte, BundleError, "not the one that its header describes"),
    (cut_off, BundleError, "not the one that its header describes"),
    (lambda engine: engine.unlink(), BundleError, "cannot be read"),
    (lambda engine: header_path(engine).unlink(), BundleError, "header .* cannot be read.*pcrun compile"),
    (lambda engine: header_path(engine).write_text("{"), BundleError, "cannot be understood"),
    (lambda engine: header_path(engine).write_text("[]"), BundleError, "expected a mapping"),
    (setting("colour", 1), BundleError, "unknown key 'colour'"),
    (setting("precision", "fp4"), BundleError, "precision must be one of"),
    (setting("engine_version", 2), BundleError, "has version 2, this pcrun reads up to 1"),
    (setting("bundle", "0" * 64), BundleError, "built for another bundle"),
    (setting("embedder_sha256", "0" * 64), BundleError, "built for another bundle"),
    (edit_header(lambda h: h["image"].__setitem__("dims", [1, 8, 8, 3])), BundleError, "other tensors"),
    (setting("gpu", "NVIDIA Other"), BackendError, "built on NVIDIA Other .*this is NVIDIA Fake 100"),
    (setting("compute_capability", "9.0"), BackendError, "compute capability 9.0.*pcrun compile"),
    (setting("tensorrt", "10.3.0"), BackendError, "TensorRT 10.3.0, this is .* TensorRT 10.9.0"),
]


@pytest.mark.parametrize("damage, kind, message", DAMAGE)
def test_what_was_not_made_for_this_bundle_and_machine_is_never_loaded(
    tiny_bundle: Path,
    compile_engine: Compile,
    calls: Calls,
    damage: Callable[[Path], None],
    kind: type[Exception],
    message: str,
) -> None:
    engine = compile_engine(tiny_bundle)
    damage(engine)
    calls.asked.clear()
    with pytest.raises(kind, match=message):
        AnomalyDetector.load(tiny_bundle, engine=engine)
    assert calls.names() == []


def test_an_engine_of_another_bundle_is_refused_by_both_names(
    copied_bundle: BundleMaker, compile_engine: Compile
) -> None:
    engine = compile_engine(copied_bundle())
    with pytest.raises(
        BundleError, match=r"built for another bundle \('tiny', \w{12}; here 'tiny', \w{12}\)"
    ):
        AnomalyDetector.load(copied_bundle(dim=12), engine=engine)


def test_an_engine_that_is_not_what_its_header_says_is_refused(
    copied_bundle: BundleMaker, compile_engine: Compile
) -> None:
    path = copied_bundle()
    bundle, other = Bundle.load(path), Bundle.load(copied_bundle(dim=12))
    engine = load_engine(compile_engine(path), bundle)
    swapped = dataclasses.replace(engine, data=PLAN + other.embedder)
    with pytest.raises(BundleError, match=r"takes and gives .* its header says"):
        TensorRtEmbedder(swapped, bundle.manifest.embedding)


def test_an_engine_that_tensorrt_refuses_is_an_error_with_its_reason(
    tiny_bundle: Path, compile_engine: Compile, calls: Calls
) -> None:
    engine = compile_engine(tiny_bundle)
    calls.load_fails = True
    with pytest.raises(BackendError, match=r"cannot load the engine .*: serialised by another version"):
        AnomalyDetector.load(tiny_bundle, engine=engine)


# Where something is missing


def test_a_missing_tensorrt_is_an_error_with_the_line_that_installs_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["compile", "--bundle", str(tiny_bundle), "-o", str(tmp_path / "x.engine")]) == 2
    message = capsys.readouterr().err
    assert "tensorrt cannot be imported" in message and "patchcore-edge[tensorrt]" in message


def test_a_missing_gpu_is_an_error_before_anything_is_built(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = Calls()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(calls))
    monkeypatch.setattr(gpu_module, "_load", lambda name: None)
    assert main(["compile", "--bundle", str(tiny_bundle), "-o", str(tmp_path / "x.engine")]) == 2
    assert "No NVIDIA driver was found" in capsys.readouterr().err
    assert calls.names() == []


def test_an_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(Calls(), version="8.6.1"))
    with pytest.raises(BackendError, match=r"tensorrt 8\.6\.1 is too old\. Expected 10 or newer"):
        import_tensorrt()


def test_a_missing_cuda_package_is_an_error_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"cuda-bindings cannot be imported.*patchcore-edge\[tensorrt\]"):
        import_cuda()


def test_the_real_cuda_package_has_what_is_called() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed (extra: tensorrt)")
    runtime = import_cuda()
    called = [name for name in dir(FakeCuda) if name.startswith("cuda")]
    assert len(called) > 8 and all(hasattr(runtime, name) for name in called)
    kinds = [name for name in dir(FakeCuda.Kind) if name.startswith("cuda")]
    assert all(hasattr(runtime.cudaMemcpyKind, name) for name in kinds)
