"""Which NVIDIA GPU and which TensorRT there are: what an engine is valid for. No package is needed for it."""

import ctypes
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

from pcrun.errors import BackendError

# CUDA's driver, on PCs and Jetson boards alike.
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_BYTES = 256
# CUdevice_attribute in cuda.h.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
# Where no Python package brings TensorRT, as on a Jetson; the newest first.
_TENSORRT_LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10")


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU.

    Attributes:
        name: as its driver says.
        compute_capability: such as "8.7".
    """

    name: str
    compute_capability: str


def find_gpu() -> Gpu:
    """The GPU that CUDA calls number 0.

    Raises:
        BackendError: there is none, or its driver does not work.
    """
    driver = _load(_DRIVER)
    if driver is None:
        raise BackendError(
            f"No NVIDIA driver was found ({_DRIVER} cannot be loaded). Expected an NVIDIA GPU with its "
            "driver; install the driver, or say `--provider cpu`."
        )
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuInit", 0)
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    _call(driver, "cuDeviceGetName", name, _NAME_BYTES, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")


def tensorrt_version() -> str:
    """The TensorRT that onnxruntime will load; a Python package of it is loaded first, so that it is found.

    Raises:
        BackendError: there is none.
    """
    if importlib.util.find_spec("tensorrt") is not None:
        return str(import_tensorrt().__version__)
    for name in _TENSORRT_LIBRARIES:
        library = _load(name)
        if library is not None:
            number = int(library.getInferLibVersion())
            return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    raise BackendError(
        f"TensorRT was not found (no Python package, none of {', '.join(_TENSORRT_LIBRARIES)}). Expected the "
        "version that this onnxruntime is built for; install it with `pip install "
        "'patchcore-edge[tensorrt]'` (on a Jetson it comes with JetPack), or choose another provider."
    )


def import_tensorrt() -> Any:
    """Import the tensorrt package.

    Raises:
        BackendError: it is missing, does not work, or is older than this needs.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise BackendError(
            f"tensorrt cannot be imported ({error}). It builds and runs engines; install it with "
            "`pip install 'patchcore-edge[tensorrt]'` (on a Jetson it comes with JetPack: let the "
            "environment see the system's packages)."
        ) from error
    if int(str(tensorrt.__version__).split(".")[0]) < 10:
        raise BackendError(
            f"tensorrt {tensorrt.__version__} is too old. Expected 10 or newer, which keeps to the types "
            "that a graph states; install it with `pip install 'patchcore-edge[tensorrt]'`."
        )
    return tensorrt


def _load(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _call(driver: Any, function: str, *arguments: Any) -> None:
    code = getattr(driver, function)(*arguments)
    if code:
        raise BackendError(
            f"The NVIDIA driver does not work ({function} gives error {code}). Expected a GPU that it can "
            "use; look at `nvidia-smi`, install the driver again, or say `--provider cpu`."
        )
