"""From a trained student to its file: one ONNX graph for every image size, weights in float16."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pcexport.backbones.student_facts import CheckValues, StudentFacts, check_picture
from pcexport.backbones.student_file import write_facts
from pcexport.distill.student import ConvUnit, ResidualBlock, Student, aggregate
from pcexport.graph.rewrite import BACKBONE, INPUT_NAME, OUTPUT_NAME
from pcrun.types import AnyArray

OPSET = 18
_IR_VERSION = 9
_CHECK_HW = (160, 192)
_CHECK_VALUES = 256


def folded(student: Student, scale: Tensor) -> Student:
    """A copy whose convolutions hold the batch normalisation after them, rounded to float16.

    Args:
        student: in eval mode.
        scale: (C8 + C16,) factors of the outputs, which the heads take in.
    """
    result = copy.deepcopy(student).eval().requires_grad_(False)
    for unit in (module for module in result.modules() if isinstance(module, ConvUnit)):
        conv, norm = unit[0], unit[1]
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight.mul_(factor.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter(norm.bias - norm.running_mean * factor, requires_grad=False)
        unit[1] = nn.Identity()
    split = result.shallow_head.out_channels
    for head, part in ((result.shallow_head, scale[:split]), (result.deep_head, scale[split:])):
        assert head.bias is not None
        head.weight.mul_(part.view(-1, 1, 1, 1))
        head.bias.mul_(part)
    for parameter in result.parameters():
        parameter.copy_(parameter.half().float())
    return result


def student_file(student: Student, facts: StudentFacts) -> bytes:
    """The bytes of a student file.

    Args:
        student: from `folded`.
        facts: all but `check`, which is computed here: what torch gives for the check picture.
    """
    writer = _Writer()
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) * 255 for v in (facts.mean_rgb, facts.std_rgb))
    # Cast first: TensorRT takes a uint8 input by nothing else.
    pixels = writer.node("Cast", [INPUT_NAME], to=TensorProto.FLOAT)
    planes = writer.node("Transpose", [pixels], perm=[0, 3, 1, 2])
    shifted = writer.node("Sub", [planes, writer.constant("mean", mean)])
    x = writer.node("Div", [shifted, writer.constant("std", std)])
    shallow = writer.sequence(student.shallow, "shallow", x)
    deep = writer.sequence(student.deep, "deep", shallow)
    maps = [
        writer.convolution(student.shallow_head, "shallow_head", shallow),
        writer.convolution(student.deep_head, "deep_head", deep),
    ]
    pooled = [
        writer.node("AveragePool", [m], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
        for m in maps
    ]
    scales = writer.constant("scales", np.array([1, 1, 2, 2], np.float32))
    finer = writer.node(
        "Resize", [pooled[1], "", scales], mode="linear", coordinate_transformation_mode="half_pixel"
    )
    grid = writer.node("Concat", [pooled[0], finer], axis=1)
    shape = writer.constant("shape", np.array([0, facts.dim, -1], np.int64))
    rows = writer.node("Reshape", [grid, shape])
    writer.node("Transpose", [rows], output=OUTPUT_NAME, perm=[0, 2, 1])
    model = writer.model(facts.dim)
    write_facts(model, replace(facts, check=_check_values(student, facts)))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _check_values(student: Student, facts: StudentFacts) -> CheckValues:
    picture = torch.from_numpy(check_picture(*_CHECK_HW)).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (facts.mean_rgb, facts.std_rgb))
    with torch.inference_mode():
        grid = aggregate(*student((picture - mean) / std))[0]
    rows: AnyArray = grid.flatten(1).T.double().numpy()
    rng = np.random.default_rng(0)
    patches = rng.integers(0, rows.shape[0], _CHECK_VALUES)
    channels = rng.integers(0, rows.shape[1], _CHECK_VALUES)
    return CheckValues(
        height=_CHECK_HW[0],
        width=_CHECK_HW[1],
        positions=tuple(zip(patches.tolist(), channels.tolist(), strict=True)),
        values=tuple(rows[patches, channels].tolist()),
        scale=float(np.sqrt(np.square(rows).mean())),
    )


class _Writer:
    """Collects nodes and weights; every method gives the name of what it made."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def node(
        self, op_type: str, inputs: list[str], *, name: str = "", output: str = "", **attributes: Any
    ) -> str:
        """Add an operator."""
        output = output or f"value_{len(self._nodes)}"
        name = name or f"node_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def constant(self, name: str, value: AnyArray) -> str:
        """Add an initializer as it is."""
        self._initializers.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, value: Tensor) -> str:
        """Add a weight of the backbone: float16 in the file, cast to float32 in the graph."""
        half = self.constant(f"{name}_half", value.detach().half().numpy())
        return self.node("Cast", [half], name=f"{BACKBONE}widen_{name}", output=name, to=TensorProto.FLOAT)

    def convolution(self, conv: nn.Conv2d, name: str, x: str) -> str:
        """Add a convolution with its bias."""
        assert conv.bias is not None
        kernel, pad = conv.kernel_size[0], int(conv.padding[0])
        return self.node(
            "Conv",
            [x, self.weight(f"{name}.weight", conv.weight), self.weight(f"{name}.bias", conv.bias)],
            name=BACKBONE + name,
            kernel_shape=[kernel, kernel],
            strides=list(conv.stride),
            pads=[pad] * 4,
        )

    def unit(self, unit: ConvUnit, name: str, x: str) -> str:
        """Add a convolution and its activation."""
        conv = unit[0]
        assert isinstance(conv, nn.Conv2d)
        y = self.convolution(conv, name, x)
        return self.node("Relu", [y], name=f"{BACKBONE}{name}.relu") if unit.relu else y

    def block(self, block: ResidualBlock, name: str, x: str) -> str:
        """Add a residual block."""
        y = self.unit(block.second, f"{name}.second", self.unit(block.first, f"{name}.first", x))
        total = self.node("Add", [x, y], name=f"{BACKBONE}{name}.add")
        return self.node("Relu", [total], name=f"{BACKBONE}{name}.relu")

    def sequence(self, modules: nn.Sequential, name: str, x: str) -> str:
        """Add units and blocks in their order."""
        for place, module in _children(modules, name):
            if isinstance(module, ResidualBlock):
                x = self.block(module, place, x)
            else:
                assert isinstance(module, ConvUnit)
                x = self.unit(module, place, x)
        return x

    def model(self, dim: int) -> onnx.ModelProto:
        """The model of everything added."""
        inputs = [
            helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", "height", "width", 3])
        ]
        outputs = [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", "patches", dim])]
        graph = helper.make_graph(self._nodes, "patch_embedder", inputs, outputs, self._initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="pcexport distill"
        )


def _children(modules: nn.Sequential, name: str) -> Iterator[tuple[str, nn.Module]]:
    return ((f"{name}.{i}", module) for i, module in enumerate(modules))
