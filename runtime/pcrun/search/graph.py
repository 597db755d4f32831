"""Exact search as an ONNX graph, for providers on which a matrix product is cheap (GPUs)."""

import time
from typing import Any

import numpy as np

from pcrun.backends.device_session import CUDA_DEVICE, DeviceEmbeddings
from pcrun.backends.embedder import first_line, not_finite
from pcrun.backends.session import open_graph
from pcrun.errors import BackendError
from pcrun.search.exact import half_squared_norms
from pcrun.search.onnx_write import Node, Tensor, onnx_model
from pcrun.types import AnyArray, FloatArray, Int64Array

# Rows per matrix product: 784 patches make 51 MB of it.
_BLOCK_ROWS = 16_384


class GraphSearch:
    """Brute force in onnxruntime: matrix product, reduction and distances in float32, bank as initialiser.

    Attributes:
        device: in whose memory it runs, by onnxruntime's name.
    """

    name = "exact_graph"
    exact = True

    def __init__(self, rows: FloatArray, *, provider: str, threads: int, spinning: bool = False) -> None:
        """Make the graph for `rows`, (count, dim) float32, and open it.

        Raises:
            BackendError: the bank is larger than an ONNX file can be, or the provider does not work.
        """
        try:
            model = exact_search_model(rows)
        except ValueError as error:
            raise BackendError(
                f"The memory bank is too large for one ONNX graph ({error}). Choose another --search."
            ) from error
        self._session: Any = open_graph(model, provider=provider, threads=threads, spinning=spinning)
        self.provider = provider
        self.device = CUDA_DEVICE if provider == "cuda" else "cpu"

    def nearest(self, queries: FloatArray) -> tuple[FloatArray, Int64Array]:
        """See `PatchSearch.nearest`."""
        distances, ids = self._session.run(["distances", "ids"], {"queries": queries})
        return distances, ids

    def nearest_on_device(self, embeddings: DeviceEmbeddings) -> tuple[FloatArray, Int64Array]:
        """As `nearest`, of patches that are in this device's memory and stay there.

        Only distances and ids are copied to the host; `embeddings.copies` grows by what that takes.

        Raises:
            BackendError: the device fails, or the embeddings are not finite.
        """
        found = [self._run_bound(value, images, embeddings) for value, images in embeddings.parts]
        distances, ids = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
        # The embeddings themselves were not looked at; NaN and infinity reach the distances.
        if not np.isfinite(distances).all():
            raise not_finite(self.provider)
        return distances, ids

    def _run_bound(self, value: Any, images: int, embeddings: DeviceEmbeddings) -> Any:
        _, patches, dim = embeddings.shape
        try:
            binding = self._session.io_binding()
            # The same memory as rows; what fills up the batch comes last and is left out.
            rows = (images * patches, dim)
            binding.bind_input("queries", embeddings.device, 0, np.float32, rows, value.data_ptr())
            for name in ("distances", "ids"):
                binding.bind_output(name, self.device, 0)
            self._session.run_with_iobinding(binding)
            started = time.perf_counter()
            found = binding.copy_outputs_to_cpu()
        except Exception as error:  # onnxruntime raises its own unexported types
            raise BackendError(
                f"onnxruntime failed on the search on {self.provider}: {first_line(error)}"
            ) from error
        embeddings.copies.device_to_host_ms += (time.perf_counter() - started) * 1e3
        return found


def exact_search_model(rows: FloatArray) -> bytes:
    """The graph: (patches, dim) float32 "queries" to (patches,) float32 "distances" and int64 "ids"."""
    centre = rows.mean(axis=0)
    half_norms = half_squared_norms(rows, centre)
    initializers: dict[str, AnyArray] = {"centre": centre, "rows": rows, "last": np.array([1], np.int64)}
    nodes = [Node("Sub", ["queries", "centre"], ["centred"])]
    best, ids = [], []
    for number, start in enumerate(range(0, len(rows), _BLOCK_ROWS)):
        nodes += _block_nodes(number, start, initializers, rows, half_norms)
        best.append(f"best{number}")
        ids.append(f"ids{number}")
    nodes += [
        Node("Concat", best, ["all_best"], {"axis": 1}),
        Node("Concat", ids, ["all_ids"], {"axis": 1}),
        Node("ArgMax", ["all_best"], ["block"], {"axis": 1}),
        Node("GatherElements", ["all_ids", "block"], ["found"], {"axis": 1}),
        Node("Squeeze", ["found", "last"], ["ids"]),
        # The distance itself comes from the difference: the expanded square cancels badly.
        Node("Gather", ["rows", "ids"], ["entries"]),
        Node("Sub", ["queries", "entries"], ["difference"]),
        Node("Mul", ["difference", "difference"], ["squares"]),
        Node("ReduceSum", ["squares", "last"], ["squared"], {"keepdims": 0}),
        Node("Sqrt", ["squared"], ["distances"]),
    ]
    return onnx_model(
        nodes,
        initializers,
        [Tensor("queries", "float32", ("patches", rows.shape[1]))],
        [Tensor("distances", "float32", ("patches",)), Tensor("ids", "int64", ("patches",))],
    )


def _block_nodes(
    number: int, start: int, initializers: dict[str, AnyArray], rows: FloatArray, half_norms: FloatArray
) -> list[Node]:
    """Best row of one block: ||q - r||^2 is least where the closeness (q - c).r - ||r - c||^2 / 2 is most."""
    stop = min(start + _BLOCK_ROWS, len(rows))
    block = "rows"
    nodes = []
    if stop - start < len(rows):
        block = f"rows{number}"
        initializers[f"from{number}"] = np.array([start], np.int64)
        initializers[f"to{number}"] = np.array([stop], np.int64)
        # A slice of a constant: onnxruntime folds it when the session is made.
        nodes.append(Node("Slice", ["rows", f"from{number}", f"to{number}"], [block]))
    initializers[f"offset{number}"] = -half_norms[start:stop]
    initializers[f"start{number}"] = np.array(start, np.int64)
    return [
        *nodes,
        Node("Gemm", ["centred", block, f"offset{number}"], [f"closeness{number}"], {"transB": 1}),
        Node("ArgMax", [f"closeness{number}"], [f"position{number}"], {"axis": 1}),
        Node("GatherElements", [f"closeness{number}", f"position{number}"], [f"best{number}"], {"axis": 1}),
        Node("Add", [f"position{number}", f"start{number}"], [f"ids{number}"]),
    ]
