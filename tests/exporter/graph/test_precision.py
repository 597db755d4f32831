"""Other arithmetic than float32 and shorter embeddings: the graphs, and builds with them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from pcexport import build as build_module
from pcexport.cli import main
from pcexport.comparison import compare_scores
from pcexport.config import BuildConfig
from pcexport.demo.parts import generate_parts
from pcexport.errors import BuildError
from pcexport.graph import network as network_module
from pcexport.graph.float16 import to_float16
from pcexport.graph.network import TracedNetwork
from pcexport.graph.operators import unsafe_operators
from pcexport.graph.precision import require_precision
from pcexport.graph.quantise import CalibrationImages, quantise, quantised_nodes
from pcexport.graph.reduction import fit_reduction, fold_reduction
from pcexport.graph.rewrite import BACKBONE, OUTPUT_NAME, in_backbone
from pcexport.graph.tensorrt_rules import quantisation_problems
from pcrun import AnomalyDetector, BackendError, Bundle
from pcrun.backends.session import open_embedder
from pcrun.bundle.manifest import PRECISIONS, ThresholdSpec
from pcrun.bundle.onnx_file import check_onnx
from pcrun.cli import main as pcrun
from pcrun.images.image_io import encode_png, read_image
from pcrun.preprocess import PreprocessSpec, preprocess

SIDE = 64
ALONE = ("--threads", "1", "--no-tune")
NORMALS = 14
NORMALISATION = {"Transpose", "Cast", "Sub", "Div"}
AGGREGATION = {"AveragePool", "Resize", "Concat", "Reshape", "Transpose"}


def traced(**keys: str) -> TracedNetwork:
    config = BuildConfig(weights="untrained", image_size=str(SIDE), **keys)
    return network_module.trace_network(config, PreprocessSpec(SIDE, SIDE, SIDE, SIDE))


@pytest.fixture(scope="module")
def network() -> TracedNetwork:
    return traced()


@pytest.fixture(scope="module")
def dynamic() -> TracedNetwork:
    return traced(batch="dynamic")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Smooth colour gradients with noise: the ranges of activations are those of natural images."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 200, SIDE)[:, None, None] + np.linspace(-30, 30, SIDE)[None, :, None]
    return [
        np.clip(ramp * rng.uniform(0.7, 1.2, 3) + rng.normal(0, 12, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        for _ in range(6)
    ]


def embeddings(model: bytes, network: TracedNetwork, images: list[np.ndarray], **spec: object) -> np.ndarray:
    changed = dataclasses.replace(network.spec, **spec)
    return open_embedder(model, changed, provider="cpu", threads=1).embed(np.stack(images))


def relative_error(reference: np.ndarray, other: np.ndarray) -> float:
    spread = reference - reference.mean(axis=(0, 1))
    return float(np.linalg.norm(reference - other) / np.linalg.norm(spread))


def nodes_of(model: bytes) -> dict[str, list[onnx.NodeProto]]:
    found = collections.defaultdict(list)
    for node in onnx.load_from_string(model).graph.node:
        found[node.op_type].append(node)
    return found


def types_of(model: bytes) -> dict[str, int]:
    """Element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model), strict_mode=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in graph.initializer
    }


# The graph's parts


def operators(model: bytes) -> tuple[set[str], set[str]]:
    """Operators of the backbone, and those of all other nodes."""
    nodes = onnx.load_from_string(model).graph.node
    return {n.op_type for n in nodes if in_backbone(n)}, {n.op_type for n in nodes if not in_backbone(n)}


def test_the_backbone_is_marked_and_nothing_else(network: TracedNetwork) -> None:
    inside, outside = operators(network.onnx)
    assert inside == {"Conv", "Relu", "MaxPool", "Add"}
    assert outside == AGGREGATION | NORMALISATION


