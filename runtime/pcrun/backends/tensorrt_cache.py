"""Where onnxruntime's TensorRT provider keeps its engines: beside the bundle, one folder for each machine.

An engine is valid for one GPU, one TensorRT, one onnxruntime and one graph; building it takes minutes. It is
native code, so a folder into which others may write is not used.
"""

import hashlib
import json
import os
import re
import stat
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from pcrun.bundle.manifest import EMBEDDER_NAME
from pcrun.bundle.onnx_file import inspect_onnx
from pcrun.errors import BackendError
from pcrun.machine.gpu import find_gpu, tensorrt_version
from pcrun.tuning.profile import CACHE_VARIABLE, profile_folder

CACHE_SUFFIX = ".trt-cache"
KEY_NAME = "key.json"
# Images per call that the engine of a graph with an open batch is built for: `pcrun bench` takes eight at
# once.
MOST_IMAGES = 8
# Others could put their code there.
_FOREIGN_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class EngineKey:
    """What an engine is valid for.

    Attributes:
        gpu, compute_capability: of the machine.
        tensorrt, onnxruntime: versions.
        embedder_sha256: of the graph.
        precision: of the bundle.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    onnxruntime: str
    embedder_sha256: str
    precision: str

    @classmethod
    def here(cls, model: bytes, *, precision: str, onnxruntime: str) -> "EngineKey":
        """The key of this graph on this machine.

        Raises:
            BackendError: no GPU or no TensorRT was found.
        """
        gpu = find_gpu()
        sha256 = hashlib.sha256(model).hexdigest()
        return cls(gpu.name, gpu.compute_capability, tensorrt_version(), onnxruntime, sha256, precision)

    @property
    def folder_name(self) -> str:
        """Readable, and different for different keys."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", self.gpu).strip("-")
        return f"{gpu}-trt{self.tensorrt}-ort{self.onnxruntime}-{self.precision}-{digest}"


def cache_folder(key: EngineKey, *, beside: Path | None) -> Path:
    """The folder of a key's engines, made unless it is there.

    Args:
        key: of the engines.
        beside: the bundle, or None for a graph that is in none yet; that goes to the user's cache folder.

    Raises:
        BackendError: no folder can be used, or others may write into it.
    """
    personal = profile_folder() / "tensorrt"
    places = [personal] if beside is None else [beside.with_name(beside.name + CACHE_SUFFIX), personal]
    problems = []
    for place in places:
        folder = place / key.folder_name
        try:
            _make(folder, key)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
            continue
        if problems:
            warnings.warn(
                f"TensorRT's engines cannot be kept beside the bundle ({problems[0]}); they are in {folder}",
                stacklevel=2,
            )
        return folder
    raise BackendError(
        f"TensorRT's engines can be kept nowhere ({'; '.join(problems)}). Expected a folder beside the "
        f"bundle or in ${CACHE_VARIABLE} that can be written; without one each start would build them again, "
        "for minutes."
    )


def engines_in(folder: Path) -> list[Path]:
    """The engines that were built before."""
    return sorted(folder.glob("*.engine"))


def tensorrt_options(
    model: bytes, *, precision: str, onnxruntime: str, beside: Path | None
) -> dict[str, str]:
    """Options of onnxruntime's TensorRT provider for a graph; warns when an engine is about to be built.

    None of them asks for a precision. Without them onnxruntime makes the network strongly typed (TensorRT 10
    and newer): it computes as the graph says, with the float16 or int8 that the exporter put there, and no
    other.

    Args:
        model: the checked graph.
        precision: of its backbone.
        onnxruntime: its version.
        beside: see `cache_folder`.

    Raises:
        BackendError: no GPU, no TensorRT or no folder for the engines.
    """
    key = EngineKey.here(model, precision=precision, onnxruntime=onnxruntime)
    folder = cache_folder(key, beside=beside)
    if not engines_in(folder):
        warnings.warn(
            f"TensorRT {key.tensorrt} builds an engine for {key.gpu}, which takes minutes. It is kept in "
            f"{folder}; `pcrun warmup` builds it ahead of time",
            stacklevel=2,
        )
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        **_batch_profile(model),
    }


def _batch_profile(model: bytes) -> dict[str, str]:
    """The sizes of an open batch: left out, each new size would build the engine again."""
    image = inspect_onnx(model, name=EMBEDDER_NAME).inputs[0]
    if isinstance(image.dims[0], int):
        return {}
    rest = "x".join(map(str, image.dims[1:]))
    sizes = {"min": 1, "opt": 1, "max": MOST_IMAGES}
    return {f"trt_profile_{kind}_shapes": f"{image.name}:{size}x{rest}" for kind, size in sizes.items()}


def _make(folder: Path, key: EngineKey) -> None:
    """Make or check a folder of engines.

    Raises:
        BackendError: others may write into it.
        OSError: it cannot be made, or holds no engine and cannot be written.
    """
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for made in (folder.parent, folder):
        made.mkdir(mode=0o755, exist_ok=True)
        if os.name == "posix" and made.stat().st_mode & _FOREIGN_WRITE:
            raise BackendError(
                f"Others may write into {made}, which holds engines: native code that is run without a "
                f"question. Expected a folder for its owner alone; run `chmod go-w {made}`, or remove it."
            )
    if not engines_in(folder):
        # Found out now, not after minutes of building.
        (folder / KEY_NAME).write_text(json.dumps(asdict(key), indent=2) + "\n", encoding="utf-8")
