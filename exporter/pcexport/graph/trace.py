"""From the torch module to the bytes of `embedder.onnx`: the only step that needs torch."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch

from pcexport.errors import BuildError
from pcexport.graph.embedding import PatchEmbedder
from pcexport.graph.rewrite import BACKBONE, INPUT_NAME, OUTPUT_NAME, finished

# Where the exporter writes which module a node comes from: "['', 'extractor', ...]".
_SCOPES = "pkg.torch.onnx.name_scopes"
_BACKBONE_SCOPE = "'extractor'"


def trace_to_onnx(
    embedder: PatchEmbedder, *, input_hw: tuple[int, int], batch: int | None, opset: int
) -> bytes:
    """Export the embedder.

    Args:
        embedder: in eval mode, on any device.
        input_hw: height and width of the uint8 input.
        batch: static batch, or None for a dynamic one.
        opset: ONNX opset.

    Returns:
        A serialised, checked ONNX model whose bytes depend on the weights and library versions alone.

    Raises:
        BuildError: the export failed, or needs an operator that is not on the TensorRT-safe list.
    """
    # A dynamic dimension must be traced with a size other than 0 and 1, which torch.export specialises.
    example = torch.zeros((batch or 2, *input_hw, 3), dtype=torch.uint8, device=embedder.mean.device)
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1, max=4096)},)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                embedder,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
            # Only the older exporter (dynamo=False) returns None.
            assert program is not None, "torch.onnx.export returned no program"
            model = program.model_proto
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise BuildError(
            f"The backbone cannot be exported to ONNX ({type(error).__name__}: {reason})."
        ) from error
    _require_opset(model, opset)
    _name_backbone(model.graph)
    _convert_first(model.graph)
    return finished(model)


def _require_opset(model: onnx.ModelProto, opset: int) -> None:
    if model.opset_import[0].version != opset:
        raise BuildError(
            f"The exporter wrote opset {model.opset_import[0].version} in place of {opset}. Pass --opset "
            f"{model.opset_import[0].version}."
        )


def _name_backbone(graph: onnx.GraphProto) -> None:
    """Mark the backbone's nodes by their names: lower precision is for them alone.

    A node without scopes was made by the exporter's own simplification, from neighbours on both sides; it
    stays unmarked, and so in float32.
    """
    for node in graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
        if _BACKBONE_SCOPE in scopes:
            node.name = BACKBONE + node.name


def _convert_first(graph: onnx.GraphProto) -> None:
    """Let shapes be read from the image in float32: TensorRT has no operator on uint8 other than Cast."""
    cast = next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == INPUT_NAME)
    readers = [node for node in graph.node if node.op_type == "Shape" and node.input[0] == INPUT_NAME]
    for node in readers:
        node.input[0] = cast.output[0]
    if readers:
        first = onnx.NodeProto()
        first.CopyFrom(cast)
        graph.node.remove(cast)
        graph.node.insert(0, first)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal; failures arrive as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
