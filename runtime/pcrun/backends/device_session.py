"""The embedder in onnxruntime on a device with a memory of its own, and what becomes of its embeddings there.

They stay where they were computed. A search on the same device reads them in place (`GraphSearch`);
everything else gets them when it asks. Copies are measured on their own: each ends before its clock does,
because onnxruntime waits for the device at the end of a copy and of a run.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcrun.backends.embedder import CopyTimes, first_line, padded
from pcrun.backends.session import OnnxEmbedder, import_onnxruntime
from pcrun.bundle.manifest import EmbeddingSpec
from pcrun.errors import BackendError
from pcrun.types import FloatArray, UInt8Array

CUDA_DEVICE = "cuda"


class DeviceEmbeddings:
    """Patch embeddings of some images in a device's memory.

    Attributes:
        device: onnxruntime's name of it.
        parts: for each run of the graph, its output of (batch, patches, dim) float32, and how many of its
            first images count.
        shape: (images, patches, dim).
        copies: what moving data took so far, results of a search included.
    """

    def __init__(
        self, parts: list[tuple[Any, int]], shape: tuple[int, int, int], device: str, copies: CopyTimes
    ) -> None:
        self.parts = parts
        self.shape = shape
        self.device = device
        self.copies = copies
        self._host: FloatArray | None = None

    def host(self) -> FloatArray:
        """(images, patches, dim) float32 in the host's memory; copied when first asked for."""
        if self._host is None:
            started = time.perf_counter()
            arrays = [value.numpy()[:images] for value, images in self.parts]
            self._host = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            self.copies.device_to_host_ms += (time.perf_counter() - started) * 1e3
        return self._host


class DeviceRows:
    """The (patches, dim) embeddings of one image, copied to the host when a part of them is asked for."""

    def __init__(self, embeddings: DeviceEmbeddings, image: int) -> None:
        self._embeddings = embeddings
        self._image = image

    def __getitem__(self, patches: Any) -> FloatArray:
        """See `pcrun.scoring.certify.PatchRows`."""
        rows: FloatArray = self._embeddings.host()[self._image][patches]
        return rows


class DeviceEmbedder(OnnxEmbedder):
    """`embedder.onnx` in onnxruntime on a GPU, its input and output bound to the GPU's memory.

    Attributes:
        device: whose memory, by onnxruntime's name.
        engine_folder: where TensorRT keeps what it built; None on other providers.
    """

    def __init__(
        self,
        model: bytes,
        spec: EmbeddingSpec,
        *,
        provider: str,
        threads: int = 0,
        spinning: bool = True,
        options: Mapping[str, str] | None = None,
        device: str | None = None,
    ) -> None:
        """Create the session.

        Args:
            model, spec, provider, threads, spinning, options: as for `OnnxEmbedder`.
            device: whose memory to use, by onnxruntime's name; None is CUDA's.

        Raises:
            BackendError: onnxruntime or the provider is missing or does not work here.
        """
        super().__init__(model, spec, provider=provider, threads=threads, spinning=spinning, options=options)
        self.device = device or CUDA_DEVICE
        folder = (options or {}).get("trt_engine_cache_path")
        self.engine_folder = Path(folder) if folder else None
        self._values = import_onnxruntime().OrtValue
        self._inputs: dict[tuple[int, ...], Any] = {}
        # One input buffer for each size, whoever calls.
        self._lock = threading.Lock()

    def embed_on_device(self, images: UInt8Array) -> DeviceEmbeddings:
        """Embed (batch, height, width, 3) uint8 RGB images and leave the result where it is.

        Nobody looks at the values: whoever measures distances to them must find out whether they are finite.

        Raises:
            BackendError: the device fails.
            BundleError: the graph gives another shape than it announces.
        """
        batch = self._spec.batch or len(images)
        copies = CopyTimes()
        parts = []
        for start in range(0, len(images), batch):
            chunk = images[start : start + batch]
            parts.append((self._run_bound(padded(chunk, batch), copies), len(chunk)))
        shape = (len(images), self._spec.patches, self._spec.dim)
        return DeviceEmbeddings(parts, shape, self.device, copies)

    def embed_timed(self, images: UInt8Array) -> tuple[FloatArray, CopyTimes]:
        """See `CopyingEmbedder.embed_timed`."""
        embeddings = self.embed_on_device(images)
        output = embeddings.host()
        self._check_output(output, len(images))
        return output, embeddings.copies

    def _compute(self, images: UInt8Array) -> FloatArray:
        output: FloatArray = self._run_bound(images, CopyTimes()).numpy()
        return output

    def _run_bound(self, images: UInt8Array, copies: CopyTimes) -> Any:
        """One run of the graph on images that fill its batch; its output, in the device's memory."""
        try:
            with self._lock:
                started = time.perf_counter()
                image = self._input(images)
                image.update_inplace(np.ascontiguousarray(images))
                copies.host_to_device_ms += (time.perf_counter() - started) * 1e3
                binding = self._session.io_binding()
                binding.bind_ortvalue_input(self._spec.input_name, image)
                # A new output for each run: a search in another thread may still read the one before.
                binding.bind_output(self._spec.output_name, self.device, 0)
                self._session.run_with_iobinding(binding)
                output = binding.get_outputs()[0]
        except Exception as error:  # onnxruntime raises its own unexported types
            raise BackendError(f"onnxruntime failed on {self.provider}: {first_line(error)}") from error
        dtype = "float32" if output.data_type() == "tensor(float)" else str(output.data_type())
        self._check_shape(dtype, tuple(output.shape()), len(images))
        return output

    def _input(self, images: UInt8Array) -> Any:
        if images.shape not in self._inputs:
            self._inputs[images.shape] = self._values.ortvalue_from_shape_and_type(
                list(images.shape), np.uint8, self.device, 0
            )
        return self._inputs[images.shape]
