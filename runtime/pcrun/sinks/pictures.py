"""Overlays and maps as files, one per frame."""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcrun.errors import SinkError
from pcrun.files import make_folder, write_file
from pcrun.images.image_io import encode_png
from pcrun.images.overlay import draw_overlay, map_as_uint16, map_on_frame
from pcrun.images.suffixes import IMAGE_SUFFIXES
from pcrun.result import AnomalyResult
from pcrun.sources import Frame
from pcrun.types import UInt8Array

if TYPE_CHECKING:
    from pcrun.pipeline.pipeline import Verdict

MAP_FORMATS = ("npy", "png")
# A 16-bit map reaches full scale at this multiple of the pixel threshold.
_MAP_FULL_SCALE_IN_THRESHOLDS = 4.0
# A watched folder may bring files for months.
_NAMES_REMEMBERED = 100_000


class PictureSink:
    """Saves overlays and maps, named after the frame."""

    def __init__(self, overlays: Path | None, maps: Path | None, map_format: str) -> None:
        """Prepare the folders.

        Args:
            overlays, maps: folders, or None for none.
            map_format: "npy" (float32, L2 units) or "png" (16 bits).

        Raises:
            SinkError: a folder cannot be made.
        """
        self.name = " and ".join(f"pictures in {folder}" for folder in (overlays, maps) if folder)
        self.lost = 0
        self._overlays = overlays
        self._maps = maps
        self._map_format = map_format
        self._used: dict[str, None] = {}
        for folder in (overlays, maps):
            if folder is not None:
                make_folder(folder)

    def verdict(self, verdict: "Verdict", record: dict[str, Any]) -> None:
        """See `Sink.verdict`."""
        if verdict.image is None or verdict.result is None:
            return
        stem = self._stem(verdict.frame)
        try:
            if self._overlays is not None:
                write_file(
                    self._overlays / f"{stem}.png",
                    encode_png(overlay_of(verdict, verdict.image, verdict.result)),
                )
            if self._maps is not None:
                data, suffix = self._encoded_map(verdict, verdict.image, verdict.result)
                write_file(self._maps / f"{stem}{suffix}", data)
        except SinkError:
            self.lost += 1
            raise

    def event(self, record: dict[str, Any]) -> None:
        """See `Sink.event`."""

    def close(self) -> None:
        """See `Sink.close`."""

    def _encoded_map(self, verdict: "Verdict", image: UInt8Array, result: AnomalyResult) -> tuple[bytes, str]:
        spec = verdict.detector.manifest.preprocess
        full = map_on_frame(result.anomaly_map, image.shape, spec, verdict.view)
        if self._map_format == "png":
            full_scale = _MAP_FULL_SCALE_IN_THRESHOLDS * result.pixel_threshold
            return encode_png(map_as_uint16(full, full_scale)), ".png"
        buffer = io.BytesIO()
        np.save(buffer, full, allow_pickle=False)
        return buffer.getvalue(), ".npy"

    def _stem(self, frame: Frame) -> str:
        """A file name from the source's last two parts and the frame.

        A number is added when it was used before.
        """
        path = Path(frame.source)
        parts = [re.sub(r"[^\w.-]+", "_", part) for part in (path.parent.name, path.stem) if part]
        stem = "_".join(parts)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return f"{stem}_{frame.index:06d}"  # a video or a camera: the number makes it unique
        unique, number = stem, 1
        while unique in self._used:
            number += 1
            unique = f"{stem}_{number}"
        self._used[unique] = None
        if len(self._used) > _NAMES_REMEMBERED:
            del self._used[next(iter(self._used))]
        return unique


def overlay_of(verdict: "Verdict", image: UInt8Array, result: AnomalyResult) -> UInt8Array:
    """The whole upright frame with its result drawn over it and a caption above."""
    return draw_overlay(image, result, verdict.detector.manifest.preprocess, verdict.view)
