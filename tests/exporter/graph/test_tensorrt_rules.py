"""Graphs that TensorRT could not run are told before they are written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra: export)")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from pcexport.errors import BuildError  # noqa: E402
from pcexport.graph.rewrite import finished  # noqa: E402
from pcexport.graph.tensorrt_rules import quantisation_problems, tensorrt_problems  # noqa: E402

FLOAT, UINT8, INT8, INT64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT64
Dims = "list[int | str]"


def model_of(
    nodes: list[onnx.NodeProto],
    *,
    image: tuple[int, Dims] = (FLOAT, [1, 3, 8, 8]),
    output: Dims | None = None,
    stored: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", *image)],
        [helper.make_tensor_value_info("out", FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in (stored or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def node(op_type: str, inputs: list[str], output: str = "out", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"the_{op_type.lower()}", **attributes)


SIZES = np.array([1, 3, 16, 16], np.int64)
PIXELS = {"sizes": SIZES}


def resize(**attributes: Any) -> onnx.ModelProto:
    nodes = [node("Resize", ["image", "", "", "sizes"], **attributes)]
    return model_of(nodes, output=[1, 3, 16, 16], stored=PIXELS)


def test_what_the_exporter_writes_for_upsampling_is_allowed() -> None:
    written = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "floor"}
    assert tensorrt_problems(resize(**written, keep_aspect_ratio_policy="stretch", antialias=0)) == []


@pytest.mark.parametrize(
    "attributes, problem",
    [
        ({"mode": "cubic"}, "mode 'cubic', not one of nearest, linear"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "coordinate_transformation_mode"),
        ({"mode": "linear", "antialias": 1}, "antialias 1, not one of 0"),
        ({"mode": "linear", "keep_aspect_ratio_policy": "not_larger"}, "keep_aspect_ratio_policy"),
    ],
)
def test_a_resize_that_tensorrt_does_not_document_is_named(attributes: dict[str, Any], problem: str) -> None:
    (found,) = tensorrt_problems(resize(**attributes))
    assert "Resize the_resize" in found and problem in found


def test_a_rule_for_the_nearest_pixel_says_nothing_about_other_modes() -> None:
    assert tensorrt_problems(resize(mode="linear", nearest_mode="round_prefer_floor")) == []
    assert tensorrt_problems(resize(mode="linear", nearest_mode="simple")) == []


def test_a_dilated_pool_and_places_of_the_largest_values_are_refused() -> None:
    pool = helper.make_node("MaxPool", ["image"], ["out", "where"], kernel_shape=[2, 2], dilations=[2, 2])
    assert [problem.split(" ", 2)[2] for problem in tensorrt_problems(model_of([pool]))] == [
        "is dilated",
        "gives the places of the largest values",
    ]


def test_a_one_dimensional_pool_is_refused() -> None:
    model = model_of([node("AveragePool", ["image"], kernel_shape=[2])], image=(FLOAT, [1, 3, 8]))
    assert tensorrt_problems(model) == ["AveragePool the_averagepool is neither two- nor three-dimensional"]


def test_only_a_conversion_may_read_the_uint8_image() -> None:
    first = node("Transpose", ["image"], "moved", perm=[0, 3, 1, 2])
    nodes = [first, node("Cast", ["moved"], to=FLOAT)]
    problems = tensorrt_problems(model_of(nodes, image=(UINT8, [1, 8, 8, 3])))
    assert problems[-1] == "Transpose the_transpose reads the uint8 image, which only Cast can"
    nodes = [node("Cast", ["image"], "real", to=FLOAT), node("Transpose", ["real"], perm=[0, 3, 1, 2])]
    assert tensorrt_problems(model_of(nodes, image=(UINT8, [1, 8, 8, 3]))) == []


def test_doubles_are_refused() -> None:
    nodes = [
        node("Cast", ["image"], "wide", to=TensorProto.DOUBLE),
        helper.make_node("Cast", ["wide"], ["out"], to=FLOAT),
    ]
    assert tensorrt_problems(model_of(nodes)) == ["wide is double, which no operator there takes"]


def test_a_shape_from_the_images_content_is_refused() -> None:
    nodes = [
        node("ReduceMax", ["image"], "brightest", keepdims=0),
        helper.make_node("Cast", ["brightest"], ["whole"], to=INT64),
        helper.make_node("Reshape", ["whole", "one"], ["length"]),
        node("Expand", ["image", "length"], "out"),
    ]
    problems = tensorrt_problems(model_of(nodes, stored={"one": np.array([1], np.int64)}))
    assert "Expand the_expand takes a shape that depends on the image's content" in problems


def test_a_shape_from_the_batch_is_allowed() -> None:
    nodes = [
        node("Shape", ["image"], "all"),
        node("Gather", ["all", "zero"], "batch"),
        node("Concat", ["batch", "rest"], "wanted", axis=0),
        node("Reshape", ["image", "wanted"]),
    ]
    stored = {"zero": np.array([0], np.int64), "rest": np.array([192], np.int64)}
    model = model_of(nodes, image=(FLOAT, ["n", 3, 8, 8]), output=["n", 192], stored=stored)
    assert tensorrt_problems(model) == []


@pytest.mark.parametrize(
    "image, output",
    [(["n", 3, "h", 8], ["n", 3, "h", 8]), ([1, 3, "h", 8], [1, 3, "h", 8]), ([3, "n"], [3, "n"])],
)
def test_only_the_batch_may_be_open(image: Dims, output: Dims) -> None:
    problems = tensorrt_problems(model_of([node("Relu", ["image"])], image=(FLOAT, image), output=output))
    assert "image has an open dimension other than the batch" in problems


def test_an_open_batch_may_stand_elsewhere_inside() -> None:
    nodes = [node("Transpose", ["image"], "turned", perm=[1, 0]), node("Transpose", ["turned"], perm=[1, 0])]
    assert tensorrt_problems(model_of(nodes, image=(FLOAT, ["n", 3]), output=["n", 3])) == []


def test_axes_that_are_computed_are_refused() -> None:
    nodes = [node("Shape", ["image"], "axes"), node("Unsqueeze", ["image", "axes"])]
    assert "Unsqueeze the_unsqueeze takes axes that are not constant" in tensorrt_problems(model_of(nodes))


@pytest.mark.parametrize("opset", [8, 25])
def test_an_opset_out_of_the_documented_range_is_refused(opset: int) -> None:
    problems = tensorrt_problems(model_of([node("Relu", ["image"])], opset=opset))
    assert problems == [f"opset {opset} is not one of 9..24"]


def test_more_than_eight_dimensions_are_refused() -> None:
    dims: Dims = [1] * 9
    problems = tensorrt_problems(model_of([node("Relu", ["image"])], image=(FLOAT, dims), output=dims))
    assert problems == ["image has 9 dimensions, more than 8", "out has 9 dimensions, more than 8"]


def test_a_graph_that_breaks_a_rule_is_not_written() -> None:
    with pytest.raises(
        BuildError, match="TensorRT cannot run the exported graph: Resize the_resize has mode"
    ):
        finished(resize(mode="cubic"))


def rounded(zero_point: np.ndarray | None) -> onnx.ModelProto:
    names = ["scale"] if zero_point is None else ["scale", "zero"]
    nodes = [node("QuantizeLinear", ["image", *names], "small"), node("DequantizeLinear", ["small", *names])]
    stored = {"scale": np.array(0.1, np.float32)}
    return model_of(nodes, stored=stored if zero_point is None else {**stored, "zero": zero_point})


def test_signed_rounding_around_zero_is_what_tensorrt_takes() -> None:
    assert quantisation_problems(rounded(np.array(0, np.int8))) == []


@pytest.mark.parametrize(
    "zero_point, problem",
    [
        (np.array(0, np.uint8), "is uint8, not int8"),
        (np.array(3, np.int8), "has a zero point other than 0"),
        (None, "has no stored zero point, which means uint8"),
    ],
)
def test_other_rounding_is_not(zero_point: np.ndarray | None, problem: str) -> None:
    model = rounded(zero_point)
    assert [found.split(" ", 2)[2] for found in quantisation_problems(model)] == [problem, problem]
    # It is right on processors, so the graph as such is not refused.
    assert tensorrt_problems(model) == []
