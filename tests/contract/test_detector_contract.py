"""The detector on the tiny bundle: what it returns, that its scores are exact, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcrun import AnomalyDetector, AnomalyResult, BackendError, Bundle, BundleError
from pcrun.cli import main
from pcrun.detector import NO_THRESHOLD, choose_thresholds
from pcrun.image_io import decode_image
from pcrun.manifest import EMBEDDER_NAME, INDEX_NAME, MEMORY_BANK_NAME, SAMPLES_NAME, ThresholdSpec
from pcrun.outputs import result_record
from pcrun.result import Region
from pcrun.scoring import PatchCoreScorer, certify_maximum
from pcrun.search import ExactSearch, HnswSearch
from pcrun.selftest import run_selftest
from pcrun.session import OnnxEmbedder
from pcrun.sources import Frame
from tests.conftest import BundleMaker
from tests.contract.damage import edit_manifest, forge, packed

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
import onnx  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from tests.data.make_tiny_bundle import (  # noqa: E402
    DEFECT_XYWH,
    GRID_HW,
    IMAGE_HW,
    PATCHES,
    SCHEMA1_FIXTURE,
    embedder_onnx,
    make_index,
    make_tiny_bundle,
    smooth_image,
    with_defect,
)

RECORD_KEYS = {
    "source", "frame", "verdict", "score", "threshold", "regions", "timings_ms",
    "exactness", "search", "verified_patches",
}  # fmt: skip
STAGES = {"decode", "preprocess", "embed", "search", "verify", "map", "total"}


def load(path: Path | Bundle, **arguments: Any) -> AnomalyDetector:
    return AnomalyDetector.load(path, **{"provider": "cpu", "threads": 1, **arguments})


def random_images(count: int, seed: int = 11) -> list[np.ndarray]:
    """Normal, defective and pure noise, of many sizes."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        if number % 4 == 3:
            size = rng.integers(1, 100, size=2)
            images.append(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        else:
            image = smooth_image(rng)
            images.append(with_defect(image) if number % 4 == 2 else image)
    return images


def embed(embedder: OnnxEmbedder, image: np.ndarray) -> np.ndarray:
    return embedder.embed(np.ascontiguousarray(image)[None])[0]


# --- the committed fixture and its generator ---


def test_the_schema_1_fixture_loads_forever() -> None:
    bundle = Bundle.load(SCHEMA1_FIXTURE)
    assert bundle.manifest.schema_version == 1
    assert bundle.manifest.scoring.image_score == "reweighted"
    report = run_selftest(load(bundle))
    assert [check.sample.label for check in report.checks] == ["normal", "defective"]
    assert [check.is_anomalous for check in report.checks] == [False, True]
    assert report.passed, report


def test_the_generator_is_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_tiny_bundle(tmp_path / name, image_score="reweighted")
    assert Bundle.load(tmp_path / "a").digest == Bundle.load(tmp_path / "b").digest


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"image_score": "reweighted"},
        {"with_index": False},
        {"thresholds": False},
        {"seed": 3, "dim": 5},
        {"batch": None},
        {"batch": 4},
    ],
    ids=str,
)
def test_every_kind_of_bundle_passes_its_selftest(
    made_bundle: BundleMaker, arguments: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path = made_bundle(**arguments)
    limit = None if arguments.get("thresholds", True) else NO_THRESHOLD
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_selftest(load(path, threshold=limit, pixel_threshold=limit)).passed
    assert main(["selftest", "--bundle", str(path), "--provider", "cpu"]) == 0
    assert capfd.readouterr().err == ""


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
    assert (result.exactness, result.search, detector.provider) == ("image", "hnsw", "cpu")
    assert 1 <= result.verified_patches <= PATCHES
    assert all(value >= 0 for value in dataclasses.astuple(result.timings))


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


# --- exactness ---


@pytest.mark.parametrize("image_score", ["max", "reweighted"])
def test_the_certified_image_score_is_exact_at_the_worst_ef(
    made_bundle: BundleMaker, image_score: str
) -> None:
    path = made_bundle(image_score=image_score)
    certified, full = load(path, ef=1), load(path, exactness="full")
    uncertified = load(path, ef=1, exactness="none")
    missed = 0
    for image in random_images(100):
        truth = full(image).image_score
        assert certified(image).image_score == pytest.approx(truth, rel=1e-6)
        missed += uncertified(image).image_score > truth * (1 + 1e-5)
    # Without this the graph would be exact anyway and the test would show nothing.
    assert missed or image_score == "reweighted"


def test_an_uncertified_score_is_never_too_small(made_bundle: BundleMaker) -> None:
    approximate, full = (
        load(made_bundle(), ef=1, exactness="none"),
        load(made_bundle(), exactness="full"),
    )
    assert (approximate.exactness, full.exactness, full.search) == ("none", "full", "exact")
    larger = 0
    for image in random_images(60):
        got, truth = approximate(image), full(image)
        assert np.all(got.patch_scores >= truth.patch_scores * (1 - 1e-5) - 1e-6)
        assert got.verified_patches == 0 and truth.verified_patches == PATCHES
        larger += int((got.patch_scores > truth.patch_scores * (1 + 1e-5) + 1e-6).sum())
    assert larger > 0


def test_a_search_that_lost_half_of_the_rows_still_gives_the_exact_image_score(
    made_bundle: BundleMaker,
) -> None:
    bundle = Bundle.load(made_bundle())
    rows = bundle.memory_bank
    half = HnswSearch(make_index(rows[:100]), ef=1, threads=1)
    exact = ExactSearch(rows, threads=1)
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding, provider="cpu", threads=1)
    wrong = 0
    for image in random_images(40):
        if image.shape[:2] != IMAGE_HW:
            continue
        patches = embed(embedder, image)
        truth = float(exact.nearest(patches)[0].max())
        approximate, ids = half.nearest(patches)
        wrong += float(approximate.max()) > truth * (1 + 1e-5)
        assert PatchCoreScorer(rows, half).score(patches).image_score == pytest.approx(truth, rel=1e-6)
        verified = certify_maximum(patches, approximate, ids, exact)
        assert float(approximate.max()) == pytest.approx(truth, rel=1e-6) and 1 <= verified <= PATCHES
        worst = int(approximate.argmax())
        assert ids[worst] == exact.nearest(patches[worst : worst + 1])[1][0]
    assert wrong > 0


