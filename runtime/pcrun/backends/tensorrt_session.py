"""Running a native engine: the embedder in TensorRT itself, its memory in CUDA, both allocated once."""

import ctypes
import threading
import time
import weakref
from typing import Any

import numpy as np

from pcrun.backends.embedder import CopyTimes, GraphEmbedder, padded
from pcrun.backends.engine_file import Engine, EngineTensor
from pcrun.backends.session import ENGINE_PROVIDER
from pcrun.backends.tensorrt_build import make_logger
from pcrun.bundle.manifest import EmbeddingSpec
from pcrun.errors import BackendError, BundleError
from pcrun.machine.gpu import import_tensorrt
from pcrun.types import AnyArray, FloatArray, UInt8Array

_INSTALL_LINE = "pip install 'patchcore-edge[tensorrt]'"


class TensorRtEmbedder(GraphEmbedder):
    """`embedder.onnx` as a native engine, on the GPU that it was built on."""

    provider = ENGINE_PROVIDER

    def __init__(self, engine: Engine, spec: EmbeddingSpec) -> None:
        """Load the engine.

        Args:
            engine: checked by `pcrun.backends.engine_file.load_engine`, or built in this process.
            spec: what the bundle's embedder takes and gives.

        Raises:
            BackendError: TensorRT or CUDA is missing or fails.
            BundleError: the engine is not what its header says.
        """
        super().__init__(spec, threads=1)
        self.precision = engine.facts.precision
        self._most_images = engine.facts.most_images
        self._log, self._engine = _deserialise(engine)
        _check_tensors(self._engine, engine)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failed("make an execution context")
        self._cuda = Cuda()
        dims = (engine.facts.image.dims[1:], engine.facts.patch_embeddings.dims[1:])
        self._input = self._cuda.allocate((self._most_images, *dims[0]), np.dtype(np.uint8))
        self._output = self._cuda.allocate((self._most_images, *dims[1]), np.dtype(np.float32))
        for name, buffer in ((spec.input_name, self._input), (spec.output_name, self._output)):
            if not self._context.set_tensor_address(name, buffer.device):
                raise self._failed(f"take the memory of {name}")
        # One set of buffers, whoever calls.
        self._lock = threading.Lock()

    def embed(self, images: UInt8Array) -> FloatArray:
        """See `Embedder.embed`."""
        return self.embed_timed(images)[0]

    def embed_timed(self, images: UInt8Array) -> tuple[FloatArray, CopyTimes]:
        """See `CopyingEmbedder.embed_timed`."""
        copies, chunks, step = CopyTimes(), [], self._most_images
        for start in range(0, len(images), step):
            chunk = images[start : start + step]
            # An open batch takes the chunk as it is.
            filled = chunk if self._spec.batch is None else padded(chunk, step)
            chunks.append(self._run_timed(filled, copies)[: len(chunk)])
        output = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        self._check_output(output, len(images))
        return output, copies

    def _compute(self, images: UInt8Array) -> FloatArray:
        return self._run_timed(images, CopyTimes())

    def _run_timed(self, images: UInt8Array, copies: CopyTimes) -> FloatArray:
        count, spec, cuda = len(images), self._spec, self._cuda
        with self._lock:
            if images.shape[1:] != self._input.host.shape[1:]:
                raise BackendError(
                    f"The engine takes images of {list(self._input.host.shape[1:])}, got "
                    f"{list(images.shape[1:])}. Expected images prepared for this bundle."
                )
            started = time.perf_counter()
            self._input.host[:count] = images
            cuda.to_device(self._input, count)
            copies.host_to_device_ms += (time.perf_counter() - started) * 1e3
            if not self._context.set_input_shape(spec.input_name, tuple(images.shape)):
                raise self._failed(f"take {count} images")
            if not self._context.execute_async_v3(stream_handle=cuda.stream):
                raise self._failed("run the engine")
            cuda.wait()
            started = time.perf_counter()
            cuda.to_host(self._output, count)
            # A copy: the next call writes where this lies.
            output: FloatArray = self._output.host[:count].copy()
            copies.device_to_host_ms += (time.perf_counter() - started) * 1e3
        return output

    def _failed(self, what: str) -> BackendError:
        reason = " ".join(self._log.errors[-1].split()) if self._log.errors else "no reason given"
        return BackendError(
            f"TensorRT cannot {what}: {reason}. Expected the GPU that the engine was built on, with memory "
            "to spare; run `pcrun compile` again, or leave --engine out."
        )


