"""A detector that keeps the times of its stages."""

import time
from collections.abc import Sequence

from pcrun.bench.content import Item
from pcrun.detector import AnomalyDetector
from pcrun.images.image_io import decode_image
from pcrun.types import UInt8Array

STAGES = ("decode", "preprocess", "embed", "search", "verify", "map", "other")
# Beside those where the embedder runs on a GPU.
COPY_STAGES = ("host_to_device", "device_to_host")


class StagedDetector:
    """Decodes and scores; remembers milliseconds per image and stage.

    Attributes:
        samples: by stage (copies only where there are any); "other" is what the clock around everything has
            beyond the stages, "total" is that clock's.
        verified: patches verified per image.
    """

    def __init__(self, detector: AnomalyDetector) -> None:
        self._detector = detector
        self._white_level = detector.manifest.preprocess.white_level_16bit
        stages = (*STAGES, *(COPY_STAGES if detector.copies else ()), "total")
        self.samples: dict[str, list[float]] = {stage: [] for stage in stages}
        self.verified: list[int] = []

    def forget(self) -> None:
        """Drop what was measured, as after warming up."""
        for samples in self.samples.values():
            samples.clear()
        self.verified.clear()

    def serve(self, items: Sequence[Item]) -> None:
        """Score one image, or several as a batch; the stages of a batch are divided evenly."""
        started = time.perf_counter()
        images = [self._decoded(item) for item in items]
        decoded = time.perf_counter()
        results = [self._detector(images[0])] if len(images) == 1 else self._detector.batch(images)
        total_ms = (time.perf_counter() - started) * 1e3 / len(items)
        decode_ms = (decoded - started) * 1e3 / len(items)
        for result in results:
            times = result.timings
            stages = (
                decode_ms,
                times.preprocess_ms,
                times.embed_ms,
                times.search_ms,
                times.verify_ms,
                times.map_ms,
            )
            copies = (times.host_to_device_ms or 0.0, times.device_to_host_ms or 0.0)
            other_ms = total_ms - sum(stages) - sum(copies)
            for stage, value in zip((*STAGES, *COPY_STAGES), (*stages, other_ms, *copies), strict=True):
                if stage in self.samples:
                    self.samples[stage].append(value)
            self.samples["total"].append(total_ms)
            self.verified.append(result.verified_patches)

    def _decoded(self, item: Item) -> UInt8Array:
        if item.image is not None:
            return item.image
        assert item.data is not None
        return decode_image(item.data, white_level_16bit=self._white_level)