@pytest.mark.slow
def test_sums_of_the_reference_aggregation_are_not_marked() -> None:
    inside, outside = operators(traced(backbone="resnet50", aggregation="reference").onnx)
    assert inside == {"Conv", "Relu", "MaxPool", "Add"}
    assert outside == AGGREGATION | NORMALISATION | {"Mul", "Add", "ReduceMean"}


# int8


@pytest.fixture(scope="module")
def int8(network: TracedNetwork, images: list[np.ndarray]) -> bytes:
    return quantise(network.onnx, images, batch=1)


def test_int8_is_close_to_float32_and_a_quarter_of_its_size(
    network: TracedNetwork, images: list[np.ndarray], int8: bytes
) -> None:
    reference = embeddings(network.onnx, network, images)
    assert relative_error(reference, embeddings(int8, network, images, precision="int8")) < 0.15
    assert len(int8) < 0.3 * len(network.onnx)


def test_int8_has_the_backbone_in_integers_and_the_rest_in_float32(
    network: TracedNetwork, int8: bytes
) -> None:
    nodes, types = nodes_of(int8), types_of(int8)
    producer = {name: node for group in nodes.values() for node in group for name in node.output}
    first, *others = nodes["Conv"]
    assert len(others) == len(nodes_of(network.onnx)["Conv"]) - 1
    # The first convolution reads the image, and keeps its float32 weights.
    assert producer[first.input[0]].op_type == "Div" and types[first.input[1]] == TensorProto.FLOAT
    for conv in others:
        assert all(producer[name].op_type == "DequantizeLinear" for name in conv.input)
        stored = producer[conv.input[1]].input
        assert types[stored[0]] == TensorProto.INT8
    for kind in AGGREGATION:
        assert all(types[node.input[0]] in (TensorProto.FLOAT, TensorProto.UINT8) for node in nodes[kind])
        assert all("Quantize" not in reader.op_type for node in nodes[kind] for reader in readers(int8, node))
    # Feature maps come from float32 sums, not out of 8 bits.
    for pool in nodes["AveragePool"]:
        assert producer[producer[pool.input[0]].input[0]].op_type == "Add"


