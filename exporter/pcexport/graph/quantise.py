"""Static 8-bit quantisation of the backbone, calibrated on normal images.

In QDQ form: each quantised operator stands between DequantizeLinear and QuantizeLinear nodes, which providers
fuse into integer kernels, and which stay valid ONNX where they do not. Weights are int8 with one scale per
channel, activations uint8. The first convolution, aggregation and output stay float32.

`signed` rounds as TensorRT does: activations to int8 with zero point 0, biases not at all (it refuses
DequantizeLinear of int32), and where NVIDIA's "Q/DQ Layer-Placement Recommendations" place it: at the inputs
of weighted operators, not at outputs, and at one input of each sum, so that a convolution, the sum after it
and its activation become one kernel.
"""

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pcexport.errors import BuildError
from pcexport.graph.rewrite import INPUT_NAME, consumers, finished, in_backbone, replace_initializers
from pcrun.backends.session import import_onnxruntime
from pcrun.types import UInt8Array

_WEIGHTED = ("Conv", "Gemm", "MatMul")
# Operators that keep their neighbours' integers, or merge into them.
_PASSING = ("Relu", "Clip", "MaxPool")
_SIGNED_OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": [*_WEIGHTED, "Add"],
}


def quantise(model: bytes, images: Iterable[UInt8Array], *, batch: int | None, signed: bool = False) -> bytes:
    """Quantise the backbone's operators.

    Args:
        model: float32 graph with marked backbone (`pcexport.graph.rewrite`).
        images: (height, width, 3) uint8 RGB each, prepared; the ranges of all activations come from them.
        batch: images per call of the graph; None for any number.
        signed: round as TensorRT does.

    Returns:
        A checked graph with the same input and output; equal arguments give equal bytes.

    Raises:
        BuildError: onnxruntime cannot quantise it, or there is nothing to quantise.
    """
    proto = onnx.load_from_string(model)
    _rectify_last(proto.graph)
    nodes = quantised_nodes(proto.graph)
    if signed:
        rounded = {node.name for node in proto.graph.node if node.op_type in (*_WEIGHTED, "Add")}
        nodes = [name for name in nodes if name in rounded]
    if not nodes:
        raise BuildError(
            "The backbone has no operator that can be quantised. Expected convolutions or matrix products "
            "that the exporter marked as the backbone's; use --precision fp32, or a newer torch."
        )
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="pcexport-") as folder, _quiet():
        output = Path(folder) / "quantised.onnx"
        try:
            quantize_static(
                proto,
                output,
                CalibrationImages(images, batch or 1),
                quant_format=QuantFormat.QDQ,
                calibrate_method=CalibrationMethod.MinMax,
                per_channel=True,
                # 7-bit weights: processors without VNNI add two products in 16 bits, which would saturate.
                reduce_range=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                op_types_to_quantize=[*_WEIGHTED, *_PASSING, "Add"],
                nodes_to_quantize=nodes,
                extra_options={"MatMulConstBOnly": True, **(_SIGNED_OPTIONS if signed else {})},
            )
            quantised = onnx.load(output)
        except Exception as error:  # onnxruntime raises ValueError, RuntimeError and others
            raise BuildError(
                f"onnxruntime cannot quantise the backbone ({type(error).__name__}: {error}). "
                "Expected a graph of convolutions; use --precision fp32 or another backbone."
            ) from error
    _keep_feature_maps(quantised.graph, nodes)
    if signed:
        _round_one_input_of_sums(quantised.graph)
    return finished(quantised)


def _rectify_last(graph: onnx.GraphProto) -> None:
    """Let the first convolution be followed by MaxPool, then Max with 0, in place of ReLU and MaxPool.

    It is the same. But onnxruntime moves the rounding to 8 bits up through ReLU and MaxPool, to a kernel for
    8-bit pooling that takes longer than the whole network; through Max it does not.
    """
    readers = consumers(graph)
    for relu in [node for node in graph.node if node.op_type == "Relu"]:
        conv = next((node for node in graph.node if relu.input[0] in node.output), None)
        pools = readers.get(relu.output[0], [])
        if conv is None or not _reads_image(conv, graph) or [n.op_type for n in pools] != ["MaxPool"]:
            continue
        pool, pooled, zero = pools[0], f"{relu.name}/pooled", f"{relu.name}/zero"
        rectify = helper.make_node("Max", [pooled, zero], list(pool.output), relu.name)
        pool.input[0], pool.output[0] = conv.output[0], pooled
        # The two trade places, so that nodes stay in the order of computation.
        relu.CopyFrom(pool)
        pool.CopyFrom(rectify)
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), zero))


