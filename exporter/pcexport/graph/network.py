"""The first step of a build: the network as an ONNX graph, and the embedder that everything after it uses.

A backbone is traced with torch, or read from a student file without it; all other steps treat the two alike.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pcexport.backbones.registry import find_backbone, find_student, list_students
from pcexport.backbones.student_facts import StudentFacts
from pcexport.backbones.student_file import Student, read_student
from pcexport.config import BuildConfig, parse_batch, parse_size
from pcexport.errors import BuildError
from pcexport.graph.parity import compare_embedders, compare_with_record
from pcexport.graph.rewrite import INPUT_NAME, OUTPUT_NAME
from pcrun.backends.embedder import Embedder
from pcrun.backends.session import import_onnxruntime
from pcrun.backends.session import open_embedder as open_graph
from pcrun.bundle.manifest import EmbeddingSpec, ParitySpec
from pcrun.preprocess import PreprocessSpec
from pcrun.types import UInt8Array

if TYPE_CHECKING:
    from pcexport.graph.embedding import PatchEmbedder

_EXPORT_LINE = "pip install 'patchcore-edge[export,cpu]'"


@dataclass(frozen=True)
class TracedNetwork:
    """The graph, what it computes, and where it comes from.

    Attributes:
        onnx: float32 graph, or what it was converted to.
        spec: of that graph.
        origin: the torch module that was traced, or the student that was read; parity is measured with it.
    """

    onnx: bytes
    spec: EmbeddingSpec
    origin: "PatchEmbedder | Student"

    @property
    def needs_torch(self) -> bool:
        """Whether torch made the graph here, and is in memory."""
        return not isinstance(self.origin, Student)


def trace_network(config: BuildConfig, preprocess: PreprocessSpec) -> TracedNetwork:
    """The float32 graph of the configured backbone.

    Raises:
        BuildError: the backbone cannot be had, or does not go with the other keys.
    """
    student = find_student(config.backbone)
    return _from_student(student, config, preprocess) if student else _from_torch(config, preprocess)


def _from_torch(config: BuildConfig, preprocess: PreprocessSpec) -> TracedNetwork:
    """Load the backbone and trace it with torch.

    Raises:
        BuildError: torch is missing, or the backbone, its weights or its export fail.
    """
    try:
        from pcexport.backbones.loader import load_backbone
        from pcexport.graph.embedding import PatchEmbedder
        from pcexport.graph.trace import trace_to_onnx
    except ImportError as error:
        raise BuildError(_torch_is_missing(error)) from error

    chosen = find_backbone(config.backbone, config.layers)
    backbone = load_backbone(
        chosen, config.layers, weights=config.weights, image_hw=preprocess.input_hw, seed=config.seed
    )
    module = PatchEmbedder(
        backbone,
        aggregation=config.aggregation,
        neighbourhood=config.neighbourhood,
        grid_hw=parse_size(config.grid),
    )
    batch = parse_batch(config.batch)
    _check_grid(module.grid_hw, config)
    onnx = trace_to_onnx(module, input_hw=preprocess.input_hw, batch=batch, opset=config.opset)
    spec = EmbeddingSpec(
        backbone=config.backbone,
        layers=tuple(backbone.layers),
        weights_source=backbone.weights.source,
        weights_sha256=backbone.weights.sha256,
        aggregation=config.aggregation,
        neighbourhood=config.neighbourhood,
        grid_height=int(module.grid_hw[0]),
        grid_width=int(module.grid_hw[1]),
        dim=module.dim,
        batch=batch,
        precision="fp32",
        mean_rgb=tuple(float(v) for v in backbone.mean),
        std_rgb=tuple(float(v) for v in backbone.std),
        opset=config.opset,
        input_name=INPUT_NAME,
        output_name=OUTPUT_NAME,
    )
    return TracedNetwork(onnx, spec, module)


def _torch_is_missing(error: ImportError) -> str:
    shipped = ", ".join(list_students())
    without = f", or take a backbone that needs no torch: --backbone {shipped}" if shipped else ""
    return f"{error.name or error} is missing; tracing a backbone needs it. Install: {_EXPORT_LINE}{without}"


def _check_grid(grid_hw: tuple[int, int], config: BuildConfig) -> None:
    """A grid finer than the image's pixels holds nothing new, and may not fit into any memory."""
    if grid_hw[0] > config.crop_hw[0] or grid_hw[1] > config.crop_hw[1]:
        raise BuildError(
            f"grid {grid_hw[0]}x{grid_hw[1]} is finer than the input of "
            f"{config.crop_hw[0]}x{config.crop_hw[1]} px. "
            "Expected at most one patch per pixel; choose a smaller --grid."
        )


