"""What runs the embedder: a graph that breaks its promise, providers that are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcrun import AnomalyDetector, BackendError, BundleError
from pcrun.bundle.manifest import EMBEDDER_NAME
from pcrun.cli import main
from tests.contract.damage import forge
from tests.contract.detectors import load, random_images

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
import onnx  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from tests.data.make_tiny_bundle import PATCHES, embedder_onnx  # noqa: E402

# --- an embedder that does not keep its promise ---


def changed_embedder(change: Any) -> bytes:
    model = onnx.load_from_string(embedder_onnx(seed=0))
    change(model.graph)
    return model.SerializeToString()


def replace_bias(value: float) -> Any:
    def change(graph: Any) -> None:
        bias = next(tensor for tensor in graph.initializer if tensor.name == "bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(8, value, np.float32), "bias"))

    return change


def drop_a_patch(graph: Any) -> None:
    """Cut the output at a length that is computed, so that no shape inference can see it."""
    graph.output[0].name = "patch_embeddings"
    graph.node[-1].output[0] = "all"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([PATCHES - 1], np.int64), "kept"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["nchw"], ["brightest"], keepdims=0),
            helper.make_node("Cast", ["brightest"], ["brightest_int"], to=onnx.TensorProto.INT64),
            helper.make_node("Mul", ["brightest_int", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "kept"], ["end"]),
            helper.make_node("Slice", ["all", "zero", "end", "one"], ["patch_embeddings"]),
        ]
    )


@pytest.mark.parametrize("value", [np.inf, 1e30, np.nan])
@pytest.mark.parametrize("exactness", ["none", "image", "mask", "full"])
def test_embeddings_that_are_no_numbers_give_no_verdict(
    tiny_bundle: Path, value: float, exactness: str
) -> None:
    # A NaN score is not above any threshold: unchecked, every image would be called normal.
    forge(tiny_bundle, EMBEDDER_NAME, changed_embedder(replace_bias(value)))
    detector = load(tiny_bundle, exactness=exactness)
    with pytest.raises(BackendError, match=r"not finite or too large.*--provider cpu"):
        detector(random_images(1)[0])


def test_an_output_of_another_shape_than_announced_gives_no_verdict(tiny_bundle: Path) -> None:
    forge(tiny_bundle, EMBEDDER_NAME, changed_embedder(drop_a_patch))
    detector = load(tiny_bundle)
    with pytest.raises(BundleError, match=r"gives float32 \[1, 95, 8\].*pcexport build"):
        detector(random_images(1)[0])


def test_a_graph_that_onnxruntime_refuses_is_a_backend_error(tiny_bundle: Path) -> None:
    data = changed_embedder(lambda graph: setattr(graph.node[4], "op_type", "NoSuchOperator"))
    forge(tiny_bundle, EMBEDDER_NAME, data)
    with pytest.raises(BackendError, match=r"cannot open the graph on cpu.*NoSuchOperator"):
        load(tiny_bundle)


# --- onnxruntime ---


def has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.skipif(has_cuda(), reason="this onnxruntime has CUDA: there is no missing provider to ask for")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_missing_provider_is_an_error_that_lists_the_present_ones(tiny_bundle: Path, provider: str) -> None:
    message = rf"'{provider}' is not in the installed onnxruntime.*has: cpu\..*patchcore-edge\[gpu\]"
    with pytest.raises(BackendError, match=message):
        load(tiny_bundle, provider=provider)


def test_an_unknown_provider_is_an_error_that_lists_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"'tpu'.*auto, cpu, cuda, tensorrt"):
        load(tiny_bundle, provider="tpu")


def test_auto_says_what_it_chose(tiny_bundle: Path) -> None:
    assert load(tiny_bundle, provider="auto").provider in ("cpu", "cuda")


def test_two_onnxruntime_packages_are_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr("pcrun.backends.session._is_installed", lambda name: name in both)
    with pytest.raises(BackendError, match="pip uninstall -y onnxruntime onnxruntime-gpu") as caught:
        load(tiny_bundle)
    assert_both_pip_lines(caught.value)


def test_a_missing_onnxruntime_is_an_error_with_both_pip_lines(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="onnxruntime cannot be imported") as caught:
        load(tiny_bundle)
    assert_both_pip_lines(caught.value)


def assert_both_pip_lines(error: BackendError) -> None:
    assert "pip install 'patchcore-edge[cpu]'" in str(error)
    assert "pip install 'patchcore-edge[gpu]'" in str(error)


def test_with_exact_search_keeps_the_threads(tiny_bundle: Path) -> None:
    detector = AnomalyDetector.load(tiny_bundle, threads=1)
    exact = detector.with_exact_search()
    assert (exact.search, exact.exactness) == ("exact", "full")
    for made in (detector, exact):
        assert made.settings is not None and made.settings.threads == made.settings.search_threads == 1


def test_run_options_before_a_command_are_refused(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", str(tiny_bundle), "--threshold", "5", "selftest"]) == 2
    assert "--threshold before 'selftest' would do nothing" in capsys.readouterr().err
    assert main(["--bundle", str(tiny_bundle), "selftest", "--provider", "cpu"]) == 0
