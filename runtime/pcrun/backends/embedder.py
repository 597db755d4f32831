"""What runs `embedder.onnx`: the interface, and what all backends share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from pcrun.bundle.manifest import EMBEDDER_NAME, LARGEST_COMPONENT, EmbeddingSpec
from pcrun.errors import BackendError, BundleError
from pcrun.machine.threads import available_cores
from pcrun.types import FloatArray, UInt8Array


class Embedder(Protocol):
    """Turns prepared images into patch embeddings.

    Attributes:
        provider: what runs it.
        precision: arithmetic of the backbone, one of `pcrun.bundle.manifest.PRECISIONS`.
    """

    provider: str
    precision: str

    def embed(self, images: UInt8Array) -> FloatArray:
        """Embed (batch, height, width, 3) uint8 RGB images; gives (batch, patches, dim) float32."""


@dataclass
class CopyTimes:
    """Milliseconds spent moving data between host and device; they grow as more is moved."""

    host_to_device_ms: float = 0.0
    device_to_host_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """Both directions."""
        return self.host_to_device_ms + self.device_to_host_ms

    def times(self, share: float) -> "CopyTimes":
        """A share of both."""
        return CopyTimes(self.host_to_device_ms * share, self.device_to_host_ms * share)


@runtime_checkable
class CopyingEmbedder(Protocol):
    """An embedder with a memory of its own."""

    def embed_timed(self, images: UInt8Array) -> tuple[FloatArray, CopyTimes]:
        """As `Embedder.embed`, and what the copies took."""


class GraphEmbedder(ABC):
    """A backend: feeds the graph with batches of its size, and looks at what comes out."""

    provider: str
    precision: str

    def __init__(self, spec: EmbeddingSpec, *, threads: int) -> None:
        """Keep what the graph announces; 0 threads is one per available core."""
        if threads < 0:
            raise ValueError(f"threads must be 0 (all cores) or more, got {threads}")
        self._spec = spec
        self.threads = threads or available_cores()

    @abstractmethod
    def _compute(self, images: UInt8Array) -> FloatArray:
        """Run the graph once on images that fill its batch."""

    def embed(self, images: UInt8Array) -> FloatArray:
        """See `Embedder.embed`; a graph with a fixed batch is run in chunks, the last one padded."""
        batch = self._spec.batch
        if batch is None or len(images) == batch:
            return self._run(images)
        chunks = [self._run_padded(images[i : i + batch], batch) for i in range(0, len(images), batch)]
        return np.concatenate(chunks)

    def _run_padded(self, images: UInt8Array, batch: int) -> FloatArray:
        return self._run(padded(images, batch))[: len(images)]

    def _run(self, images: UInt8Array) -> FloatArray:
        output = self._compute(images)
        self._check_output(output, len(images))
        return output

    def _check_output(self, output: FloatArray, images: int) -> None:
        """What the graph announces is not what it must give: a NaN score would read as a normal image."""
        self._check_shape(str(output.dtype), output.shape, images)
        # False for NaN too; beyond the limit squared distances overflow.
        if not (output.min() >= -LARGEST_COMPONENT and output.max() <= LARGEST_COMPONENT):
            raise not_finite(self.provider)

    def _check_shape(self, dtype: str, shape: tuple[int, ...], images: int) -> None:
        expected = (images, self._spec.patches, self._spec.dim)
        if shape != expected or dtype != "float32":
            raise BundleError(
                f"{EMBEDDER_NAME} gives {dtype} {list(shape)}, the manifest says "
                f"float32 {list(expected)}. The files come from different builds; run `pcexport build` again."
            )


def padded(images: UInt8Array, batch: int) -> UInt8Array:
    """The images, the last one repeated until they fill a batch."""
    missing = batch - len(images)
    if missing == 0:
        return images
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])


def not_finite(provider: str) -> BackendError:
    """The error for embeddings that no distance can be measured from."""
    return BackendError(
        f"{EMBEDDER_NAME} gives values on {provider} that are not finite or too large. "
        "Expected patch embeddings; try `--provider cpu`, or build the bundle again."
    )


def first_line(error: Exception) -> str:
    """What a backend's own error says, without its trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