def _from_student(path: Path, config: BuildConfig, preprocess: PreprocessSpec) -> TracedNetwork:
    """Read the student file and fix its sizes.

    Raises:
        BuildError: the file is not sound, or a key asks for what a finished graph cannot change.
    """
    student = read_student(path)
    facts, grid_hw = student.facts, student.facts.grid_hw(preprocess.input_hw)
    _require_own(student, config, grid_hw)
    batch = parse_batch(config.batch)
    onnx = student.graph(preprocess.input_hw, batch)
    spec = EmbeddingSpec(
        backbone=facts.student,
        layers=facts.layers,
        weights_source=f"student file {student.file_name}, distilled from {facts.teacher}",
        weights_sha256=student.sha256,
        aggregation="locally_aware",
        neighbourhood=facts.neighbourhood,
        grid_height=grid_hw[0],
        grid_width=grid_hw[1],
        dim=facts.dim,
        batch=batch,
        precision="fp32",
        mean_rgb=facts.mean_rgb,
        std_rgb=facts.std_rgb,
        opset=student.opset,
        input_name=INPUT_NAME,
        output_name=OUTPUT_NAME,
    )
    return TracedNetwork(onnx, spec, student)


def _require_own(student: Student, config: BuildConfig, grid_hw: tuple[int, int]) -> None:
    """Refuse keys that ask for another network than the one in the file.

    Raises:
        BuildError: names them all, with what the student has.
    """
    wrong = [
        f"{name} is {_shown(getattr(config, name))}, the student has {own}"
        for name, fits, own in _fixed_keys(student, config, grid_hw)
        if not fits
    ]
    if wrong:
        raise BuildError(
            f"Student {student.facts.student} is a finished graph: {'; '.join(wrong)}. Expected these keys "
            "as they are in the file; leave them out or give them so, or choose a backbone that is traced."
        )


def _fixed_keys(
    student: Student, config: BuildConfig, grid_hw: tuple[int, int]
) -> list[tuple[str, bool, str]]:
    """(key, whether its value is the student's own, that value) of each key that the file decides."""
    facts: StudentFacts = student.facts
    return [
        ("layers", config.layers in (None, facts.layers), ",".join(facts.layers)),
        ("weights", config.weights == "default", "its own (default)"),
        ("aggregation", config.aggregation == "locally_aware", "locally_aware"),
        ("neighbourhood", config.neighbourhood == facts.neighbourhood, str(facts.neighbourhood)),
        ("grid", parse_size(config.grid) in (None, grid_hw), f"{grid_hw[0]}x{grid_hw[1]} at this image size"),
        ("opset", config.opset == student.opset, str(student.opset)),
        ("embed_with", config.embed_with != "torch", "no torch module (auto)"),
    ]


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def open_embedder(
    network: TracedNetwork, config: BuildConfig, parity_images: list[UInt8Array]
) -> tuple[Embedder, ParitySpec]:
    """Open the graph in the runtime's session, compare it with torch,
    and choose what embeds the normal images.

    That is the graph itself, so that bank and queries come from the same arithmetic. Torch embeds only when
    asked to, or where it has CUDA and onnxruntime has not; its difference from the graph was measured first,
    as always. A student is compared with what torch gave when it was made.

    Raises:
        BuildError: the two differ by more than the tolerance.
    """
    session = open_graph(network.onnx, network.spec, provider=config.provider, threads=config.threads)
    if isinstance(network.origin, Student):
        return session, _compare_student(network.origin, network.spec, config)
    from pcexport.graph.torch_embedder import TorchEmbedder

    device = _torch_device(config)
    torch_embedder = TorchEmbedder(network.origin, device or "cpu")
    parity = compare_embedders(torch_embedder, session, parity_images).require(config.parity_tolerance)
    return (torch_embedder if device else session), parity


def _compare_student(student: Student, spec: EmbeddingSpec, config: BuildConfig) -> ParitySpec:
    """The student's graph at the size of its check picture, against the recorded values."""
    check = student.facts.check
    image_hw = check.height, check.width
    grid_height, grid_width = student.facts.grid_hw(image_hw)
    spec = dataclasses.replace(spec, grid_height=grid_height, grid_width=grid_width, batch=1)
    graph = student.graph(image_hw, batch=1)
    session = open_graph(graph, spec, provider=config.provider, threads=config.threads)
    return compare_with_record(session, check).require(config.parity_tolerance)


def _torch_device(config: BuildConfig) -> str | None:
    """The device on which torch embeds, or None when onnxruntime does."""
    import torch

    if config.embed_with == "onnxruntime":
        return None
    if config.embed_with == "torch":
        return "cuda" if torch.cuda.is_available() else "cpu"
    onnxruntime_has_cuda = "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()
    wants_gpu = config.provider == "auto"
    return "cuda" if wants_gpu and torch.cuda.is_available() and not onnxruntime_has_cuda else None
