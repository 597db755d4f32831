"""A native TensorRT engine and the header beside it: what it was built from, and where it may run.

An engine is native code that TensorRT runs without a question. It is handed over only after its hash was
found to be the header's, and only where bundle, GPU and TensorRT are those that it was built with.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pcrun.bundle.bundle import Bundle
from pcrun.bundle.manifest import PRECISIONS
from pcrun.errors import BackendError, BundleError
from pcrun.files import write_file
from pcrun.machine.gpu import find_gpu, import_tensorrt
from pcrun.records import RecordError, from_mapping, require, to_jsonable

ENGINE_VERSION = 1
HEADER_SUFFIX = ".json"
_COMPILE = "Run `pcrun compile` for it."


@dataclass(frozen=True)
class EngineTensor:
    """Input or output of an engine.

    Attributes:
        name: in the graph.
        dtype: such as "uint8".
        dims: -1 for an open batch.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class EngineFacts:
    """The header of an engine.

    Attributes:
        engine_version: of this header.
        sha256, bytes: of the engine.
        bundle, bundle_name: digest and name of the bundle.
        embedder_sha256: of its graph.
        gpu, compute_capability, tensorrt: of the machine that built it.
        precision: what it computes in.
        image, patch_embeddings: its input and output.
        most_images: per call.
        golden_samples: how many were scored with it; 0 before that.
        largest_difference: of their image scores from the build's, relative.
        flips: golden samples whose verdict changed, with both scores.
        flips_allowed: whether somebody said that it may run nevertheless.
    """

    engine_version: int
    sha256: str
    bytes: int
    bundle: str
    bundle_name: str
    embedder_sha256: str
    gpu: str
    compute_capability: str
    tensorrt: str
    precision: str
    image: EngineTensor
    patch_embeddings: EngineTensor
    most_images: int
    golden_samples: int = 0
    largest_difference: float = 0.0
    flips: tuple[str, ...] = ()
    flips_allowed: bool = False

    def __post_init__(self) -> None:
        require(self.precision in PRECISIONS, f"precision must be one of {PRECISIONS}")
        require(1 <= self.most_images <= 4096, f"most_images must be 1..4096, got {self.most_images}")


@dataclass(frozen=True)
class Engine:
    """An engine that belongs to a bundle; `load_engine` gives it checked.

    Attributes:
        path: of its file.
        data: the engine itself.
        facts: its header.
    """

    path: Path
    data: bytes
    facts: EngineFacts


def engine_facts(bundle: Bundle, data: bytes, *, precision: str, most_images: int) -> EngineFacts:
    """The header of an engine that was built here."""
    gpu = find_gpu()
    image, patch_embeddings = engine_tensors(bundle)
    return EngineFacts(
        engine_version=ENGINE_VERSION,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        bundle=bundle.digest,
        bundle_name=bundle.manifest.name,
        embedder_sha256=hashlib.sha256(bundle.embedder).hexdigest(),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        tensorrt=str(import_tensorrt().__version__),
        precision=precision,
        image=image,
        patch_embeddings=patch_embeddings,
        most_images=most_images,
    )


def write_engine(engine: Engine) -> Path:
    """Write an engine and its header; gives the header's path.

    Raises:
        SinkError: they cannot be written.
    """
    header = header_path(engine.path)
    # An old header beside a new engine is noticed by its hash.
    write_file(engine.path, engine.data)
    text = json.dumps(to_jsonable(engine.facts), indent=2) + "\n"
    write_file(header, text.encode())
    return header


def header_path(engine: Path) -> Path:
    """Where the header of an engine is."""
    return engine.with_name(engine.name + HEADER_SUFFIX)


def load_engine(path: Path, bundle: Bundle) -> Engine:
    """Read an engine for a bundle, checked against its header, the bundle and this machine.

    Raises:
        BundleError: a file is missing, damaged or newer, or made for another bundle.
        BackendError: it was built for another GPU or TensorRT, or there is none of them here.
    """
    facts = _read_header(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"The engine {path} cannot be read ({error.strerror or error}). Copy it again, or "
            "run `pcrun compile` again."
        ) from error
    if len(data) != facts.bytes or hashlib.sha256(data).hexdigest() != facts.sha256:
        raise BundleError(
            f"The engine {path} is not the one that its header describes: size or hash differ. Copy both "
            "files again, or run `pcrun compile` again."
        )
    _require_bundle(path, facts, bundle)
    _require_machine(path, facts)
    return Engine(path, data, facts)


def _read_header(path: Path) -> EngineFacts:
    header = header_path(path)
    try:
        raw = json.loads(header.read_bytes())
        version = raw.get("engine_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > ENGINE_VERSION:
            raise BundleError(
                f"{header} has version {version}, this pcrun reads up to {ENGINE_VERSION}. Update pcrun, or "
                "run `pcrun compile` with this one."
            )
        return from_mapping(EngineFacts, raw, where="engine")
    except OSError as error:
        raise BundleError(
            f"The engine's header {header} cannot be read ({error.strerror or error}). `pcrun compile` "
            "writes it beside the engine; copy both files, or compile again."
        ) from error
    except (RecordError, ValueError, RecursionError) as error:
        raise BundleError(
            f"The engine's header {header} cannot be understood ({error}). Copy both files again, or run "
            "`pcrun compile` again."
        ) from error


def _require_bundle(path: Path, facts: EngineFacts, bundle: Bundle) -> None:
    embedder = hashlib.sha256(bundle.embedder).hexdigest()
    if facts.bundle != bundle.digest or facts.embedder_sha256 != embedder:
        raise BundleError(
            f"The engine {path} was built for another bundle ({facts.bundle_name!r}, {facts.bundle[:12]}; "
            f"here {bundle.manifest.name!r}, {bundle.digest[:12]}). {_COMPILE}"
        )
    described = engine_tensors(bundle)
    if (facts.image, facts.patch_embeddings) != described:
        raise BundleError(
            f"The engine {path} takes and gives other tensors than the bundle's embedder. {_COMPILE}"
        )


def engine_tensors(bundle: Bundle) -> tuple[EngineTensor, EngineTensor]:
    """Input and output that an engine of this bundle has."""
    spec, (height, width) = bundle.manifest.embedding, bundle.manifest.preprocess.input_hw
    batch = spec.batch or -1
    return (
        EngineTensor(spec.input_name, "uint8", (batch, height, width, 3)),
        EngineTensor(spec.output_name, "float32", (batch, spec.patches, spec.dim)),
    )


def _require_machine(path: Path, facts: EngineFacts) -> None:
    gpu, tensorrt = find_gpu(), str(import_tensorrt().__version__)
    built = (facts.gpu, facts.compute_capability, facts.tensorrt)
    here = (gpu.name, gpu.compute_capability, tensorrt)
    if built != here:
        names = ("{} (compute capability {}) with TensorRT {}".format(*of) for of in (built, here))
        raise BackendError(
            "The engine {} was built on {}, this is {}. An engine runs where it was built alone. {}".format(
                path, *names, _COMPILE
            )
        )


def measured(engine: Engine, *, samples: int, largest_difference: float, flips: tuple[str, ...]) -> Engine:
    """The engine with what it did to the golden samples in its header."""
    facts = dataclasses.replace(
        engine.facts, golden_samples=samples, largest_difference=largest_difference, flips=flips
    )
    return dataclasses.replace(engine, facts=facts)
