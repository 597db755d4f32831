"""Writes tiny student files with random weights, and computes in plain numpy what they give."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from pcexport.backbones.student_facts import FORMAT, CheckValues, StudentFacts, check_picture
from pcexport.backbones.student_file import write_facts

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHALLOW, DEEP = 16, 24
CHECK_HW = (32, 48)
CHECK_POSITIONS = tuple((patch, (7 * patch) % (SHALLOW + DEEP)) for patch in range(0, 24, 3))
# Name -> (output channels, input channels, kernel, stride, padding).
CONVOLUTIONS = {
    "stem": (8, 3, 4, 4, 0),
    "layer2": (SHALLOW, 8, 3, 2, 1),
    "layer3": (DEEP, SHALLOW, 3, 2, 1),
}


def write_student(path: Path, *, seed: int = 0, error: float = 0.0, **changes: Any) -> StudentFacts:
    """Write a student file to the contract of docs/backbones.md and return what it says of itself.

    Args:
        path: the new file.
        seed: of the weights.
        error: added to the recorded values, in units of the embedding's root mean square.
        changes: facts to replace.
    """
    weights = random_weights(seed)
    facts = dataclasses.replace(student_facts(weights, error), **changes)
    model = student_model(weights)
    write_facts(model, facts)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return facts


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Float16 weights and biases by name."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, (out, inner, side, _, _) in CONVOLUTIONS.items():
        spread = (2 / (inner * side * side)) ** 0.5
        weights[f"{name}.weight"] = (rng.normal(size=(out, inner, side, side)) * spread).astype(np.float16)
        weights[f"{name}.bias"] = (rng.normal(size=out) * 0.1).astype(np.float16)
    return weights


def student_facts(weights: dict[str, np.ndarray], error: float = 0.0) -> StudentFacts:
    expected = numpy_embedding(weights, check_picture(*CHECK_HW))
    scale = float(np.sqrt(np.mean(expected**2)))
    values = tuple(float(expected[position]) + error * scale for position in CHECK_POSITIONS)
    return StudentFacts(
        format=FORMAT,
        student="tiny-s",
        teacher="resnet18",
        teacher_weights_sha256="0" * 64,
        layers=("layer2", "layer3"),
        dim=SHALLOW + DEEP,
        stride=8,
        image_multiple=16,
        neighbourhood=3,
        mean_rgb=MEAN,
        std_rgb=STD,
        data={"images": 0},
        steps=0,
        loss=0.0,
        seed=0,
        versions={},
        check=CheckValues(*CHECK_HW, CHECK_POSITIONS, values, scale),
    )


def student_model(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The graph: all sizes open, weights stored in float16 and cast to float32."""
    mean, std = (np.float32(values).reshape(3, 1, 1) * 255 for values in (MEAN, STD))
    constants = {
        "mean": mean,
        "std": std,
        "twice": np.float32([1, 1, 2, 2]),
        "flat": np.int64([0, SHALLOW + DEEP, -1]),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "float", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], "nchw", perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["nchw", "mean"], ["centred"], "centred"),
        helper.make_node("Div", ["centred", "std"], ["normalised"], "normalised"),
    ]
    feature = "normalised"
    for name in CONVOLUTIONS:
        nodes += _convolution(name, feature)
        feature = name
    nodes += [
        *(_average(name) for name in ("layer2", "layer3")),
        helper.make_node("Resize", ["layer3/mean", "", "twice"], ["up"], "up", mode="linear"),
        helper.make_node("Concat", ["layer2/mean", "up"], ["maps"], "maps", axis=1),
        helper.make_node("Reshape", ["maps", "flat"], ["rows"], "rows"),
        helper.make_node("Transpose", ["rows"], ["patch_embeddings"], "patches", perm=[0, 2, 1]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    output = helper.make_tensor_value_info(
        "patch_embeddings", TensorProto.FLOAT, ["batch", "patches", SHALLOW + DEEP]
    )
    stored = [
        numpy_helper.from_array(value, f"{name}/float16" if name in weights else name)
        for name, value in {**weights, **constants}.items()
    ]
    graph = helper.make_graph(nodes, "student", [image], [output], stored)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


def _convolution(name: str, source: str) -> list[onnx.NodeProto]:
    _, _, side, stride, padding = CONVOLUTIONS[name]
    parameters = [f"{name}.weight", f"{name}.bias"]
    widened = [
        helper.make_node("Cast", [f"{p}/float16"], [p], f"backbone/widen_{p}", to=TensorProto.FLOAT)
        for p in parameters
    ]
    sizes = {"kernel_shape": [side] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
    conv = helper.make_node("Conv", [source, *parameters], [f"{name}/conv"], f"backbone/{name}/conv", **sizes)
    return [*widened, conv, helper.make_node("Relu", [f"{name}/conv"], [name], f"backbone/{name}/relu")]


def _average(name: str) -> onnx.NodeProto:
    sizes = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    return helper.make_node("AveragePool", [name], [f"{name}/mean"], f"{name}/mean", **sizes)


def numpy_embedding(weights: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """What the graph must give for one (height, width, 3) uint8 image: (patches, dim) float64."""
    feature = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)
    maps = {}
    for name, (_, _, side, stride, padding) in CONVOLUTIONS.items():
        windows = _windows(feature, side, stride, padding)
        kernel = weights[f"{name}.weight"].astype(np.float64)
        bias = weights[f"{name}.bias"].astype(np.float64)
        feature = np.maximum(np.einsum("chwij,ocij->ohw", windows, kernel) + bias[:, None, None], 0)
        maps[name] = feature
    shallow, deep = (_windows(maps[name], 3, 1, 1).mean(axis=(3, 4)) for name in ("layer2", "layer3"))
    deep = _doubled(_doubled(deep, axis=1), axis=2)
    return np.concatenate([shallow, deep]).reshape(SHALLOW + DEEP, -1).T


def _windows(maps: np.ndarray, side: int, stride: int, padding: int) -> np.ndarray:
    padded = np.pad(maps, ((0, 0), (padding, padding), (padding, padding)))
    return sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::stride, ::stride]


def _doubled(maps: np.ndarray, axis: int) -> np.ndarray:
    """Bilinear, centres of pixels aligned: a quarter of the neighbour on the one side, then on the other."""
    size = maps.shape[axis]
    before = np.take(maps, np.maximum(np.arange(size) - 1, 0), axis)
    after = np.take(maps, np.minimum(np.arange(size) + 1, size - 1), axis)
    pair = np.stack([0.75 * maps + 0.25 * before, 0.75 * maps + 0.25 * after], axis + 1)
    return pair.reshape(*maps.shape[:axis], 2 * size, *maps.shape[axis + 1 :])
