"""A tensorrt package and a CUDA runtime that record what is asked of them.

Their "engine" is the graph itself, run by onnxruntime on the CPU, so that what goes in and what comes out
can be followed. Nothing here says anything about TensorRT's numbers or times.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

PLAN = b"engine of a fake:"


@dataclass
class Calls:
    """What was asked for, in order, and what the fakes are to do.

    Attributes:
        asked: names of functions, with what matters of their arguments.
        factor: by which embeddings are off.
        parse_error, build_fails, load_fails, run_fails: what goes wrong.
        cuda_error: function of CUDA that fails.
    """

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    factor: float = 1.0
    parse_error: str | None = None
    build_fails: bool = False
    load_fails: bool = False
    run_fails: bool = False
    cuda_error: str | None = None

    def names(self) -> list[str]:
        return [call[0] for call in self.asked]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.asked if call[0] == name]


def fake_tensorrt(calls: Calls, *, version: str = "10.9.0", fp16_flag: bool = True) -> SimpleNamespace:
    """A tensorrt package; the flag for float16 of its own choice is gone in version 11."""
    flags = {"TF32": "TF32", **({"FP16": "FP16"} if fp16_flag else {})}

    class ILogger:
        def __init__(self) -> None:
            pass

    def create_network(flags: int) -> SimpleNamespace:
        calls.asked.append(("create_network", flags))
        return SimpleNamespace(model=b"")

    def parser(network: SimpleNamespace, logger: Any) -> SimpleNamespace:
        def parse(model: bytes) -> bool:
            calls.asked.append(("parse", model))
            network.model = model
            return calls.parse_error is None

        def get_error(number: int) -> SimpleNamespace:
            return SimpleNamespace(desc=lambda: calls.parse_error)

        return SimpleNamespace(
            parse=parse, num_errors=int(calls.parse_error is not None), get_error=get_error
        )

    def builder(logger: Any) -> SimpleNamespace:
        def config() -> SimpleNamespace:
            return SimpleNamespace(
                set_flag=lambda flag: calls.asked.append(("set_flag", flag)),
                clear_flag=lambda flag: calls.asked.append(("clear_flag", flag)),
                add_optimization_profile=lambda profile: calls.asked.append(("add_profile",)),
            )

        def build(network: SimpleNamespace, config: Any) -> bytearray | None:
            calls.asked.append(("build",))
            if calls.build_fails:
                logger.log("ERROR", "no kernel fits\n in memory")
                return None
            return bytearray(PLAN + network.model)

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=config,
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda *shapes: calls.asked.append(("set_shape", *shapes))
            ),
            build_serialized_network=build,
        )

    def runtime(logger: Any) -> SimpleNamespace:
        def deserialise(data: bytes) -> FakeEngine | None:
            calls.asked.append(("deserialise",))
            if calls.load_fails:
                logger.log("ERROR", "serialised by another version")
                return None
            return FakeEngine(data, calls)

        return SimpleNamespace(deserialize_cuda_engine=deserialise)

    return SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        Logger=SimpleNamespace(ERROR="ERROR", INTERNAL_ERROR="INTERNAL_ERROR"),
        Builder=builder,
        OnnxParser=parser,
        Runtime=runtime,
        BuilderFlag=SimpleNamespace(**flags),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
    )


class FakeEngine:
    def __init__(self, data: bytes, calls: Calls) -> None:
        self.session = onnxruntime.InferenceSession(data[len(PLAN) :], providers=["CPUExecutionProvider"])
        self.calls = calls
        self.tensors = {t.name: t for t in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, number: int) -> str:
        return list(self.tensors)[number]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self.tensors[name].shape)

    def get_tensor_dtype(self, name: str) -> str:
        return {"tensor(uint8)": "DataType.UINT8", "tensor(float)": "DataType.FLOAT"}[self.tensors[name].type]

    def create_execution_context(self) -> FakeContext:
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.engine.calls.asked.append(("set_input_shape", shape))
        self.shape = shape
        return True

    def execute_async_v3(self, *, stream_handle: int) -> bool:
        calls = self.engine.calls
        calls.asked.append(("execute", stream_handle))
        if calls.run_fails:
            return False
        (image,), (output,) = self.engine.session.get_inputs(), self.engine.session.get_outputs()
        size = int(np.prod(self.shape))
        raw = (ctypes.c_uint8 * size).from_address(self.addresses[image.name])
        pixels = np.frombuffer(raw, np.uint8).reshape(self.shape)
        (patches,) = self.engine.session.run([output.name], {image.name: pixels})
        patches = np.ascontiguousarray(patches * np.float32(calls.factor))
        ctypes.memmove(self.addresses[output.name], patches.ctypes.data, patches.nbytes)
        return True


class FakeCuda:
    """Device memory is host memory that only copies reach."""

    class Kind:
        cudaMemcpyHostToDevice = "to device"
        cudaMemcpyDeviceToHost = "to host"

    cudaMemcpyKind = Kind

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.memory: dict[int, Any] = {}

    def _done(self, name: str, *facts: Any) -> int:
        self.calls.asked.append((name, *facts))
        return 2 if self.calls.cuda_error == name else 0

    def _allocate(self, name: str, size: int) -> tuple[int, int]:
        buffer = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(buffer)] = buffer
        return self._done(name, size), ctypes.addressof(buffer)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return self._allocate("cudaMalloc", size)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        return self._allocate("cudaMallocHost", size)

    def cudaFree(self, address: int) -> tuple[int]:
        return (self._done("cudaFree"),)

    def cudaFreeHost(self, address: int) -> tuple[int]:
        return (self._done("cudaFreeHost"),)

    def cudaStreamCreate(self) -> tuple[int, int]:
        return self._done("cudaStreamCreate"), 77

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (self._done("cudaStreamDestroy"),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (self._done("cudaStreamSynchronize"),)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> tuple[int]:
        ctypes.memmove(target, source, size)
        return (self._done("cudaMemcpyAsync", kind, size),)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, b"out of memory"
