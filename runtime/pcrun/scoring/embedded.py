"""The first half of a verdict: patch embeddings, where they are, and what it took to have them there."""

import time
from dataclasses import dataclass

import numpy as np

from pcrun.backends.device_session import DeviceEmbedder, DeviceEmbeddings
from pcrun.backends.embedder import CopyingEmbedder, CopyTimes, Embedder
from pcrun.scoring.scorer import Embeddings
from pcrun.search import PatchSearch
from pcrun.search.graph import GraphSearch
from pcrun.types import FloatArray, UInt8Array


@dataclass(frozen=True)
class EmbeddedImage:
    """An image half way to its verdict.

    Attributes:
        found: (patches, dim) float32, or those of one image in a device's memory.
        original_hw: height and width of the image in pixels.
        preprocess_ms, embed_ms: time spent, copies not counted.
        copies: between host and device; None where nothing runs on a device.
    """

    found: Embeddings
    original_hw: tuple[int, int]
    preprocess_ms: float
    embed_ms: float
    copies: CopyTimes | None = None

    @property
    def embeddings(self) -> FloatArray:
        """(patches, dim) float32 in the host's memory; copied there when first asked for."""
        return self.found if isinstance(self.found, np.ndarray) else self.found.host()[0]


def embed_prepared(
    embedder: Embedder, search: PatchSearch, prepared: UInt8Array
) -> tuple[Embeddings, float, CopyTimes | None]:
    """Embed prepared images for a search.

    Args:
        embedder: what embeds.
        search: what reads the result: on the embedder's own device it does so without a copy.
        prepared: (images, height, width, 3) uint8 RGB.

    Returns:
        (images, patches, dim) embeddings, milliseconds without copies, and the copies.
    """
    started = time.perf_counter()
    copies: CopyTimes | None = None
    embeddings: Embeddings
    if isinstance(embedder, DeviceEmbedder) and _reads_device(search, embedder.device):
        embeddings = embedder.embed_on_device(prepared)
        copies = embeddings.copies
    elif isinstance(embedder, CopyingEmbedder):
        embeddings, copies = embedder.embed_timed(prepared)
    else:
        embeddings = embedder.embed(prepared)
    spent_ms = (time.perf_counter() - started) * 1e3
    return embeddings, spent_ms - (copies.total_ms if copies else 0.0), copies


def first_of(embeddings: Embeddings) -> Embeddings:
    """What the scorer takes for the only image."""
    return embeddings if isinstance(embeddings, DeviceEmbeddings) else embeddings[0]


def _reads_device(search: PatchSearch, device: str) -> bool:
    return isinstance(search, GraphSearch) and search.device == device
