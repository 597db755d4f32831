"""Made-up frames, results and verdicts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcrun.pipeline.pipeline import Verdict
from pcrun.preprocess import PreprocessSpec
from pcrun.result import AnomalyResult, Region, StageTimings
from pcrun.sinks.record import result_record
from pcrun.sources import Frame
from pcrun.sources.view import FrameView

SPEC = PreprocessSpec(32, 48, 32, 48)
PIXEL_THRESHOLD = 2.0


def make_result(heat: np.ndarray | None = None, *, anomalous: bool = True, **changes: Any) -> AnomalyResult:
    heat = np.zeros((32, 48), np.float32) if heat is None else heat
    values: dict[str, Any] = {
        "image_score": 3.5 if anomalous else 1.5,
        "threshold": 2.5,
        "is_anomalous": anomalous,
        "patch_scores": np.zeros((8, 12), np.float32),
        "anomaly_map": heat,
        "pixel_threshold": PIXEL_THRESHOLD,
        "mask": heat > PIXEL_THRESHOLD,
        "regions": (Region(3, 4, 5, 6, 20, 3.25), Region(20, 1, 2, 2, 4, 2.125)) if anomalous else (),
        "timings": StageTimings(1.0, 2.0, 3.0, 4.0, 5.0),
        "exactness": "image",
        "search": "hnsw",
        "verified_patches": 8,
    }
    return AnomalyResult(**(values | changes))


def make_frame(source: str = "parts/a.png", index: int = 0) -> Frame:
    return Frame(source, index, np.full((64, 96, 3), 90, np.uint8), None, 0.5)


BROKEN = Frame('odd, "name"\n.png', 7, None, 'odd, "name"\n.png: not an image, really', 0.1)
RECORDS = [
    result_record(make_frame("größe.png"), make_result()),
    result_record(BROKEN, None),
    result_record(make_frame(index=2), make_result(anomalous=False)),
]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@dataclass(frozen=True)
class FakeManifest:
    preprocess: PreprocessSpec = SPEC


class FakeDetector:
    manifest = FakeManifest()


def make_verdict(frame: Frame, result: AnomalyResult, image: np.ndarray | None = None) -> Verdict:
    image = frame.image if image is None else image
    detector: Any = FakeDetector()
    return Verdict(frame, image, FrameView(), result, None, detector, 0, None, None)
