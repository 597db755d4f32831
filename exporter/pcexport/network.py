"""The first step of a build: the network as an ONNX graph, and the embedder that everything after it uses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pcexport.backbones.registry import find_backbone
from pcexport.config import BuildConfig, parse_batch, parse_size
from pcexport.errors import BuildError
from pcrun.embedder import Embedder
from pcrun.manifest import EmbeddingSpec, ParitySpec
from pcrun.preprocess import PreprocessSpec
from pcrun.session import import_onnxruntime
from pcrun.session import open_embedder as open_graph
from pcrun.types import UInt8Array

if TYPE_CHECKING:
    from pcexport.embedding import PatchEmbedder

_EXPORT_LINE = "pip install 'patchcore-edge[export,cpu]'"


@dataclass(frozen=True)
class TracedNetwork:
    """The graph, what it computes, and the torch module it was traced from (for parity)."""

    onnx: bytes
    spec: EmbeddingSpec
    module: "PatchEmbedder"


def trace_network(config: BuildConfig, preprocess: PreprocessSpec) -> TracedNetwork:
    """Load the backbone and trace it. The only function of a build that imports torch.

    Raises:
        BuildError: torch is missing, or the backbone, its weights or its export fail.
    """
    try:
        from pcexport.backbones.loader import load_backbone
        from pcexport.embedding import PatchEmbedder
        from pcexport.trace import INPUT_NAME, OUTPUT_NAME, trace_to_onnx
    except ImportError as error:
        raise BuildError(
            f"{error.name or error} is missing; tracing a backbone needs it. Install: {_EXPORT_LINE}"
        ) from error

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


def _check_grid(grid_hw: tuple[int, int], config: BuildConfig) -> None:
    """A grid finer than the image's pixels holds nothing new, and may not fit into any memory."""
    if grid_hw[0] > config.crop_hw[0] or grid_hw[1] > config.crop_hw[1]:
        raise BuildError(
            f"grid {grid_hw[0]}x{grid_hw[1]} is finer than the input of "
            f"{config.crop_hw[0]}x{config.crop_hw[1]} px. "
            "Expected at most one patch per pixel; choose a smaller --grid."
        )


def open_embedder(
    network: TracedNetwork, config: BuildConfig, parity_images: list[UInt8Array]
) -> tuple[Embedder, ParitySpec]:
    """Open the graph in the runtime's session, compare it with torch,
    and choose what embeds the normal images.

    That is the graph itself, so that bank and queries come from the same arithmetic. Torch embeds only when
    asked to, or where it has CUDA and onnxruntime has not; its difference from the graph was measured first,
    as always.

    Raises:
        BuildError: the two differ by more than the tolerance.
    """
    from pcexport.parity import TorchEmbedder, compare_embedders

    session = open_graph(network.onnx, network.spec, provider=config.provider, threads=config.threads)
    device = _torch_device(config)
    torch_embedder = TorchEmbedder(network.module, device or "cpu")
    parity = compare_embedders(torch_embedder, session, parity_images).require(config.parity_tolerance)
    return (torch_embedder if device else session), parity


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
