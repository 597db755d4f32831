"""The certificate on the tiny bundle: every engine, every exactness, one image and several."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcrun import AnomalyDetector, AnomalyResult, BackendError, Bundle, BundleError
from pcrun.backends.session import OnnxEmbedder
from pcrun.scoring.certify import ExactVerifier
from pcrun.scoring.open import map_geometry
from pcrun.scoring.scorer import PatchCoreScorer
from pcrun.search import EXACT_SEARCH_NAMES, SEARCH_NAMES
from pcrun.search.exact import ExactSearch
from pcrun.search.hnsw import HnswSearch
from tests.conftest import BundleMaker
from tests.contract.detectors import embed, load, random_images

for needed in ("hnswlib", "onnx", "onnxruntime"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the tiny bundle is made with it")
from tests.data.make_tiny_bundle import IMAGE_HW, PATCHES, make_index, smooth_image, with_defect  # noqa: E402

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"search_dim": 3},
    {"image_score": "reweighted"},
    {"image_score": "reweighted", "search_dim": 3},
)
ENGINES: tuple[dict[str, Any], ...] = (
    {"search": "quantised"},
    {"search": "quantised", "threads": 2},
    {"search": "hnsw", "ef": 1},
    {"search": "hnsw", "ef": 1, "threads": 2},
    {"search": "hnsw", "ef": 50},
    {"search": "exact"},
    {"search": "exact_graph"},
)


def detectors(path: Path, **options: Any) -> Iterator[AnomalyDetector]:
    bundle = Bundle.load(path)
    for engine in ENGINES:
        yield load(bundle, **(engine | options))


def check_same_verdict(got: AnomalyResult, full: AnomalyResult) -> None:
    """Image score, mask, map inside it and regions are those of brute force, to rounding."""
    assert got.image_score == pytest.approx(full.image_score, rel=1e-5, abs=1e-6)
    assert got.is_anomalous == full.is_anomalous
    # A pixel at the threshold may fall to either side of it.
    sure = np.abs(full.anomaly_map - full.pixel_threshold) > 1e-5
    assert np.array_equal(got.mask[sure], full.mask[sure])
    assert np.allclose(got.anomaly_map[full.mask], full.anomaly_map[full.mask], rtol=1e-5, atol=1e-6)
    boxes = [[(r.x, r.y, r.width, r.height, r.area_px) for r in result.regions] for result in (got, full)]
    assert boxes[0] == boxes[1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_engine_gives_the_verdict_of_brute_force(
    made_bundle: BundleMaker, kind: dict[str, Any]
) -> None:
    path = made_bundle(**kind)
    images = random_images(24)
    expected = [load(path, exactness="full")(image) for image in images]
    assert {result.is_anomalous for result in expected} == {True, False}
    assert any(result.regions for result in expected)
    for detector in detectors(path):
        assert detector.exactness == ("full" if detector.search in EXACT_SEARCH_NAMES else "mask")
        for image, full in zip(images, expected, strict=True):
            check_same_verdict(detector(image), full)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.5])
def test_the_mask_is_exact_at_any_threshold(made_bundle: BundleMaker, share: float) -> None:
    """Also while a detector runs: thresholds may be changed between images."""
    full = load(made_bundle(search_dim=3), exactness="full")
    approximate = load(made_bundle(search_dim=3), search="hnsw", ef=1)
    for image in random_images(16):
        full.pixel_threshold = approximate.pixel_threshold = share * float(full(image).anomaly_map.max())
        check_same_verdict(approximate(image), full(image))


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_without_the_certificate_the_worst_ef_gives_other_verdicts(
    made_bundle: BundleMaker, kind: dict[str, Any]
) -> None:
    """Else the tests above would show nothing."""
    full = load(made_bundle(**kind), exactness="full")
    trusting = load(made_bundle(**kind), search="hnsw", ef=1, exactness="none")
    assert (trusting.exactness, full.exactness, full.search) == ("none", "full", "exact")
    score_differs = mask_differs = 0
    for image in random_images(100):
        got, truth = trusting(image), full(image)
        assert np.all(got.patch_scores >= truth.patch_scores * (1 - 1e-5) - 1e-6)
        assert got.verified_patches == 0 and truth.verified_patches == PATCHES
        score_differs += got.image_score > truth.image_score * (1 + 1e-5)
        mask_differs += not np.array_equal(got.mask, truth.mask)
    assert score_differs and mask_differs


def test_at_image_the_map_keeps_what_the_search_said(made_bundle: BundleMaker) -> None:
    full = load(made_bundle(), exactness="full")
    scores_only = load(made_bundle(), search="hnsw", ef=1, exactness="image")
    larger = 0
    for image in random_images(60):
        got, truth = scores_only(image), full(image)
        assert got.image_score == pytest.approx(truth.image_score, rel=1e-6)
        larger += int((got.patch_scores > truth.patch_scores * (1 + 1e-5) + 1e-6).sum())
    assert scores_only.exactness == "image" and larger > 0


def test_a_search_that_lost_half_of_the_rows_still_gives_the_exact_verdict(
    made_bundle: BundleMaker,
) -> None:
    bundle = Bundle.load(made_bundle())
    rows, geometry = bundle.memory_bank, map_geometry(bundle.manifest)
    exact = ExactSearch(rows, threads=1)
    half = HnswSearch(make_index(rows[:100]), rows, ef=1, threads=1)
    certified = PatchCoreScorer(rows, half, geometry, verifier=ExactVerifier(exact))
    full = PatchCoreScorer(rows, exact, geometry)
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding, provider="cpu", threads=1)
    limit = load(bundle).pixel_threshold
    wrong = 0
    for image in random_images(40):
        if image.shape[:2] != IMAGE_HW:
            continue
        patches = embed(embedder, image)
        truth = full.score(patches, pixel_threshold=limit)
        got = certified.score(patches, pixel_threshold=limit)
        wrong += float(half.nearest(patches)[0].max()) > truth.image_score * (1 + 1e-5)
        assert got.image_score == pytest.approx(truth.image_score, rel=1e-6)
        assert np.array_equal(got.anomaly_map > limit, truth.anomaly_map > limit)
        assert 1 <= got.verified_patches <= PATCHES
    assert wrong > 0


def test_reweighted_scores_follow_equation_7(made_bundle: BundleMaker) -> None:
    path = made_bundle(image_score="reweighted", search_dim=3)
    bundle = Bundle.load(path)
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding, provider="cpu", threads=1)
    image = with_defect(smooth_image(np.random.default_rng(4)))
    patches = embed(embedder, image[:, :, ::-1]).astype(np.float64)
    distances = np.linalg.norm(patches[:, None] - bundle.memory_bank[None], axis=2)
    worst = int(distances.min(axis=1).argmax())
    nearest = int(distances[worst].argmin())
    support = np.argsort(np.linalg.norm(bundle.memory_bank - bundle.memory_bank[nearest], axis=1))[:3]
    largest = distances[worst, nearest]
    expected = (1 - np.exp(largest) / np.exp(distances[worst, support]).sum()) * largest
    for detector in detectors(path):
        assert detector(image).image_score == pytest.approx(expected, rel=1e-5)
        assert detector(image).patch_scores.max() == pytest.approx(largest, rel=1e-6)


# --- peaks: what thresholds and golden samples are made from ---


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_peaks_are_exact_with_every_engine(made_bundle: BundleMaker, kind: dict[str, Any]) -> None:
    path = made_bundle(**kind)
    images = random_images(12)
    full = [load(path, exactness="full")(image) for image in images]
    expected = [(result.image_score, float(result.anomaly_map.max())) for result in full]
    for detector in detectors(path):
        # Far above everything: the map itself is not verified anywhere.
        detector.pixel_threshold = 1e6
        for image, peaks in zip(images, expected, strict=True):
            assert detector.peaks(image) == pytest.approx(peaks, rel=1e-5, abs=1e-6)


# --- several images at once ---


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("search", SEARCH_NAMES)
def test_a_result_does_not_depend_on_the_batch(
    made_bundle: BundleMaker, search: str, batch: int | None
) -> None:
    detector = load(made_bundle(batch=batch), search=search, **({"ef": 1} if search == "hnsw" else {}))
    images = random_images(9)
    alone = [detector(image) for image in images]
    assert detector.batch([]) == []
    for order in (range(9), range(8, -1, -1), [5] * 9, [2], [3, 7]):
        results = detector.batch([images[number] for number in order])
        assert len(results) == len(order)
        for number, result in zip(order, results, strict=True):
            check_same_verdict(result, alone[number])
            assert result.verified_patches <= PATCHES
            assert (result.exactness, result.search) == (detector.exactness, search)


def test_images_of_a_batch_share_its_time(made_bundle: BundleMaker) -> None:
    results = load(made_bundle()).batch(random_images(5))
    assert len({(r.timings.preprocess_ms, r.timings.embed_ms, r.timings.search_ms) for r in results}) == 1


def test_a_wrong_image_in_a_batch_is_refused(made_bundle: BundleMaker) -> None:
    with pytest.raises(ValueError, match="image"):
        load(made_bundle()).batch([*random_images(2), np.zeros((8, 8, 3), np.float32)])


@pytest.mark.parametrize("batch", [None, 2, 4])
def test_any_batch_of_the_graph_gives_the_embeddings_of_batch_1(
    made_bundle: BundleMaker, batch: int | None
) -> None:
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


@pytest.mark.parametrize("search", SEARCH_NAMES)
def test_a_detector_may_be_asked_by_several_threads(made_bundle: BundleMaker, search: str) -> None:
    detector = load(made_bundle(search_dim=3), search=search, threads=2)
    images = random_images(24)
    alone = [detector(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for result, expected in zip(pool.map(detector, images), alone, strict=True):
            check_same_verdict(result, expected)


# --- what is not there ---


@pytest.mark.parametrize("exactness", ["image", "mask", "full"])
@pytest.mark.parametrize("search", SEARCH_NAMES)
def test_scores_do_not_depend_on_threads(made_bundle: BundleMaker, exactness: str, search: str) -> None:
    if exactness == "full" and search not in EXACT_SEARCH_NAMES:
        search = "auto"
    one, many = (load(made_bundle(), threads=n, exactness=exactness, search=search) for n in (1, 3))
    for image in random_images(8):
        a, b = one(image), many(image)
        assert a.image_score == pytest.approx(b.image_score, rel=1e-6)
        assert np.allclose(a.anomaly_map, b.anomaly_map, rtol=1e-6, atol=1e-7)


def test_without_hnswlib_a_warning_and_another_engine(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_index = load(tiny_bundle, search="hnsw")
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with pytest.warns(UserWarning, match=r"hnswlib cannot be imported.*another search is used") as caught:
        without = load(tiny_bundle)
    assert len(caught) == 1
    assert (without.search, without.exactness) == ("quantised", "mask")
    for image in random_images(12):
        check_same_verdict(without(image), with_index(image))
    with warnings.catch_warnings():
        # Nothing else is used in the place of what was asked for.
        warnings.simplefilter("error")
        assert load(tiny_bundle, search="exact").search == "exact"
        with pytest.raises(BackendError, match=r"hnswlib cannot be imported.*pip install hnswlib"):
            load(tiny_bundle, search="hnsw")


def test_a_bundle_without_an_index_needs_none(made_bundle: BundleMaker) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = load(made_bundle(with_index=False))
    assert (detector.search, detector.exactness) == ("quantised", "mask")
    other = load(made_bundle(), search="hnsw")
    for image in random_images(8):
        check_same_verdict(detector(image), other(image))
    with pytest.raises(BundleError, match=r"holds no HNSW index.*--search hnsw.*--index hnsw"):
        load(made_bundle(with_index=False), search="hnsw")


@pytest.mark.parametrize("search", ["quantised", "hnsw"])
def test_full_is_refused_for_an_engine_that_is_not_exact(made_bundle: BundleMaker, search: str) -> None:
    with pytest.raises(ValueError, match="'full' needs an exact search"):
        load(made_bundle(), exactness="full", search=search)


@pytest.mark.parametrize("search", ["hnsw", "quantised"])
def test_rows_too_long_for_8_bits_are_verified_by_exact_search(
    made_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch, search: str
) -> None:
    expected = load(made_bundle(), exactness="full")
    monkeypatch.setattr("pcrun.scoring.open.quantised_problem", lambda rows: "too long")
    if search == "quantised":
        with pytest.raises(BackendError, match=r"too long\. Choose another --search"):
            load(made_bundle(), search=search)
        return
    detector = load(made_bundle(), search=search, ef=1)
    for image in random_images(12):
        check_same_verdict(detector(image), expected(image))
