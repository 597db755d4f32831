"""The exported graph: what it computes, what its bytes hold, and which operators it may use."""

from __future__ import annotations

import getpass
import re
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: export)")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra: export)")

import onnxruntime  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from pcexport.backbones.loader import load_backbone  # noqa: E402
from pcexport.backbones.registry import find_backbone  # noqa: E402
from pcexport.errors import BuildError  # noqa: E402
from pcexport.graph.embedding import PatchEmbedder  # noqa: E402
from pcexport.graph.operators import TENSORRT_SAFE_OPERATORS, unsafe_operators  # noqa: E402
from pcexport.graph.trace import INPUT_NAME, OUTPUT_NAME, trace_to_onnx  # noqa: E402

DINOV2 = "timm:vit_small_patch14_dinov2.lvd142m"


def module_of(
    name: str, hw: tuple[int, int], neighbourhood: int = 3, layers: tuple[str, ...] | None = None
) -> PatchEmbedder:
    backbone = load_backbone(find_backbone(name, layers), layers, weights="untrained", image_hw=hw, seed=0)
    return PatchEmbedder(backbone, aggregation="locally_aware", neighbourhood=neighbourhood, grid_hw=None)


def trace(module: PatchEmbedder, hw: tuple[int, int], batch: int | None = 1, opset: int = 18) -> bytes:
    return trace_to_onnx(module, input_hw=hw, batch=batch, opset=opset)


@pytest.fixture(scope="module")
def resnet() -> PatchEmbedder:
    return module_of("resnet18", (64, 64))


@pytest.fixture(scope="module")
def static(resnet: PatchEmbedder) -> bytes:
    return trace(resnet, (64, 64))


@pytest.fixture(scope="module")
def dynamic(resnet: PatchEmbedder) -> bytes:
    return trace(resnet, (64, 64), batch=None)


def max_relative_error(data: bytes, module: PatchEmbedder, hw: tuple[int, int], batch: int) -> float:
    images = np.random.default_rng(batch).integers(0, 256, (batch, *hw, 3), np.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (got,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    assert got.shape == expected.shape and got.dtype == np.float32
    return float((np.linalg.norm(got - expected, axis=2) / np.linalg.norm(expected, axis=2)).max())


def dims_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_static_graph_computes_what_torch_does(static: bytes, resnet: PatchEmbedder) -> None:
    assert max_relative_error(static, resnet, (64, 64), 1) < 1e-4


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_dynamic_graph_computes_what_torch_does(dynamic: bytes, resnet: PatchEmbedder, batch: int) -> None:
    assert max_relative_error(dynamic, resnet, (64, 64), batch) < 1e-4


def test_static_graph_takes_uint8_nhwc_and_gives_float_patches(static: bytes) -> None:
    (image,), (patches,) = (
        onnx.load_from_string(static).graph.input,
        onnx.load_from_string(static).graph.output,
    )
    assert (image.name, image.type.tensor_type.elem_type, dims_of(image)) == (
        "image",
        TensorProto.UINT8,
        [1, 64, 64, 3],
    )
    assert (patches.name, patches.type.tensor_type.elem_type) == ("patch_embeddings", TensorProto.FLOAT)
    assert dims_of(patches) == [1, 64, 384]


def test_dynamic_graph_leaves_only_the_batch_open(dynamic: bytes) -> None:
    model = onnx.load_from_string(dynamic)
    batch_in, *rest_in = dims_of(model.graph.input[0])
    batch_out, *rest_out = dims_of(model.graph.output[0])
    assert isinstance(batch_in, str) and batch_in == batch_out
    assert (rest_in, rest_out) == ([64, 64, 3], [64, 384])


def test_two_traces_are_equal_bytes(static: bytes) -> None:
    assert trace(module_of("resnet18", (64, 64)), (64, 64)) == static


def test_the_bytes_hold_no_trace_of_the_machine(static: bytes, dynamic: bytes) -> None:
    names = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), str(Path(torch.__file__).parents[1])}
    names |= {"site-packages", "pcexport", "stack_trace", "Traceback"}
    # Shorter names could stand in the weights by chance.
    names |= {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}
    for data in (static, dynamic):
        assert not [name for name in names if name != "/" and name.encode() in data]
        assert not re.search(rb"\w+\.py\b", data)