def readers(model: bytes, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    graph = onnx.load_from_string(model).graph
    return [other for other in graph.node if set(node.output) & set(other.input)]


def test_int8_weights_have_one_scale_per_channel_and_7_bits(int8: bytes) -> None:
    graph = onnx.load_from_string(int8).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [v for name, v in stored.items() if v.dtype == np.int8 and v.ndim == 4]
    assert weights and all(np.abs(w.astype(int)).max() <= 64 for w in weights)
    scaled = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    channels = {stored[n.input[1]].shape for n in scaled if stored[n.input[0]].ndim == 4}
    assert channels == {(64,), (128,), (256,)}


def test_int8_keeps_an_open_batch(dynamic: TracedNetwork, images: list[np.ndarray], int8: bytes) -> None:
    model = quantise(dynamic.onnx, images, batch=None)
    together = embeddings(model, dynamic, images, precision="int8")
    alone = embeddings(model, dynamic, images[:1], precision="int8")
    assert together.shape == (6, 64, 384) and np.allclose(together[0], alone[0], atol=1e-5)


@pytest.fixture(scope="module")
def biased(network: TracedNetwork) -> TracedNetwork:
    """With biases, as trained weights have them."""
    model = onnx.load_from_string(network.onnx)
    rng = np.random.default_rng(2)
    widths = {t.name: t.dims[0] for t in model.graph.initializer}
    for number, conv in enumerate(node for node in model.graph.node if node.op_type == "Conv"):
        del conv.input[2:]
        conv.input.append(f"bias{number}")
        bias = rng.normal(0, 0.1, widths[conv.input[1]]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(bias, f"bias{number}"))
    return dataclasses.replace(network, onnx=model.SerializeToString())


def test_signed_int8_is_all_that_tensorrt_takes_and_as_close_to_float32(
    biased: TracedNetwork, images: list[np.ndarray]
) -> None:
    signed, unsigned = (quantise(biased.onnx, images, batch=1, signed=signed) for signed in (True, False))
    assert quantisation_problems(onnx.load_from_string(signed)) == []
    assert quantisation_problems(onnx.load_from_string(unsigned)) != []
    assert check_onnx(signed, name="embedder.onnx") and unsafe_operators(onnx.load_from_string(signed)) == []
    reference = embeddings(biased.onnx, biased, images)
    errors = [
        relative_error(reference, embeddings(m, biased, images, precision="int8")) for m in (signed, unsigned)
    ]
    # One bit less for activations that are never negative.
    assert errors[0] < 0.15 and errors[0] < 2 * errors[1]


def test_signed_int8_rounds_where_nvidia_recommends(biased: TracedNetwork, images: list[np.ndarray]) -> None:
    model = quantise(biased.onnx, images, batch=1, signed=True)
    nodes, types = nodes_of(model), types_of(model)
    producer = {name: node for group in nodes.values() for node in group for name in node.output}
    for conv in nodes["Conv"][1:]:
        activation, weight, bias = conv.input
        assert producer[activation].op_type == producer[weight].op_type == "DequantizeLinear"
        assert types[bias] == TensorProto.FLOAT and bias not in producer
    for node in nodes["Add"]:
        assert sorted(producer[name].op_type for name in node.input) == ["Conv", "DequantizeLinear"]
    read = {name for group in nodes.values() for node in group for name in node.input}
    unread = [name for name in producer if name not in read]
    assert unread == [OUTPUT_NAME]


@pytest.mark.realdata
def test_signed_int8_moves_real_patches_hardly_more_than_unsigned(realdata_dir: Path) -> None:
    config = BuildConfig(weights=str(realdata_dir / "weights/resnet18_torchvision_conv1-layer3.pth"))
    spec = PreprocessSpec(224, 224, 224, 224)
    network = network_module.trace_network(config, spec)
    files = sorted((realdata_dir / "mtd/MT_Free").rglob("*.jpg"))[::100]
    tiles = [preprocess(read_image(file, white_level_16bit=65535), spec) for file in files]
    fitted, seen = tiles[::2], tiles[1::2]
    reference = embeddings(network.onnx, network, seen)
    errors = {
        signed: relative_error(
            reference,
            embeddings(
                quantise(network.onnx, fitted, batch=1, signed=signed), network, seen, precision="int8"
            ),
        )
        for signed in (True, False)
    }
    # Twice as coarse where activations are never negative, equal in the weights.
    assert errors[True] < 1.5 * errors[False] < 0.3


def test_calibration_fills_the_last_batch_with_its_last_image(images: list[np.ndarray]) -> None:
    feeds = list(iter(CalibrationImages(images[:5], 2).get_next, None))
    assert [feed["image"].shape for feed in feeds] == [(2, SIDE, SIDE, 3)] * 3
    assert np.array_equal(feeds[-1]["image"], np.stack([images[4]] * 2))


def test_converted_graphs_pass_the_checks_of_the_bundle_and_of_tensorrt(
    network: TracedNetwork, int8: bytes
) -> None:
    for model in (int8, to_float16(network.onnx)):
        before, after = (check_onnx(data, name="embedder.onnx") for data in (network.onnx, model))
        assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
        assert unsafe_operators(onnx.load_from_string(model)) == []
        assert not re.search(rb"/tmp|/home|onnx\.infer", model)


EMBED = """
import sys, numpy as np
from pcrun.backends.openvino_session import import_openvino
core = import_openvino().Core()
model = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(sys.argv[3], model.create_infer_request().infer({"image": np.load(sys.argv[2])})["patch_embeddings"])
"""


def test_int8_gives_the_same_numbers_on_a_processor_without_vnni(
    int8: bytes, images: list[np.ndarray], tmp_path: Path
) -> None:
    """Products of 8-bit weights would saturate there; those of 7 bits fit."""
    pytest.importorskip(
        "openvino", reason="openvino is not installed; onnxruntime cannot be told to do without"
    )
    (tmp_path / "int8.onnx").write_bytes(int8)
    np.save(tmp_path / "image.npy", images[0][None])
    for isa in ("DEFAULT", "AVX2"):
        arguments = [str(tmp_path / name) for name in ("int8.onnx", "image.npy", f"{isa}.npy")]
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
        subprocess.run([sys.executable, "-c", EMBED, *arguments], env=environment, check=True, timeout=60)
    assert np.array_equal(np.load(tmp_path / "DEFAULT.npy"), np.load(tmp_path / "AVX2.npy"))


def graph_of(*nodes: onnx.NodeProto, weights: tuple[str, ...] = ()) -> onnx.GraphProto:
    value = helper.make_tensor_value_info
    return helper.make_graph(
        list(nodes),
        "g",
        [value("x", TensorProto.FLOAT, None)],
        [value("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((4, 4), np.float32), name) for name in weights],
    )


def node(op_type: str, inputs: str, output: str, *, inside: bool = True) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], (BACKBONE if inside else "") + output)


def test_the_first_convolution_feature_maps_and_sums_without_convolutions_stay_float() -> None:
    graph = graph_of(
        node("Conv", "x w", "stem"),
        node("Relu", "stem", "rectified"),
        node("MaxPool", "rectified", "pooled"),
        node("Conv", "pooled w", "c1"),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w", "c2"),
        node("Add", "c2 r1", "shortcut"),
        node("Add", "shortcut pooled", "from_the_stem"),
        node("Conv", "from_the_stem w", "c3"),
        node("Add", "c3 from_the_stem", "last"),
        node("Relu", "last", "feature"),
        node("MatMul", "x w", "product"),
        node("Add", "product x", "residual"),
        node("MatMul", "product residual", "attention"),
        node("AveragePool", "feature", "out", inside=False),
        weights=("w",),
    )
    names = [name.removeprefix(BACKBONE) for name in quantised_nodes(graph)]
    assert names == ["c1", "r1", "c2", "shortcut", "from_the_stem", "c3", "product"]


def test_a_graph_without_marked_backbone_is_refused(network: TracedNetwork) -> None:
    model = onnx.load_from_string(network.onnx)
    for item in model.graph.node:
        item.name = item.name.removeprefix(BACKBONE)
    with pytest.raises(BuildError, match="no operator that can be quantised"):
        quantise(model.SerializeToString(), [], batch=1)
    with pytest.raises(BuildError, match="did not mark the backbone"):
        to_float16(model.SerializeToString())


# fp16


@pytest.mark.filterwarnings("ignore:the embedder is float16")
def test_float16_is_close_to_float32_and_half_its_size(
    network: TracedNetwork, images: list[np.ndarray]
) -> None:
    model = to_float16(network.onnx)
    reference = embeddings(network.onnx, network, images)
    assert relative_error(reference, embeddings(model, network, images, precision="fp16")) < 5e-3
    assert len(model) < 0.55 * len(network.onnx)


def test_float16_has_the_backbone_in_float16_and_the_rest_in_float32(network: TracedNetwork) -> None:
    model = to_float16(network.onnx)
    types = types_of(model)
    for item in onnx.load_from_string(model).graph.node:
        if in_backbone(item):
            assert {types[name] for name in (*item.input, *item.output) if name} == {TensorProto.FLOAT16}
        elif item.op_type in AGGREGATION and item.op_type != "Transpose":
            assert types[item.output[0]] == TensorProto.FLOAT


def test_a_weight_beyond_float16_is_refused(network: TracedNetwork) -> None:
    model = onnx.load_from_string(network.onnx)
    weight = next(t for t in model.graph.initializer if t.name.endswith("layer2.0.conv1.weight"))
    weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, 7e4, np.float32), weight.name))
    with pytest.raises(BuildError, match=r"reaches 7e\+04, float16 ends at 65504"):
        to_float16(model.SerializeToString())