def test_exact_search_is_the_nearest_row() -> None:
    rng = np.random.default_rng(3)
    rows, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (5000, 50))
    distances, ids = ExactSearch(rows, threads=1).nearest(queries)
    truth = np.linalg.norm(queries[:, None].astype(np.float64) - rows[None], axis=2)
    assert np.array_equal(ids, truth.argmin(axis=1))
    assert np.allclose(distances, truth.min(axis=1), rtol=1e-6)


def test_reweighted_scores_follow_equation_7(made_bundle: BundleMaker) -> None:
    path = made_bundle(image_score="reweighted")
    bundle, detector = Bundle.load(path), load(path)
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding, provider="cpu", threads=1)
    image = with_defect(smooth_image(np.random.default_rng(4)))
    patches = embed(embedder, image[:, :, ::-1]).astype(np.float64)
    distances = np.linalg.norm(patches[:, None] - bundle.memory_bank[None], axis=2)
    worst = int(distances.min(axis=1).argmax())
    nearest = int(distances[worst].argmin())
    support = np.argsort(np.linalg.norm(bundle.memory_bank - bundle.memory_bank[nearest], axis=1))[:3]
    largest = distances[worst, nearest]
    expected = (1 - np.exp(largest) / np.exp(distances[worst, support]).sum()) * largest
    assert detector(image).image_score == pytest.approx(expected, rel=1e-5)
    assert detector(image).patch_scores.max() == pytest.approx(largest, rel=1e-6)


# --- other ways to run the same bundle ---


