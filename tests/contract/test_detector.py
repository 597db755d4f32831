"""The detector on the tiny bundle: what it returns, what decides the verdict, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcrun import AnomalyResult, Bundle, BundleError
from pcrun.bundle.manifest import EMBEDDER_NAME, INDEX_NAME, MEMORY_BANK_NAME, ThresholdSpec
from pcrun.detector import choose_thresholds
from pcrun.images.image_io import decode_image
from pcrun.result import Region
from pcrun.sinks.record import result_record
from pcrun.sources import Frame
from tests.conftest import BundleMaker
from tests.contract.damage import edit_manifest, packed
from tests.contract.detectors import load, random_images

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import (  # noqa: E402
    DEFECT_XYWH,
    GRID_HW,
    IMAGE_HW,
    PATCHES,
    smooth_image,
    with_defect,
)

RECORD_KEYS = {
    "source", "frame", "verdict", "score", "threshold", "regions", "timings_ms",
    "exactness", "search", "verified_patches",
}  # fmt: skip
STAGES = {"decode", "preprocess", "embed", "search", "verify", "map", "total"}


# --- the result ---


def test_a_result_has_the_documented_shapes_and_types(tiny_bundle: Path) -> None:
    detector = load(tiny_bundle)
    result = detector(smooth_image(np.random.default_rng(1), (70, 50)))
    assert isinstance(result, AnomalyResult)
    assert type(result.image_score) is float and type(result.is_anomalous) is bool
    assert (result.patch_scores.shape, result.patch_scores.dtype) == (GRID_HW, np.float32)
    assert (result.anomaly_map.shape, result.anomaly_map.dtype) == (IMAGE_HW, np.float32)
    assert (result.mask.shape, result.mask.dtype) == (IMAGE_HW, np.bool_)
    assert np.array_equal(result.mask, result.anomaly_map > result.pixel_threshold)
    assert result.is_anomalous == (result.image_score > result.threshold)
    assert (result.exactness, result.search, detector.provider) == ("mask", "quantised", "cpu")
    assert 1 <= result.verified_patches <= PATCHES
    *stages, to_device, to_host = dataclasses.astuple(result.timings)
    assert all(value >= 0 for value in stages)
    assert to_device is None and to_host is None  # nothing is copied on the CPU


def test_a_record_is_valid_json_with_the_documented_keys(tiny_bundle: Path) -> None:
    image = with_defect(smooth_image(np.random.default_rng(1)))
    result = load(tiny_bundle)(image)
    record = json.loads(
        json.dumps(result_record(Frame("a.png", 4, image, None, 1.5), result), allow_nan=False)
    )
    assert set(record) >= RECORD_KEYS
    assert (record["source"], record["frame"], record["verdict"]) == ("a.png", 4, "anomalous")
    assert record["score"] == pytest.approx(result.image_score, abs=1e-6)
    assert set(record["timings_ms"]) == STAGES and record["timings_ms"]["decode"] == 1.5
    assert record["regions"] and set(record["regions"][0]) == {f.name for f in dataclasses.fields(Region)}
    failed = result_record(Frame("b.png", 0, None, "the file is empty", 0.1), None)
    assert (failed["verdict"], failed["error"]) == ("error", "the file is empty")


def test_grey_scores_as_its_three_channel_copy(tiny_bundle: Path) -> None:
    detector = load(tiny_bundle)
    grey = smooth_image(np.random.default_rng(2))[:, :, 0]
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(detector(grey).anomaly_map, detector(colour).anomaly_map)
    assert detector(grey).image_score == detector(colour).image_score


def test_the_colour_order_matters(tiny_bundle: Path) -> None:
    detector = load(tiny_bundle)
    image = smooth_image(np.random.default_rng(2))
    assert detector(image).image_score != detector(image[:, :, ::-1]).image_score


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 3), bool),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        [[0, 0], [0, 0]],
        None,
    ],
    ids=lambda image: f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}",
)
def test_other_images_are_refused_not_converted(tiny_bundle: Path, image: Any) -> None:
    with pytest.raises(ValueError, match="image"):
        load(tiny_bundle)(image)


def test_zip_and_directory_give_equal_results(tiny_bundle: Path) -> None:
    from_directory, from_zip = load(tiny_bundle), load(packed(tiny_bundle))
    assert from_directory.bundle.digest == from_zip.bundle.digest
    for image in random_images(8):
        a, b = from_directory(image), from_zip(image)
        assert a.image_score == b.image_score and a.regions == b.regions
        assert np.array_equal(a.anomaly_map, b.anomaly_map)


def test_one_bundle_serves_several_detectors(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    image = random_images(1)[0]
    assert load(bundle)(image).image_score == load(bundle)(image).image_score


def test_files_changed_after_loading_change_no_score(tiny_bundle: Path) -> None:
    detector = load(tiny_bundle)
    image = random_images(1)[0]
    before = detector(image).image_score
    for name in (MEMORY_BANK_NAME, EMBEDDER_NAME):
        data = bytearray((tiny_bundle / name).read_bytes())
        data[128:] = bytes(len(data) - 128)
        (tiny_bundle / name).write_bytes(data)
    assert detector(image).image_score == before


def test_a_bundle_changed_on_disk_after_loading_does_not_reach_native_code(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    (tiny_bundle / EMBEDDER_NAME).write_bytes(b"")
    index = bytearray((tiny_bundle / INDEX_NAME).read_bytes())
    index[20:60] = b"\xff" * 40
    (tiny_bundle / INDEX_NAME).write_bytes(index)
    with pytest.raises(BundleError, match=INDEX_NAME):
        load(bundle, search="hnsw")


@pytest.mark.parametrize(
    "arguments", [{"exactness": "most"}, {"ef": 0}, {"ef": -1}, {"threads": -1}, {"threshold": float("nan")}]
)
def test_arguments_out_of_range_are_refused(tiny_bundle: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        load(tiny_bundle, **arguments)


# --- thresholds ---


def test_a_given_threshold_moves_the_pixel_threshold_in_proportion(tiny_bundle: Path) -> None:
    stored = load(tiny_bundle)
    moved = load(tiny_bundle, threshold=stored.threshold * 3)
    assert moved.threshold == stored.threshold * 3
    assert moved.pixel_threshold == pytest.approx(stored.pixel_threshold * 3)
    both = load(tiny_bundle, threshold=stored.threshold * 3, pixel_threshold=0.5)
    assert (both.threshold, both.pixel_threshold) == (stored.threshold * 3, 0.5)
    pixel_only = load(tiny_bundle, pixel_threshold=0.5)
    assert (pixel_only.threshold, pixel_only.pixel_threshold) == (stored.threshold, 0.5)


def test_the_largest_threshold_calls_nothing_anomalous(tiny_bundle: Path) -> None:
    detector = load(tiny_bundle, threshold=3e38)
    result = detector(random_images(1)[0])  # a warning of an overflow would be an error
    assert not result.is_anomalous and not result.mask.any()
    with pytest.raises(ValueError, match=r"pixel-threshold must be a finite number, .* got 1e"):
        load(tiny_bundle, pixel_threshold=1e39)


def test_a_threshold_below_every_distance_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"^threshold must be .* at least 0 as scores are; got -1"):
        load(tiny_bundle, threshold=-1.0)


def test_a_threshold_decides_the_verdict_and_nothing_else(tiny_bundle: Path) -> None:
    image = random_images(1)[0]
    score = load(tiny_bundle)(image).image_score
    below, at, above = (load(tiny_bundle, threshold=score * f)(image) for f in (0.9, 1.0, 1.1))
    assert (below.is_anomalous, at.is_anomalous, above.is_anomalous) == (True, False, False)
    assert below.image_score == at.image_score == above.image_score == score


def test_no_threshold_at_all_is_an_error_that_names_the_option(made_bundle: BundleMaker) -> None:
    path = made_bundle(thresholds=False)
    with pytest.raises(BundleError, match=r"has no thresholds.*pass --threshold and --pixel-threshold"):
        load(path)
    with pytest.raises(BundleError, match=r"has no threshold\..*pass --threshold"):
        load(path, pixel_threshold=0.5)
    with pytest.raises(BundleError, match=r"has no pixel-threshold.*pass --pixel-threshold"):
        load(path, threshold=1.0)
    detector = load(path, threshold=1.0, pixel_threshold=0.5)
    assert (detector.threshold, detector.pixel_threshold) == (1.0, 0.5)


def test_a_stored_threshold_of_zero_divides_nothing(made_bundle: BundleMaker) -> None:
    manifest = Bundle.load(made_bundle()).manifest
    zero = dataclasses.replace(manifest.scoring.threshold, value=0.0)
    assert isinstance(zero, ThresholdSpec)
    scoring = dataclasses.replace(manifest.scoring, threshold=zero)
    image, pixel = choose_thresholds(dataclasses.replace(manifest, scoring=scoring), 2.0, None)
    assert (image, pixel) == (2.0, manifest.scoring.pixel_threshold.value)


# --- regions ---


@pytest.mark.parametrize("scale", [1, 5, (9, 4)], ids=str)
def test_regions_cover_the_defect_in_the_original_image(
    tiny_bundle: Path, scale: int | tuple[int, int]
) -> None:
    scale_y, scale_x = scale if isinstance(scale, tuple) else (scale, scale)
    detector = load(tiny_bundle)
    small = decode_image(bytes(detector.bundle.read("samples/001.png")))
    image = small.repeat(scale_y, axis=0).repeat(scale_x, axis=1)
    result = detector(image)
    assert result.is_anomalous and result.regions
    for region in result.regions:
        assert 0 <= region.x < region.x + region.width <= image.shape[1]
        assert 0 <= region.y < region.y + region.height <= image.shape[0]
        assert 1 <= region.area_px <= region.width * region.height
    strongest = result.regions[0]
    x, y, width, height = DEFECT_XYWH
    assert strongest.x <= x * scale_x and strongest.x + strongest.width >= (x + width) * scale_x
    assert strongest.y <= y * scale_y and strongest.y + strongest.height >= (y + height) * scale_y
    assert strongest.max_score == pytest.approx(float(result.anomaly_map.max()))
    # Two patches of smoothing on each side, no more: it says where the defect is.
    assert strongest.width <= (width + 16) * scale_x and strongest.height <= (height + 16) * scale_y


def test_regions_stay_inside_the_original_when_it_was_cropped(tiny_bundle: Path) -> None:
    edit_manifest(
        tiny_bundle,
        lambda m: m["preprocess"].update(resize_height_px=48, resize_width_px=64, keep_aspect=True),
    )
    detector = load(tiny_bundle, pixel_threshold=0.0)  # everything is a region
    for size in ((48, 64), (100, 30), (7, 300), (480, 640)):
        (region,) = detector(smooth_image(np.random.default_rng(1), size)).regions
        assert region.x >= 0 and region.x + region.width <= size[1]
        assert region.y >= 0 and region.y + region.height <= size[0]
        # The crop is half of the resized area at most.
        assert region.width * region.height <= 0.6 * size[0] * size[1]