# Projection


@pytest.mark.parametrize("batch", ["network", "dynamic"])
def test_a_projected_graph_gives_orthonormal_coordinates_of_the_embeddings(
    images: list[np.ndarray], batch: str, request: pytest.FixtureRequest
) -> None:
    network: TracedNetwork = request.getfixturevalue(batch)
    embedder = open_embedder(network.onnx, network.spec, provider="cpu", threads=1)
    mean, components = fit_reduction(embedder, images, 40)
    assert np.allclose(components.T @ components, np.eye(40), atol=1e-5)
    model = fold_reduction(network.onnx, mean, components)
    full = embedder.embed(np.stack(images))
    short = embeddings(model, network, images, dim=40)
    assert np.allclose(short, (full - mean) @ components, rtol=1e-4, atol=1e-4 * np.abs(full).max())
    # Most of each distance is kept, and none grows.
    a, b = full[0], full[1]
    kept = np.linalg.norm(short[0] - short[1], axis=1) / np.linalg.norm(a - b, axis=1)
    assert kept.max() < 1 + 1e-4 and kept.mean() > 0.8
    (output,) = check_onnx(model, name="embedder.onnx").outputs
    assert output.dims[1:] == (64, 40)


def test_a_graph_that_ends_otherwise_cannot_be_projected() -> None:
    nodes = [helper.make_node("Relu", ["image"], ["patch_embeddings"])]
    tensors = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 4]) for n in ("image", "patch_embeddings")
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", tensors[:1], tensors[1:]))
    with pytest.raises(BuildError, match="does not end in Reshape and Transpose"):
        fold_reduction(model.SerializeToString(), np.zeros(4, np.float32), np.eye(4, 2, dtype=np.float32))