def test_without_hnswlib_the_scores_are_the_same(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_index = load(tiny_bundle)
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with pytest.warns(UserWarning, match=r"hnswlib cannot be imported.*exact search is used"):
        without = load(tiny_bundle)
    assert (without.search, without.exactness) == ("exact", "full")
    for image in random_images(12):
        assert without(image).image_score == pytest.approx(with_index(image).image_score, rel=1e-6)


def test_a_bundle_without_an_index_is_searched_exactly(made_bundle: BundleMaker) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = load(made_bundle(with_index=False))
    assert (detector.search, detector.exactness) == ("exact", "full")
    other = load(made_bundle())
    for image in random_images(8):
        assert detector(image).image_score == pytest.approx(other(image).image_score, rel=1e-6)


def test_zip_and_directory_give_equal_results(tiny_bundle: Path) -> None:
    from_directory, from_zip = load(tiny_bundle), load(packed(tiny_bundle))
    assert from_directory.bundle.digest == from_zip.bundle.digest
    for image in random_images(8):
        a, b = from_directory(image), from_zip(image)
        assert a.image_score == b.image_score and a.regions == b.regions
        assert np.array_equal(a.anomaly_map, b.anomaly_map)


@pytest.mark.parametrize("exactness", ["image", "full"])
def test_scores_do_not_depend_on_threads(tiny_bundle: Path, exactness: str) -> None:
    one, many = (load(tiny_bundle, threads=n, exactness=exactness) for n in (1, 3))
    for image in random_images(12):
        a, b = one(image), many(image)
        assert a.image_score == pytest.approx(b.image_score, rel=1e-6)
        assert np.allclose(a.anomaly_map, b.anomaly_map, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("batch", [None, 2, 4])
def test_any_batch_gives_the_scores_of_batch_1(made_bundle: BundleMaker, batch: int | None) -> None:
    one, other = (Bundle.load(made_bundle(batch=b)) for b in (1, batch))
    single, several = (
        OnnxEmbedder(b.embedder, b.manifest.embedding, provider="cpu", threads=1) for b in (one, other)
    )
    images = np.stack([smooth_image(np.random.default_rng(n)) for n in range(7)])
    for count in (1, 2, 4, 7):  # 7 fills no whole number of batches
        got = several.embed(images[:count])
        assert got.shape == (count, PATCHES, one.manifest.embedding.dim)
        assert np.allclose(got, single.embed(images[:count]), rtol=1e-5, atol=1e-6)
    image = images[0]
    assert load(other)(image).image_score == pytest.approx(load(one)(image).image_score, rel=1e-5)


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


def test_a_threshold_decides_the_verdict_and_nothing_else(tiny_bundle: Path) -> None:
    image = random_images(1)[0]
    score = load(tiny_bundle)(image).image_score
    below, at, above = (load(tiny_bundle, threshold=score * f)(image) for f in (0.9, 1.0, 1.1))
    assert (below.is_anomalous, at.is_anomalous, above.is_anomalous) == (True, False, False)
    assert below.image_score == at.image_score == above.image_score == score


def test_no_threshold_at_all_is_an_error_that_names_the_option(made_bundle: BundleMaker) -> None:
    path = made_bundle(thresholds=False)
    with pytest.raises(BundleError, match=r"has no threshold.*pass --threshold"):
        load(path)
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
    detector = load(tiny_bundle, pixel_threshold=-1.0)  # everything is a region
    for size in ((48, 64), (100, 30), (7, 300), (480, 640)):
        (region,) = detector(smooth_image(np.random.default_rng(1), size)).regions
        assert region.x >= 0 and region.x + region.width <= size[1]
        assert region.y >= 0 and region.y + region.height <= size[0]
        # The crop is half of the resized area at most.
        assert region.width * region.height <= 0.6 * size[0] * size[1]


# --- golden samples ---


def edit_golden(path: Path, edit: Any) -> None:
    golden = json.loads((path / SAMPLES_NAME).read_bytes())
    edit(golden["samples"])
    forge(path, SAMPLES_NAME, json.dumps(golden).encode())


@pytest.mark.parametrize(
    "edit",
    [
        lambda samples: samples[0].update(image_score=samples[0]["image_score"] * 1.01),
        lambda samples: samples[1].update(map_max=samples[1]["map_max"] * 0.99),
        lambda samples: samples[1].update(is_anomalous=False),
    ],
    ids=["image score", "map", "verdict"],
)
def test_the_selftest_detects_one_changed_value(
    tiny_bundle: Path, edit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_golden(tiny_bundle, edit)
    report = run_selftest(load(tiny_bundle))
    assert not report.passed and [check.passed for check in report.checks].count(False) == 1
    assert main(["selftest", "--bundle", str(tiny_bundle), "--provider", "cpu"]) == 1
    assert "1 of 2 golden samples agree" in capsys.readouterr().out


@pytest.mark.parametrize("name", [EMBEDDER_NAME, MEMORY_BANK_NAME])
def test_the_selftest_detects_parts_of_another_build_that_fit(
    copied_bundle: BundleMaker, made_bundle: BundleMaker, name: str
) -> None:
    # Same shapes and a forged hash: nothing that can be checked at loading tells them apart.
    path = copied_bundle(with_index=False)
    forge(path, name, (made_bundle(with_index=False, seed=1) / name).read_bytes())
    assert not run_selftest(load(path)).passed


def test_a_detector_made_from_parts_has_no_selftest(tiny_bundle: Path) -> None:
    detector = load(tiny_bundle)
    detector.bundle = None
    with pytest.raises(BundleError, match=r"AnomalyDetector\.load"):
        run_selftest(detector)


# --- an embedder that does not keep its promise ---


def changed_embedder(change: Any) -> bytes:
    model = onnx.load_from_string(embedder_onnx(seed=0))
    change(model.graph)
    return model.SerializeToString()


def replace_bias(value: float) -> Any:
    def change(graph: Any) -> None:
        bias = next(tensor for tensor in graph.initializer if tensor.name == "bias")
        bias.CopyFrom(numpy_helper.from_array(np.full(8, value, np.float32), "bias"))

    return change


def drop_a_patch(graph: Any) -> None:
    """Cut the output at a length that is computed, so that no shape inference can see it."""
    graph.output[0].name = "patch_embeddings"
    graph.node[-1].output[0] = "all"
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([PATCHES - 1], np.int64), "kept"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["nchw"], ["brightest"], keepdims=0),
            helper.make_node("Cast", ["brightest"], ["brightest_int"], to=onnx.TensorProto.INT64),
            helper.make_node("Mul", ["brightest_int", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "kept"], ["end"]),
            helper.make_node("Slice", ["all", "zero", "end", "one"], ["patch_embeddings"]),
        ]
    )


