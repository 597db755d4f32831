"""Golden samples: images of the build with their results, replayed by `pcrun selftest` on every device."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pcexport.datasets import Dataset, ImageRef
from pcexport.datasets.reader import ImageReader
from pcrun.bundle.bundle import GoldenSample, GoldenSamples
from pcrun.bundle.manifest import SAMPLES_NAME
from pcrun.detector import AnomalyDetector
from pcrun.errors import SourceError
from pcrun.images.image_io import encode_png
from pcrun.records import to_jsonable

T = TypeVar("T")

# Other CPUs, providers and library versions round differently: docs/bundle.md says by how much. Rounding to
# bfloat16 is 0.4 % at once, and which values go up depends on the order in which a processor sums.
TOLERANCE_RELATIVE = {"fp32": 1e-3, "int8": 1e-3, "fp16": 1e-2, "bf16": 1e-2}


def choose_samples(
    dataset: Dataset, normal: list[ImageRef], wanted: int, reader: ImageReader
) -> list[tuple[ImageRef, str]]:
    """Evenly spaced normal images, and, where labelled, defective ones for half of the places.

    Args:
        dataset: for its test images.
        normal: readable normal images.
        wanted: how many samples, at least 1.
        reader: finds out which defective images can be read.

    Returns:
        (image, "normal" or "defective") pairs.
    """
    all_defective = [image.ref for image in dataset.test if image.is_defective]
    defective = _readable(_spread_first(all_defective, wanted // 2), wanted // 2, reader)
    chosen = [(image, "normal") for image in spread(normal, wanted - len(defective))]
    return chosen + [(image, "defective") for image in defective]


def write_samples(
    folder: Path, chosen: list[tuple[ImageRef, str]], reader: ImageReader, detector: AnomalyDetector
) -> list[str]:
    """Store the images as lossless PNG with what the finished detector says of them.

    The largest map value recorded is the exact one: an approximate map depends on the search in use.

    Returns:
        Names of the files written, relative to the bundle.
    """
    (folder / "samples").mkdir()
    samples: list[GoldenSample] = []
    names: list[str] = []
    for ref, label in chosen:
        image = reader.read(ref)
        name = f"samples/{len(samples):03d}.png"
        (folder / name).write_bytes(encode_png(image))
        result = detector(image)
        map_max = detector.peaks(image)[1]
        samples.append(GoldenSample(name, label, result.image_score, map_max, result.is_anomalous))
        names.append(name)
    tolerance = TOLERANCE_RELATIVE[detector.manifest.embedding.precision]
    (folder / SAMPLES_NAME).write_bytes(samples_to_json(GoldenSamples(tolerance, tuple(samples))))
    return [*names, SAMPLES_NAME]


def samples_to_json(golden: GoldenSamples) -> bytes:
    """The content of samples/expected.json."""
    return (json.dumps(to_jsonable(golden), indent=2, sort_keys=True) + "\n").encode()


def judge_again(golden: GoldenSamples, threshold: float) -> GoldenSamples:
    """The same samples with their verdicts at another threshold (L2 units)."""
    samples = (
        dataclasses.replace(sample, is_anomalous=sample.image_score > threshold) for sample in golden.samples
    )
    return dataclasses.replace(golden, samples=tuple(samples))


def spread(items: Sequence[T], wanted: int) -> list[T]:
    """`wanted` items at even distances, the ends included; all of them when there are fewer."""
    if wanted <= 1 or len(items) <= wanted:
        return list(items[: max(0, wanted)])
    return [items[round(i * (len(items) - 1) / (wanted - 1))] for i in range(wanted)]


def _spread_first(images: list[ImageRef], wanted: int) -> list[ImageRef]:
    """All images, those at even distances first."""
    first = spread(images, wanted)
    taken = set(first)
    return first + [image for image in images if image not in taken]


def _readable(images: list[ImageRef], wanted: int, reader: ImageReader) -> list[ImageRef]:
    """The first `wanted` images that can be read; the unreadable ones were named when they were evaluated."""
    found: list[ImageRef] = []
    for image in images:
        if len(found) == wanted:
            break
        with contextlib.suppress(SourceError):
            reader.read(image)
            found.append(image)
    return found
