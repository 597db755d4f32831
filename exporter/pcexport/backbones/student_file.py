"""Student files: small distilled backbones, one ONNX file each, that need no torch. See docs/backbones.md."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from pcexport.backbones.image_size import check_image_multiple
from pcexport.backbones.student_facts import METADATA_KEY, StudentFacts, parse_facts
from pcexport.errors import BuildError
from pcexport.graph.rewrite import INPUT_NAME, OUTPUT_NAME, finished, in_backbone, replace_initializers
from pcrun.bundle.onnx_file import OnnxFacts, inspect_onnx
from pcrun.errors import BundleError
from pcrun.records import RecordError


@dataclass(frozen=True)
class Student:
    """A student file that was read and found sound.

    Attributes:
        facts: what it says of itself.
        file_name: of the file, without its folder.
        sha256: of the file, hex.
        opset: ONNX opset of the graph.
        model: the graph with float32 weights; `graph` fixes its sizes.
    """

    facts: StudentFacts
    file_name: str
    sha256: str
    opset: int
    model: onnx.ModelProto = field(repr=False)

    def graph(self, image_hw: tuple[int, int], batch: int | None) -> bytes:
        """The graph for one image size.

        Args:
            image_hw: height and width of the uint8 input.
            batch: static batch, or None for a dynamic one.

        Returns:
            A checked float32 graph, as a trace gives it.

        Raises:
            BuildError: the size is not a multiple of `image_multiple`, or the graph is not as it says.
        """
        multiple = self.facts.image_multiple
        check_image_multiple(self.facts.student, image_hw, (multiple, multiple))
        grid_height, grid_width = self.facts.grid_hw(image_hw)
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        _set_dims(model.graph.input[0], [batch or "batch", *image_hw, 3])
        _set_dims(model.graph.output[0], [batch or "batch", grid_height * grid_width, self.facts.dim])
        del model.graph.value_info[:]
        try:
            # Compares the output's size with the one that the operators give.
            onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
            return finished(model)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            raise BuildError(
                f"The graph of student file {self.file_name} does not work at {image_hw[0]}x{image_hw[1]} "
                f"px ({_first_line(error)}). Expected {grid_height * grid_width} patches of {self.facts.dim} "
                "values; the file was not written by `pcexport distill`, get it again or train it anew."
            ) from error


def write_facts(model: onnx.ModelProto, facts: StudentFacts) -> None:
    """Make a graph a student: put its facts into its metadata."""
    helper.set_model_props(model, {METADATA_KEY: facts.to_json()})


def read_student(path: Path) -> Student:
    """Read and check a student file.

    Raises:
        BuildError: there is no such file, it is no ONNX file or no student, its format is newer, or its graph
            and its facts do not agree.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(
            f"The student file {path} cannot be read ({error.strerror or error}). Expected an .onnx file of "
            "`pcexport distill`, or a name that `pcexport backbones` lists."
        ) from error
    try:
        seen = inspect_onnx(data, name=path.name)
        model = onnx.load_from_string(data)
    except (BundleError, DecodeError) as error:
        raise BuildError(
            f"{path} is not an ONNX file. Expected a student file of `pcexport distill`; it may be damaged "
            "or cut short, copy it again."
        ) from error
    facts = _facts_of(model, path)
    _check_graph(seen, facts, path)
    _widen(model.graph)
    _check_weights(model.graph, path)
    # "" and "ai.onnx" name the same operators.
    opset = max(version for domain, version in seen.opset.items() if domain in ("", "ai.onnx"))
    return Student(facts, path.name, hashlib.sha256(data).hexdigest(), opset, model)


def _facts_of(model: onnx.ModelProto, path: Path) -> StudentFacts:
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        raise BuildError(
            f"{path} is an ONNX file without {METADATA_KEY} in its metadata: it is not a student. Expected a "
            "file of `pcexport distill`; other networks are traced from PyTorch, see `pcexport backbones`."
        )
    try:
        return parse_facts(text)
    except RecordError as error:
        raise BuildError(
            f"{path}: {error}. Expected the metadata that `pcexport distill` writes; get the file again."
        ) from error


def _check_graph(seen: OnnxFacts, facts: StudentFacts, path: Path) -> None:
    """Refuse what is not one self-contained graph with the input and output of an embedder."""
    if seen.external_files:
        raise BuildError(
            f"{path} keeps weights outside itself ({seen.external_files[0]!r}). Expected one file with all "
            "of its weights; save it without external data."
        )
    if not {"", "ai.onnx"}.intersection(seen.opset):
        raise BuildError(f"{path} names no ONNX opset. Expected a file of `pcexport distill`.")
    found = [(value.name, value.elem_type, *value.dims) for value in (*seen.inputs, *seen.outputs)]
    wanted = [(INPUT_NAME, "uint8", 4, 3), (OUTPUT_NAME, "float32", 3, facts.dim)]
    if [(*value[:2], len(value) - 2, value[-1]) for value in found] != wanted:
        raise BuildError(
            f"{path} has the inputs and outputs {found}. Expected uint8 '{INPUT_NAME}' (batch, height, "
            f"width, 3) and float32 '{OUTPUT_NAME}' (batch, patches, {facts.dim}); the file was not written "
            "by `pcexport distill`."
        )


def _widen(graph: onnx.GraphProto) -> None:
    """Store weights as the float32 that the graph casts them to; on disk they are float16, half as large."""
    halves = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT16}
    nodes, full = [], []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in halves and _casts_to(node, TensorProto.FLOAT):
            values = numpy_helper.to_array(halves[node.input[0]]).astype(np.float32)
            full.append(numpy_helper.from_array(values, node.output[0]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    replace_initializers(graph, full)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return any(attribute.name == "to" and attribute.i == kind for attribute in node.attribute)


def _check_weights(graph: onnx.GraphProto, path: Path) -> None:
    """Precisions are for the float32 nodes of the backbone: there must be some, and no other arithmetic."""
    if not any(map(in_backbone, graph.node)):
        raise BuildError(f"{path} marks no node as the backbone's. Expected a file of `pcexport distill`.")
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            raise BuildError(
                f"{path} computes with the float16 weight {tensor.name}. Expected every one to be cast to "
                "float32; --precision fp16 makes a float16 bundle of such a file."
            )
        if tensor.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise BuildError(
                f"{path} holds values in {tensor.name} that are not finite. Expected finite weights; the "
                "training diverged, or the file is damaged: get it again."
            )


def _set_dims(value: onnx.ValueInfoProto, dims: list[int | str]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for size in dims:
        if isinstance(size, str):
            shape.dim.add().dim_param = size
        else:
            shape.dim.add().dim_value = size


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
