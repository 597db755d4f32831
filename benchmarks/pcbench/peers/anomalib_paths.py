"""anomalib's PatchCore with a bundle's memory bank: its PyTorch model, and what it exports from it.

The only part of pcbench that imports torch, and it does so in a contender's own process. Written for and
run with anomalib 2.7.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pcbench.peers.contenders import (
    BANK_FILE,
    Absent,
    Opened,
    Outcome,
    Request,
    onnxruntime_session,
    openvino_options,
    openvino_precision,
)
from pcrun.bundle.manifest import Manifest
from pcrun.types import UInt8Array

_README = "benchmarks/peers/README.md"
_INPUT = "input"
# Without this it exports graphs that take exactly two images (2.7.0). Height and width stay free, because
# its own resizing is in the graph.
_ONE_IMAGE_OF_ANY_SIZE = {"dynamic_axes": {_INPUT: {2: "height", 3: "width"}}}


def prepare_torch(request: Request) -> None:
    """Only look whether it can take part: its model is made anew in each process."""
    _model(request)


def prepare_onnx(request: Request) -> None:
    """Export to ONNX, as `Engine.export` does."""
    model = _model(request)
    _exported(lambda: model.to_onnx(_folder(request), **_ONE_IMAGE_OF_ANY_SIZE))


def prepare_openvino(request: Request) -> None:
    """Export to OpenVINO, likewise, without compression."""
    model = _model(request)
    _exported(lambda: model.to_openvino(_folder(request), onnx_kwargs=dict(_ONE_IMAGE_OF_ANY_SIZE)))


def open_torch(request: Request) -> Opened:
    """Its model in eval mode, fed as by its TorchInferencer."""
    import torch
    from torchvision.transforms.v2.functional import to_dtype, to_image

    torch.set_num_threads(request.threads)
    model = _model(request)

    def run(image: UInt8Array) -> Outcome:
        batch = to_dtype(to_image(_rgb(image)), torch.float32, scale=True)[None]
        with torch.inference_mode():
            found = model(batch)
        return _outcome(found.pred_score.numpy(), found.anomaly_map.numpy())

    return Opened(run, _facts(request, "fp32"))


def open_onnx(request: Request) -> Opened:
    """The exported graph in onnxruntime, for which anomalib has no class: neither it nor torch is loaded."""
    session = onnxruntime_session(Path(_folder(request)) / "weights" / "onnx" / "model.onnx", request.threads)

    def run(image: UInt8Array) -> Outcome:
        batch = cv2.dnn.blobFromImage(image, 1 / 255, swapRB=True)
        return _outcome(*session.run(["pred_score", "anomaly_map"], {_INPUT: batch}))

    return Opened(run, _facts(request, "fp32"))


def open_openvino(request: Request) -> Opened:
    """The exported model in its OpenVINOInferencer."""
    from pcrun.backends.openvino_session import import_openvino

    # First, so that the part of openvino that reports home is not imported.
    import_openvino()
    from anomalib.deploy import OpenVINOInferencer

    path = Path(_folder(request)) / "weights" / "openvino" / "model.xml"
    inferencer = OpenVINOInferencer(path, device="CPU", config=openvino_options(request.threads))
    precision = openvino_precision(inferencer.model)

    def run(image: UInt8Array) -> Outcome:
        found = inferencer.predict(_rgb(image))
        return _outcome(found.pred_score, found.anomaly_map)

    return Opened(run, _facts(request, precision))


def _model(request: Request) -> Any:
    """Its Patchcore in eval mode, with the bundle's rows, sizes and normalisation.

    Raises:
        Absent: it is not installed, or knows no model like the bundle's.
    """
    manifest = request.manifest()
    _require_alike(manifest)
    try:
        from anomalib.models import Patchcore
    except ImportError as error:
        raise Absent(
            f"anomalib cannot be imported ({error}). It has an environment of its own; {_README} says how to "
            "make one."
        ) from error
    # After anomalib, which needs it: where that is absent, nobody waits seconds for torch.
    import torch

    spec, scoring = manifest.embedding, manifest.scoring
    try:
        model = Patchcore(
            backbone=spec.backbone.removeprefix("timm:"),
            layers=spec.layers,
            pre_trained=False,
            # 1 takes the largest patch score as it is.
            num_neighbors=scoring.neighbours or 1,
            pre_processor=_pre_processor(manifest),
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )
    except Exception as error:  # timm and anomalib raise what they like for layers they do not know
        raise Absent(
            f"anomalib knows no {spec.backbone} with {spec.layers} ({_first_line(error)})"
        ) from error
    network = model.model.feature_extractor
    grid = tuple(side // network.reductions[0] for side in manifest.preprocess.input_hw)
    if sum(network.out_dims) != spec.dim or grid != (spec.grid_height, spec.grid_width):
        raise Absent(
            f"anomalib's embeddings are {sum(network.out_dims)}-d on a grid of {grid}, the bundle's "
            f"{spec.dim}-d on {(spec.grid_height, spec.grid_width)}"
        )
    if request.weights is not None:
        _load_weights(network.feature_extractor, Path(request.weights))
    model.model.memory_bank = torch.from_numpy(np.load(request.file(BANK_FILE), allow_pickle=False))
    return model.eval()


def _require_alike(manifest: Manifest) -> None:
    """Refuse what anomalib's PatchCore has no setting for."""
    spec, scoring = manifest.embedding, manifest.scoring
    problems = [
        reason
        for holds, reason in (
            (manifest.preprocess.keep_aspect, "images are resized with their aspect kept"),
            (spec.aggregation != "locally_aware", f"patch embeddings are aggregated by {spec.aggregation!r}"),
            (spec.neighbourhood != 3, f"the neighbourhood is {spec.neighbourhood}"),
            (spec.projected_from is not None, "embeddings are projected"),
            (scoring.map_sigma_px != 4, f"the map's sigma is {scoring.map_sigma_px} px"),
        )
        if holds
    ]
    if problems:
        raise Absent(f"anomalib's PatchCore has no setting for this bundle: {', '.join(problems)}")


def _pre_processor(manifest: Manifest) -> Any:
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

    sizes, spec = manifest.preprocess, manifest.embedding
    resized = (sizes.resize_height_px, sizes.resize_width_px)
    crop = [CenterCrop(sizes.input_hw)] if sizes.input_hw != resized else []
    steps = [Resize(resized, antialias=True), *crop, Normalize(mean=spec.mean_rgb, std=spec.std_rgb)]
    return PreProcessor(transform=Compose(steps))


def _load_weights(network: Any, path: Path) -> None:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    missing, _ = network.load_state_dict(weights, strict=False)
    if missing:
        raise Absent(
            f"{path.name} lacks {len(missing)} tensors of anomalib's backbone, {missing[0]} among them"
        )


def _exported(export: Any) -> None:
    try:
        export()
    except Exception as error:  # anomalib, torch and onnxscript raise what they like
        raise Absent(f"anomalib's export failed ({type(error).__name__}: {_first_line(error)})") from error


def _facts(request: Request, precision: str) -> dict[str, Any]:
    return {"precision": precision, "weights": "random" if request.weights is None else "as given"}


def _outcome(score: Any, heat: Any) -> Outcome:
    return Outcome(float(np.ravel(score)[0]), np.squeeze(np.asarray(heat, np.float32)))


def _rgb(image: UInt8Array) -> UInt8Array:
    rgb: UInt8Array = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return rgb


def _folder(request: Request) -> str:
    return str(request.file("anomalib"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