def _reads_image(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether it is a convolution of the backbone that reads no other node of it."""
    inside = {name for other in graph.node if in_backbone(other) for name in other.output}
    return node.op_type == "Conv" and in_backbone(node) and node.input[0] not in inside


def _keep_feature_maps(graph: onnx.GraphProto, quantised: list[str]) -> None:
    """Let the aggregation read float32 feature maps where the next layer's 8 bits were put in their place."""
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if in_backbone(node) or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for number, name in enumerate(node.input):
            original = _before_rounding(name, producer)
            if original in producer and producer[original].name not in quantised:
                node.input[number] = original


def _round_one_input_of_sums(graph: onnx.GraphProto) -> None:
    """Let sums read one of their convolutions as it is: it takes the sum into its own kernel."""
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        originals = [_before_rounding(name, producer) for name in node.input]
        both_rounded = all(before != name for before, name in zip(originals, node.input, strict=True))
        convolved = [n for n, name in enumerate(originals) if producer[name].op_type == "Conv"]
        if both_rounded and convolved:
            node.input[convolved[0]] = originals[convolved[0]]
    _drop_unread(graph)


def _drop_unread(graph: onnx.GraphProto) -> None:
    read = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    replace_initializers(graph, ())


def _before_rounding(name: str, producer: dict[str, onnx.NodeProto]) -> str:
    """The tensor that QuantizeLinear and DequantizeLinear round to `name`; `name` itself without them."""
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        node = producer.get(name)
        if node is None or node.op_type != op_type:
            return name
        name = node.input[0]
    return name


def quantised_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the backbone's nodes that become integer operators.

    Convolutions and matrix products with stored weights, sums of convolutions (the shortcut connections), and
    what follows these without leaving the integers. The first convolution stays float32: of its error, the
    patches feel most, and three channels gain nothing from integers. So do sums that end in a feature map, so
    that the memory bank is not made of 8-bit values, and the sums of transformers, whose few huge components
    8 bits cannot hold.
    """
    producer = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name for tensor in graph.initializer}
    feature_sums = {id(node) for node in _feature_map_producers(graph, producer)}
    chosen: list[str] = []
    integers: set[str] = set()  # tensors that a chosen node computes
    convolved: set[str] = set()  # tensors made of convolutions alone, chosen or not
    for node in filter(in_backbone, graph.node):
        if node.op_type in _WEIGHTED:
            fits = node.input[1] in stored and not _reads_image(node, graph)
        elif node.op_type == "Add":
            fits = id(node) not in feature_sums and convolved.issuperset(node.input)
        else:
            fits = node.op_type in _PASSING and node.input[0] in integers
        if fits:
            chosen.append(node.name)
            integers.update(node.output)
        follows = node.op_type in (*_PASSING, "Add", "Max") and convolved.issuperset(set(node.input) - stored)
        if node.op_type == "Conv" or follows:
            convolved.update(node.output)
    return chosen


def _feature_map_producers(
    graph: onnx.GraphProto, producer: dict[str, onnx.NodeProto]
) -> Iterator[onnx.NodeProto]:
    """What computes the feature maps: the backbone's last operators, activations passed over."""
    for name, readers in consumers(graph).items():
        node = producer.get(name)
        if node is None or not in_backbone(node) or all(in_backbone(reader) for reader in readers):
            continue
        while node.op_type in _PASSING and node.input[0] in producer:
            node = producer[node.input[0]]
        yield node


class CalibrationImages:
    """Calibration images, as onnxruntime asks for them: one feed after another, then None."""

    def __init__(self, images: Iterable[UInt8Array], batch: int) -> None:
        self._images = iter(images)
        self._batch = batch

    def get_next(self) -> dict[str, UInt8Array] | None:
        """The next feed; the last image fills up a batch."""
        feed = list(itertools.islice(self._images, self._batch))
        if not feed:
            return None
        return {INPUT_NAME: np.stack([*feed, *[feed[-1]] * (self._batch - len(feed))])}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice off the terminal; failures arrive as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