@pytest.mark.parametrize("value", [np.inf, 1e30, np.nan])
@pytest.mark.parametrize("exactness", ["none", "image", "full"])
def test_embeddings_that_are_no_numbers_give_no_verdict(
    tiny_bundle: Path, value: float, exactness: str
) -> None:
    # A NaN score is not above any threshold: unchecked, every image would be called normal.
    forge(tiny_bundle, EMBEDDER_NAME, changed_embedder(replace_bias(value)))
    detector = load(tiny_bundle, exactness=exactness)
    with pytest.raises(BackendError, match=r"not finite or too large.*--provider cpu"):
        detector(random_images(1)[0])


def test_an_output_of_another_shape_than_announced_gives_no_verdict(tiny_bundle: Path) -> None:
    forge(tiny_bundle, EMBEDDER_NAME, changed_embedder(drop_a_patch))
    detector = load(tiny_bundle)
    with pytest.raises(BundleError, match=r"gives float32 \[1, 95, 8\].*pcexport build"):
        detector(random_images(1)[0])


def test_a_graph_that_onnxruntime_refuses_is_a_backend_error(tiny_bundle: Path) -> None:
    data = changed_embedder(lambda graph: setattr(graph.node[4], "op_type", "NoSuchOperator"))
    forge(tiny_bundle, EMBEDDER_NAME, data)
    with pytest.raises(BackendError, match=r"cannot open the embedder on cpu.*NoSuchOperator"):
        load(tiny_bundle)


# --- onnxruntime ---


def has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.skipif(has_cuda(), reason="this onnxruntime has CUDA: there is no missing provider to ask for")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_missing_provider_is_an_error_that_lists_the_present_ones(tiny_bundle: Path, provider: str) -> None:
    message = rf"'{provider}' is not in the installed onnxruntime.*has: cpu\..*patchcore-edge\[gpu\]"
    with pytest.raises(BackendError, match=message):
        load(tiny_bundle, provider=provider)


def test_an_unknown_provider_is_an_error_that_lists_the_known_ones(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"'tpu'.*auto, cpu, cuda, tensorrt"):
        load(tiny_bundle, provider="tpu")


def test_auto_says_what_it_chose(tiny_bundle: Path) -> None:
    assert load(tiny_bundle, provider="auto").provider in ("cpu", "cuda")


def test_two_onnxruntime_packages_are_an_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr("pcrun.session._is_installed", lambda name: name in both)
    with pytest.raises(BackendError, match="pip uninstall -y onnxruntime onnxruntime-gpu") as caught:
        load(tiny_bundle)
    assert_both_pip_lines(caught.value)


def test_a_missing_onnxruntime_is_an_error_with_both_pip_lines(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="onnxruntime cannot be imported") as caught:
        load(tiny_bundle)
    assert_both_pip_lines(caught.value)


def assert_both_pip_lines(error: BackendError) -> None:
    assert "pip install 'patchcore-edge[cpu]'" in str(error)
    assert "pip install 'patchcore-edge[gpu]'" in str(error)


def test_a_bundle_changed_on_disk_after_loading_does_not_reach_native_code(tiny_bundle: Path) -> None:
    bundle = Bundle.load(tiny_bundle)
    (tiny_bundle / EMBEDDER_NAME).write_bytes(b"")
    index = bytearray((tiny_bundle / INDEX_NAME).read_bytes())
    index[20:60] = b"\xff" * 40
    (tiny_bundle / INDEX_NAME).write_bytes(index)
    with pytest.raises(BundleError, match=INDEX_NAME):
        AnomalyDetector.load(bundle)


def test_with_exact_search_keeps_the_threads(tiny_bundle: Path) -> None:
    detector = AnomalyDetector.load(tiny_bundle, threads=1)
    assert detector.with_exact_search().threads == detector.threads == 1


def test_run_options_before_a_command_are_refused(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", str(tiny_bundle), "--threshold", "5", "selftest"]) == 2
    assert "--threshold before 'selftest' would do nothing" in capsys.readouterr().err
    assert main(["--bundle", str(tiny_bundle), "selftest", "--provider", "cpu"]) == 0