# Scores beside float32


def test_drift_and_flips_are_those_of_the_same_rule_on_both_sides() -> None:
    reference = [1.0, 2.0, 3.0, 4.0]
    scores = [1.0, 3.2, 2.9, 4.4]
    # The second smallest of four.
    threshold = ThresholdSpec(2.9, "kfold", 4, 2, 0.6, 0.6, 0.9)
    paths = [Path(f"{number}.png") for number in range(4)]
    spec, flips = compare_scores(paths, scores, reference, threshold)
    assert (spec.reference, spec.images, spec.flipped_verdicts) == ("fp32", 4, 2)
    assert spec.max_score_drift == pytest.approx(1.2 / 2.0)
    assert spec.mean_score_drift == pytest.approx((1.2 + 0.1 + 0.4) / 4 / 2.0)
    assert [(flip.image, flip.score, flip.reference_score) for flip in flips] == [
        ("1.png", 3.2, 2.0),
        ("2.png", 2.9, 3.0),
    ]
    assert str(flips[0]) == "1.png 3.2000 (threshold 2.9000), in fp32 2.0000 (threshold 2.0000)"


def test_precisions_of_configuration_and_manifest_are_the_same() -> None:
    (field,) = (f for f in dataclasses.fields(BuildConfig) if f.name == "precision")
    assert set(field.metadata["choices"]) == set(PRECISIONS)


@pytest.mark.parametrize("keys", [{"precision": "int8"}, {"project": 8}])
def test_embedding_with_torch_contradicts_another_graph(keys: dict) -> None:
    with pytest.raises(BuildError, match="leave --embed-with out"):
        require_precision(BuildConfig(embed_with="torch", provider="cpu", **keys))


# Builds


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "parts"
    generate_parts(root, train=NORMALS, test_good=2, test_per_defect=1, size_px=128)
    return root


