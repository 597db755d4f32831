"""Operators an embedder may use: those TensorRT documents as supported. `tensorrt_rules` says how.

Source: the operator matrix of the onnx-tensorrt parser (docs/operators.md of onnx/onnx-tensorrt, TensorRT
10.15). Left out although supported there: operators whose output shape depends on values (NonZero, Loop, If),
which would stop a static engine.
"""

import onnx

TENSORRT_SAFE_OPERATORS = frozenset(
    [
        "Abs",
        "Add",
        "ArgMax",
        "ArgMin",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
        "DepthToSpace",
        "Div",
        "Einsum",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "LogSoftmax",
        "MatMul",
        "Max",
        "MaxPool",
        "Mean",
        "Min",
        "Mul",
        "Neg",
        "Pad",
        "Pow",
        "PRelu",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "Round",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Softplus",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Tanh",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
        "DequantizeLinear",
        "QuantizeLinear",
    ]
)


def unsafe_operators(model: onnx.ModelProto) -> list[str]:
    """Names of the operators in the graph (subgraphs included) that are not on the list, sorted."""
    return sorted({name for name in _operators(model.graph) if name not in TENSORRT_SAFE_OPERATORS})


def _operators(graph: onnx.GraphProto) -> list[str]:
    names: list[str] = []
    for node in graph.node:
        # An operator of another domain is never on the list, whatever its name.
        names.append(f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type)
        for attribute in node.attribute:
            subgraphs = (
                [*attribute.graphs, attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            )
            for subgraph in subgraphs:
                names.extend(_operators(subgraph))
    return names
