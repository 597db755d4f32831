"""Who takes part: for each contender a function that opens it in this process."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import MANIFEST_NAME, Manifest, parse_manifest
from pcrun.detector import AnomalyDetector, missing_limit
from pcrun.errors import BackendError, BundleError, PcError
from pcrun.preprocess import preprocess
from pcrun.types import FloatArray, UInt8Array

OURS, FULL = "pcrun", "pcrun-full"
GRAPH_FILE = "one_graph.onnx"
BANK_FILE = "memory_bank.npy"


class Absent(PcError):
    """A contender cannot take part here; the message says why."""


class Outcome(NamedTuple):
    """What one image gives.

    Attributes:
        image_score: in L2 units.
        anomaly_map: (height, width) float32 at the embedder's input size, L2 units.
    """

    image_score: float
    anomaly_map: FloatArray


@dataclass(frozen=True)
class Request:
    """What a contender's process must know.

    Attributes:
        contender: a name of `CONTENDERS`.
        bundle: path of the bundle.
        digest: of the bundle.
        images: files, in the order of the samples.
        threads: of everything that has threads.
        provider: of `pcrun`'s embedder.
        weights: file of the backbone's weights, for anomalib; None for random ones.
        folder: where files are prepared, with the bundle's manifest and memory bank.
    """

    contender: str
    bundle: str
    digest: str
    images: tuple[str, ...]
    threads: int
    provider: str
    weights: str | None
    folder: str

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """Read what `to_json` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, "images": tuple(raw["images"])})

    def to_json(self) -> str:
        """One line."""
        return json.dumps(dataclasses.asdict(self))

    def file(self, name: str) -> Path:
        """A file of the folder."""
        return Path(self.folder) / name

    def manifest(self) -> Manifest:
        """The bundle's, without opening the bundle: its rows must not count as a peer's memory."""
        return parse_manifest(self.file(MANIFEST_NAME).read_bytes())

    def open_bundle(self) -> Bundle:
        """The bundle, verified.

        Raises:
            BundleError: it has changed meanwhile.
        """
        bundle = Bundle.load(self.bundle)
        if bundle.digest != self.digest:
            raise BundleError(f"{self.bundle} has changed since the measurement began. Start it again.")
        return bundle


class Opened(NamedTuple):
    """A contender that is ready.

    Attributes:
        run: from (height, width, 3) uint8 BGR, a decoded image, to score and map.
        facts: what it really runs with.
    """

    run: Callable[[UInt8Array], Outcome]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One of those compared.

    Attributes:
        name: on the command line and in result files.
        title: in tables.
        same_results: whether its scores and maps must be those of `pcrun`.
        open: gets it ready in this process.
        prepare: makes the files that `open` needs, in a process before; None needs none.
    """

    name: str
    title: str
    same_results: bool
    open: Callable[[Request], Opened]
    prepare: Callable[[Request], None] | None = None


def _open_detector(request: Request, exactness: str | None) -> Opened:
    bundle = request.open_bundle()
    limit = missing_limit(bundle.manifest)
    options: dict[str, Any] = {} if exactness is None else {"exactness": exactness}
    detector = AnomalyDetector.load(
        bundle,
        provider=request.provider,
        threads=request.threads,
        threshold=limit,
        pixel_threshold=limit,
        **options,
    )
    assert detector.settings is not None  # loaded from a bundle

    def run(image: UInt8Array) -> Outcome:
        result = detector(image)
        return Outcome(result.image_score, result.anomaly_map)

    return Opened(
        run,
        {
            "exactness": detector.exactness,
            "device_profile": detector.profile is not None,
            "settings": dataclasses.asdict(detector.settings),
        },
    )


def _prepare_graph(request: Request) -> None:
    from pcbench.peers.one_graph import write_one_graph

    path = request.file(GRAPH_FILE)
    if path.exists():
        return
    try:
        write_one_graph(request.open_bundle(), path)
    except ImportError as error:
        raise Absent(
            f"the package onnx cannot be imported ({error}), and graphs are put together with it. Install it "
            "with `pip install onnx`."
        ) from error


def _open_onnxruntime(request: Request) -> Opened:
    from pcbench.peers.one_graph import ANOMALY_MAP, IMAGE_SCORE

    session = onnxruntime_session(request.file(GRAPH_FILE), request.threads)
    manifest = request.manifest()
    spec, name = manifest.preprocess, manifest.embedding.input_name

    def run(image: UInt8Array) -> Outcome:
        score, heat = session.run([IMAGE_SCORE, ANOMALY_MAP], {name: preprocess(image, spec)[None]})
        return Outcome(float(score), heat)

    return Opened(run, {"precision": "fp32"})


def onnxruntime_session(path: Path, threads: int) -> Any:
    """A session as the package makes it, but for the number of threads.

    Raises:
        Absent: onnxruntime is not installed.
    """
    from pcrun.backends.session import import_onnxruntime

    try:
        onnxruntime = import_onnxruntime()
    except BackendError as error:
        raise Absent(str(error)) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _open_openvino(request: Request) -> Opened:
    from pcbench.peers.one_graph import ANOMALY_MAP, IMAGE_SCORE
    from pcrun.backends.openvino_session import import_openvino

    try:
        openvino = import_openvino()
    except BackendError as error:
        raise Absent(str(error)) from error
    core = openvino.Core()
    model = core.read_model(str(request.file(GRAPH_FILE)))
    compiled = core.compile_model(model, "CPU", openvino_options(request.threads))
    inference = compiled.create_infer_request()
    manifest = request.manifest()
    spec, name = manifest.preprocess, manifest.embedding.input_name

    def run(image: UInt8Array) -> Outcome:
        found = inference.infer({name: preprocess(image, spec)[None]}, share_inputs=True)
        return Outcome(float(found[IMAGE_SCORE]), np.array(found[ANOMALY_MAP]))

    return Opened(run, {"precision": openvino_precision(compiled)})


def openvino_options(threads: int) -> dict[str, Any]:
    """Said explicitly: by itself OpenVINO takes bfloat16 for a float32 graph where the processor has it."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }


def openvino_precision(compiled: Any) -> str:
    """What a compiled model computes in.

    Raises:
        PcError: not in float32, which was asked for.
    """
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision != "f32":
        raise PcError(f"openvino computes in {precision}. Expected f32, as asked for; upgrade openvino.")
    return "fp32"


def _of_anomalib(name: str, title: str, path: str) -> Contender:
    """A contender of `pcbench.peers.anomalib_paths`, which loads torch and anomalib, so only when called."""

    def call(step: str, request: Request) -> Any:
        from pcbench.peers import anomalib_paths

        return getattr(anomalib_paths, f"{step}_{path}")(request)

    return Contender(name, title, False, partial(call, "open"), partial(call, "prepare"))


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS, "pcrun", True, lambda request: _open_detector(request, None)),
        Contender(FULL, "pcrun, exactness full", True, lambda request: _open_detector(request, "full")),
        Contender("onnxruntime", "one ONNX graph, onnxruntime", True, _open_onnxruntime, _prepare_graph),
        Contender("openvino", "one ONNX graph, OpenVINO", True, _open_openvino, _prepare_graph),
        _of_anomalib("anomalib-torch", "anomalib, PyTorch", "torch"),
        _of_anomalib("anomalib-onnx", "anomalib, ONNX in onnxruntime", "onnx"),
        _of_anomalib("anomalib-openvino", "anomalib, OpenVINO", "openvino"),
    )
}
# Everybody but ourselves.
PEERS = tuple(name for name in CONTENDERS if name != OURS)