class Buffer:
    """The same array in the host's page-locked memory and in the device's.

    Attributes:
        host: the array.
        device: address of the other one.
    """

    def __init__(self, host: AnyArray, device: int) -> None:
        self.host = host
        self.device = device

    def bytes_of(self, count: int) -> int:
        """Size of its first entries."""
        return int(self.host[:count].nbytes)


class Cuda:
    """A stream and the memory that belongs to it, by NVIDIA's cuda-bindings."""

    def __init__(self) -> None:
        self._cuda = import_cuda()
        stream = self._call("cudaStreamCreate")
        self._stream = stream
        self.stream = int(stream)
        self._addresses: list[tuple[str, int]] = []
        # Not __del__: when Python ends, modules may be gone before objects are.
        self._free = weakref.finalize(self, _release, self._cuda, stream, self._addresses)

    def allocate(self, dims: tuple[int, ...], dtype: "np.dtype[Any]") -> Buffer:
        """Memory for an array on both sides.

        Raises:
            BackendError: there is not enough.
        """
        size = int(np.prod(dims)) * dtype.itemsize
        host = int(self._call("cudaMallocHost", size))
        self._addresses.append(("cudaFreeHost", host))
        device = int(self._call("cudaMalloc", size))
        self._addresses.append(("cudaFree", device))
        array = np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(host)), dtype).reshape(dims)
        return Buffer(array, device)

    def to_device(self, buffer: Buffer, count: int) -> None:
        """Copy the first entries to the device, and wait for it."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(buffer.device, buffer.host.ctypes.data, buffer.bytes_of(count), kind)

    def to_host(self, buffer: Buffer, count: int) -> None:
        """Copy the first entries to the host, and wait for it."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(buffer.host.ctypes.data, buffer.device, buffer.bytes_of(count), kind)

    def wait(self) -> None:
        """Wait for everything that was asked for."""
        self._call("cudaStreamSynchronize", self._stream)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call("cudaMemcpyAsync", target, source, size, kind, self._stream)
        self.wait()

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *results = getattr(self._cuda, function)(*arguments)
        if int(error):
            reason = self._cuda.cudaGetErrorString(error)[1]
            text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise BackendError(
                f"CUDA fails ({function}: {text}). Expected a working driver and free memory on the GPU; "
                "look at `nvidia-smi`, or leave --engine out."
            )
        return results[0] if results else None


def import_cuda() -> Any:
    """Import the CUDA runtime of cuda-bindings.

    Raises:
        BackendError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendError(
            f"cuda-bindings cannot be imported ({error}). It gives engines their memory; install it with "
            f"`{_INSTALL_LINE}`, in the version of CUDA that TensorRT uses."
        ) from error
    return runtime


def _release(cuda: Any, stream: Any, addresses: list[tuple[str, int]]) -> None:
    for function, address in addresses:
        getattr(cuda, function)(address)
    cuda.cudaStreamDestroy(stream)


def _deserialise(engine: Engine) -> tuple[Any, Any]:
    tensorrt = import_tensorrt()
    log = make_logger(tensorrt)
    runtime = tensorrt.Runtime(log)
    loaded = runtime.deserialize_cuda_engine(engine.data)
    if loaded is None:
        reason = " ".join(log.errors[-1].split()) if log.errors else "no reason given"
        raise BackendError(
            f"TensorRT {tensorrt.__version__} cannot load the engine {engine.path}: {reason}. Expected the "
            "version and the GPU that built it; run `pcrun compile` again."
        )
    # The log is also the runtime's: it must outlive the engine.
    log.runtime = runtime
    return log, loaded


def _check_tensors(loaded: Any, engine: Engine) -> None:
    """The engine's own word for its tensors: buffers are made after the header."""
    found = []
    for number in range(loaded.num_io_tensors):
        name = loaded.get_tensor_name(number)
        dtype = str(loaded.get_tensor_dtype(name)).rpartition(".")[2].lower()
        dims = tuple(int(size) for size in loaded.get_tensor_shape(name))
        found.append(EngineTensor(name, {"float": "float32"}.get(dtype, dtype), dims))
    expected = [engine.facts.image, engine.facts.patch_embeddings]
    if sorted(found, key=str) != sorted(expected, key=str):
        raise BundleError(
            f"The engine {engine.path} takes and gives {', '.join(map(str, found))}, its header says "
            f"{', '.join(map(str, expected))}. Run `pcrun compile` again."
        )