@dataclasses.dataclass(frozen=True)
class Built:
    """What one call of `pcexport build` did."""

    code: int
    path: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def build(
    parts: Path, network: TracedNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Built]:
    """Builds on the network traced once; on one thread, because torch's would fight for the cores."""

    def run(*flags: str, data: Path = parts, report: bool = False) -> Built:
        output = tmp_path_factory.mktemp("out") / "part.pcbundle"
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(build_module, "trace_network", lambda config, preprocessing: network)
            if not report:  # half the time of a small build
                patch.setattr(build_module, "write_report", lambda path, *args: path.write_text("report"))
            quick = ["--weights", "untrained", "--image-size", str(SIDE), "--parity-images", "1"]
            code = main(["build", str(data), "-o", str(output), *quick, *ALONE, *flags])
        torch.set_num_threads(threads)
        return Built(code, output, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="module")
def int8_build(build: Callable[..., Built]) -> Built:
    return build("--precision", "int8", report=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_int8_build_says_what_it_does_to_the_scores_and_repeats_itself(
    int8_build: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    assert int8_build.code == 0, int8_build.err
    manifest = Bundle.load(int8_build.path).manifest
    assert (manifest.embedding.precision, manifest.embedding.provider) == ("int8", "cpu")
    spec = manifest.precision
    assert spec is not None and (spec.reference, spec.images, spec.flipped_verdicts) == ("fp32", NORMALS, 0)
    assert 0 < spec.mean_score_drift <= spec.max_score_drift < 0.2
    assert spec.reference_auroc is not None and manifest.accuracy is not None
    assert re.search(r"embedder +│ fp32 [\d.]+ ms, deployed [\d.]+ ms an image", int8_build.out)
    assert "int8; beside fp32, scores drift by" in int8_build.out
    report = (int8_build.path / "report.html").read_text()
    assert "Scores of int8, against fp32" in report and "Verdicts changed" in report
    assert pcrun(["selftest", "--bundle", str(int8_build.path)]) == 0
    assert "4 of 4 golden samples agree within 0.001" in capsys.readouterr().out


def test_two_int8_builds_are_equal_in_every_byte_but_not_in_their_latencies(
    int8_build: Built, build: Callable[..., Built]
) -> None:
    again = build("--precision", "int8", "--threads", "2", "--json", report=True)
    assert contents(again.path) == contents(int8_build.path)
    latency = json.loads(again.out)["embed_ms"]
    assert set(latency) == {"fp32", "deployed"} and min(latency.values()) > 0
    assert "embed_ms" not in (again.path / "manifest.json").read_text()


@pytest.fixture
def badly_calibrated(parts: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Data and flags with which the ranges come from one image of the mean colour: all others are cut off."""
    data = tmp_path / "parts"
    shutil.copytree(parts, data)
    first = min((data / "train" / "good").iterdir())
    first.write_bytes(encode_png(np.full((128, 128, 3), (104, 116, 124), np.uint8)))
    return data, ["--precision", "int8", "--quantisation-images", "1", "--false-alarm-rate", "0.5"]


def test_a_verdict_that_flips_stops_the_build(
    build: Callable[..., Built], badly_calibrated: tuple[Path, list[str]]
) -> None:
    data, flags = badly_calibrated
    built = build(*flags, data=data)
    assert built.code == 2 and not built.path.exists()
    last = built.err.strip().splitlines()[-1]
    assert re.search(r"error: \d+ of the calibration images get another verdict than in fp32: ", last)
    listed = re.findall(
        r"(\d{3}\.png) [\d.]+ \(threshold [\d.]+\), in fp32 [\d.]+ \(threshold [\d.]+\)", last
    )
    assert int(re.search(r"error: (\d+) of", last)[1]) == len(listed) == len(set(listed)) > 0
    assert "--allow-flips" in last and "Nothing was written" in last


def test_flips_can_be_allowed_and_are_counted_and_named(
    build: Callable[..., Built], badly_calibrated: tuple[Path, list[str]]
) -> None:
    data, flags = badly_calibrated
    built = build(*flags, "--allow-flips", "--json", data=data)
    assert built.code == 0, built.err
    spec = Bundle.load(built.path).manifest.precision
    assert spec is not None and spec.flipped_verdicts > 0
    (warning,) = (w for w in json.loads(built.out)["warnings"] if "another verdict than in fp32" in w)
    assert warning.count(".png") == spec.flipped_verdicts and warning in built.err


def test_held_out_images_are_compared_too(build: Callable[..., Built]) -> None:
    built = build("--precision", "int8", "--calibration", "holdout", "--image-score", "reweighted")
    assert built.code == 0, built.err
    manifest = Bundle.load(built.path).manifest
    assert manifest.precision is not None
    assert manifest.precision.images == manifest.source.images_held_out == 3


def test_without_calibration_nothing_is_compared_and_that_is_said(build: Callable[..., Built]) -> None:
    built = build("--precision", "int8", "--calibration", "none")
    assert built.code == 0 and Bundle.load(built.path).manifest.precision is None
    assert "what the graph does to the scores was not compared with fp32" in built.err


def test_a_float16_build_runs_and_says_that_the_cpu_is_the_wrong_place(
    build: Callable[..., Built], capsys: pytest.CaptureFixture[str]
) -> None:
    built = build("--precision", "fp16")
    assert built.code == 0, built.err
    (warning,) = (line for line in built.err.splitlines() if "the embedder is float16" in line)
    assert warning.startswith("warning: ") and "slower than float32" in warning
    manifest = Bundle.load(built.path).manifest
    assert manifest.embedding.precision == "fp16"
    assert manifest.precision is not None and manifest.precision.max_score_drift < 0.01
    assert pcrun(["selftest", "--bundle", str(built.path)]) == 0
    assert "pcrun: warning: the embedder is float16" in capsys.readouterr().err


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_a_bfloat16_build_needs_openvino(build: Callable[..., Built], provider: str) -> None:
    built = build("--precision", "bf16", "--provider", provider)
    assert built.code == 2 and "trace" not in built.err
    assert "does not compute in bf16. Expected `--provider openvino`" in built.err


def test_a_bfloat16_bundle_runs_on_openvino_alone(build: Callable[..., Built]) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (extra: openvino)")
    built = build("--precision", "bf16", "--provider", "openvino")
    if "This processor has no bfloat16" in built.err:
        pytest.skip("this processor has no bfloat16")
    assert built.code == 0, built.err
    manifest = Bundle.load(built.path).manifest
    assert (manifest.embedding.precision, manifest.embedding.provider) == ("bf16", "openvino")
    assert "openvino" in manifest.created_by
    assert manifest.precision is not None and 0 < manifest.precision.max_score_drift < 0.05
    detector = AnomalyDetector.load(built.path, provider="openvino")
    assert (detector.precision, detector.change) == ("bf16", None)
    with pytest.raises(BackendError, match="'cpu' does not compute in bf16"):
        AnomalyDetector.load(built.path, provider="cpu")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_projected_build_has_short_embeddings_and_says_what_they_cost(
    build: Callable[..., Built], precision: str
) -> None:
    built = build("--project", "48", "--precision", precision, report=True)
    assert built.code == 0, built.err
    manifest = Bundle.load(built.path).manifest
    assert (manifest.embedding.dim, manifest.embedding.projected_from) == (48, 384)
    assert manifest.memory_bank.dim == 48
    assert manifest.precision is not None and 0 < manifest.precision.max_score_drift < 0.2
    assert (
        f"Scores of {precision}, projected from 384 values, against fp32"
        in (built.path / "report.html").read_text()
    )
    assert "projected from 384-d" in built.out
    assert pcrun(["selftest", "--bundle", str(built.path)]) == 0


def test_a_projection_that_does_not_shorten_is_refused(build: Callable[..., Built]) -> None:
    built = build("--project", "384")
    assert built.code == 2 and not built.path.exists()
    assert "project 384 is not fewer than the 384 dimensions" in built.err