def test_the_bytes_hold_no_metadata_and_no_external_data(static: bytes) -> None:
    model = onnx.load_from_string(static)
    assert not model.metadata_props and not model.functions and not model.graph.value_info
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        assert not item.metadata_props and not item.doc_string
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in model.graph.initializer)


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_the_opset_is_the_one_asked_for(resnet: PatchEmbedder, static: bytes, opset: int) -> None:
    data = static if opset == 18 else trace(resnet, (64, 64), opset=opset)
    (used,) = onnx.load_from_string(data).opset_import
    assert (used.domain, used.version) == ("", opset)


@pytest.mark.parametrize(
    "name, layers, hw, neighbourhood",
    [
        ("resnet18", None, (32, 48), 3),
        ("mobilenet_v3_small", None, (32, 32), 3),
        # Early layers: the same operators as the default ones, a third of the time.
        ("convnext_tiny", ("features.1", "features.3"), (32, 32), 3),
        (DINOV2, ("1",), (28, 42), 1),
    ],
)
def test_operators_are_on_the_tensorrt_list_and_the_graph_agrees(
    name: str, layers: tuple[str, ...] | None, hw: tuple[int, int], neighbourhood: int
) -> None:
    if name == DINOV2:
        pytest.importorskip("timm", reason="timm is not installed (extra: timm)")
    module = module_of(name, hw, neighbourhood, layers)
    data = trace(module, hw)
    operators = {node.op_type for node in onnx.load_from_string(data).graph.node}
    assert len(operators) > 5 and operators <= TENSORRT_SAFE_OPERATORS
    assert max_relative_error(data, module, hw, 1) < 1e-4


@pytest.mark.parametrize("batch", [1, 3])
def test_a_graph_that_reads_its_batch_from_the_image_agrees_too(batch: int) -> None:
    module = module_of("mobilenet_v3_small", (32, 32))
    data = trace(module, (32, 32), batch=None)
    readers = {node.op_type for node in onnx.load_from_string(data).graph.node if INPUT_NAME in node.input}
    assert readers == {"Cast"}  # what TensorRT takes
    assert max_relative_error(data, module, (32, 32), batch) < 1e-4


class UnsafeExtractor(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images.cumsum(dim=3)]


class RaisingExtractor(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        raise RuntimeError("no such kernel\nsecond line")


def with_extractor(extractor: torch.nn.Module) -> PatchEmbedder:
    module = module_of("resnet18", (32, 32))
    module.extractor = extractor
    return module


def test_a_graph_with_an_operator_off_the_list_is_refused_by_name() -> None:
    with pytest.raises(BuildError, match="uses CumSum, which TensorRT cannot run"):
        trace(with_extractor(UnsafeExtractor()), (32, 32))


def test_a_failed_export_is_one_line() -> None:
    with pytest.raises(BuildError, match="cannot be exported to ONNX") as error:
        trace(with_extractor(RaisingExtractor()), (32, 32))
    assert "\n" not in str(error.value)


def graph_of(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [])


def unsafe(*nodes: onnx.NodeProto) -> list[str]:
    return unsafe_operators(helper.make_model(graph_of(*nodes)))


def test_safe_operators_pass() -> None:
    assert unsafe(helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])) == []


def test_unsafe_operators_are_listed_once_and_sorted() -> None:
    nodes = [helper.make_node(name, ["x"], ["y"]) for name in ("NonZero", "Loop", "Relu", "NonZero")]
    assert unsafe(*nodes) == ["Loop", "NonZero"]


def test_a_safe_name_in_another_domain_is_not_safe() -> None:
    assert unsafe(helper.make_node("Conv", ["x"], ["y"], domain="com.microsoft")) == ["com.microsoft.Conv"]
    assert unsafe(helper.make_node("Conv", ["x"], ["y"], domain="ai.onnx")) == []


def test_unsafe_operators_are_found_in_subgraphs_of_any_depth() -> None:
    innermost = helper.make_node("NonZero", ["x"], ["y"])
    middle = helper.make_node("Identity", ["x"], ["y"], body=graph_of(innermost))
    outer = helper.make_node("Identity", ["x"], ["y"], branches=[graph_of(), graph_of(middle)])
    assert unsafe(outer) == ["NonZero"]
