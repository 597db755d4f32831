"""Embeddings that stay on the device: the numbers of the plain session, and no copy that nobody asked for.

The device here is the CPU, with the same calls as on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extras: cpu, gpu)")

from pcrun import AnomalyDetector, BackendError, Bundle, BundleError
from pcrun.backends.device_session import DeviceEmbedder, DeviceEmbeddings
from pcrun.backends.session import OnnxEmbedder
from pcrun.bench.content import Item
from pcrun.bench.stages import COPY_STAGES, StagedDetector
from pcrun.scoring.open import map_geometry
from pcrun.scoring.scorer import PatchCoreScorer
from pcrun.search.exact import ExactSearch
from pcrun.search.graph import GraphSearch
from pcrun.sinks.record import result_record
from pcrun.sinks.text import Csv
from pcrun.sources import Frame
from tests.conftest import BundleMaker
from tests.data.make_tiny_bundle import IMAGE_HW, smooth_image

DEVICES = ["cpu"]


@pytest.fixture(params=[1, 3, None], ids=["batch 1", "batch 3", "open batch"])
def bundle(made_bundle: BundleMaker, request: pytest.FixtureRequest) -> Bundle:
    return Bundle.load(made_bundle(batch=request.param))


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.stack([smooth_image(rng) for _ in range(4)])


def device_embedder(bundle: Bundle, device: str = "cpu") -> DeviceEmbedder:
    return DeviceEmbedder(
        bundle.embedder, bundle.manifest.embedding, provider="cpu", threads=1, device=device
    )


def plain_embedder(bundle: Bundle) -> OnnxEmbedder:
    return OnnxEmbedder(bundle.embedder, bundle.manifest.embedding, provider="cpu", threads=1)


def graph_search(bundle: Bundle) -> GraphSearch:
    return GraphSearch(bundle.memory_bank, provider="cpu", threads=1)


def device_detector(bundle: Bundle, search: Any = None) -> AnomalyDetector:
    scorer = PatchCoreScorer(
        bundle.memory_bank,
        search or graph_search(bundle),
        map_geometry(bundle.manifest),
        exactness="full",
        neighbours=bundle.neighbours,
    )
    threshold = bundle.manifest.scoring.threshold
    assert threshold is not None
    return AnomalyDetector(
        bundle.manifest,
        device_embedder(bundle),
        scorer,
        threshold=threshold.value,
        pixel_threshold=threshold.value,
        bundle=bundle,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 4])
def test_a_bound_session_gives_the_numbers_of_the_plain_one(
    bundle: Bundle, images: np.ndarray, device: str, count: int
) -> None:
    expected = plain_embedder(bundle).embed(images[:count])
    embedder = device_embedder(bundle, device)
    assert np.array_equal(embedder.embed(images[:count]), expected)
    timed, copies = embedder.embed_timed(images[:count])
    assert np.array_equal(timed, expected)
    assert copies.host_to_device_ms > 0 and copies.device_to_host_ms > 0
    kept = embedder.embed_on_device(images[:count])
    assert kept.shape == expected.shape and kept.copies.device_to_host_ms == 0
    assert np.array_equal(kept.host(), expected)


def test_a_result_is_not_overwritten_by_the_next_call(bundle: Bundle, images: np.ndarray) -> None:
    embedder = device_embedder(bundle)
    first = embedder.embed_on_device(images[:1])
    embedder.embed_on_device(images[1:2])
    assert np.array_equal(first.host(), plain_embedder(bundle).embed(images[:1]))


def test_it_may_be_called_from_several_threads(bundle: Bundle, images: np.ndarray) -> None:
    embedder, plain = device_embedder(bundle), plain_embedder(bundle)
    expected = [plain.embed(image[None]) for image in images]
    equal: list[bool] = []

    def work(number: int) -> None:
        for _ in range(20):
            equal.append(np.array_equal(embedder.embed(images[number][None]), expected[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(equal) == 80 and all(equal)


@pytest.mark.parametrize("count", [1, 4])
def test_the_search_reads_the_embeddings_where_they_are(
    bundle: Bundle, images: np.ndarray, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = plain_embedder(bundle).embed(images[:count]).reshape(-1, bundle.manifest.embedding.dim)
    search = graph_search(bundle)
    expected = search.nearest(queries)
    embeddings = device_embedder(bundle).embed_on_device(images[:count])
    monkeypatch.setattr(DeviceEmbeddings, "host", lambda self: pytest.fail("copied to the host"))
    distances, ids = search.nearest_on_device(embeddings)
    assert np.array_equal(distances, expected[0]) and np.array_equal(ids, expected[1])
    assert embeddings.copies.device_to_host_ms > 0


def test_a_detector_on_a_device_gives_the_verdicts_of_the_cpu_without_a_round_trip(
    bundle: Bundle, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = AnomalyDetector.load(bundle, provider="cpu", threads=1, search="exact_graph", profile=False)
    expected = [plain(image[:, :, ::-1]) for image in images]
    detector = device_detector(bundle)
    monkeypatch.setattr(DeviceEmbeddings, "host", lambda self: pytest.fail("copied to the host"))
    for results in (
        [detector(image[:, :, ::-1]) for image in images],
        detector.batch(list(images[..., ::-1])),
    ):
        for got, wanted in zip(results, expected, strict=True):
            assert got.image_score == wanted.image_score
            assert np.array_equal(got.patch_scores, wanted.patch_scores)


def test_eq_7_asks_for_the_one_patch_it_measures_again(made_bundle: BundleMaker, images: np.ndarray) -> None:
    bundle = Bundle.load(made_bundle(image_score="reweighted"))
    plain = AnomalyDetector.load(bundle, provider="cpu", threads=1, search="exact_graph", profile=False)
    detector = device_detector(bundle)
    for image in images:
        assert detector(image).image_score == plain(image).image_score


def test_a_search_in_the_hosts_memory_gets_copies(bundle: Bundle, images: np.ndarray) -> None:
    detector = device_detector(bundle, ExactSearch(bundle.memory_bank, threads=1))
    plain = AnomalyDetector.load(bundle, provider="cpu", threads=1, search="exact", profile=False)
    result = detector(images[0])
    assert result.image_score == plain(images[0]).image_score
    assert result.timings.device_to_host_ms is not None and result.timings.device_to_host_ms > 0


def test_embeddings_half_way_can_be_had_on_the_host(bundle: Bundle, images: np.ndarray) -> None:
    detector = device_detector(bundle)
    embedded = detector.embed(images[0])
    assert isinstance(embedded.found, DeviceEmbeddings)
    expected = plain_embedder(bundle).embed(images[0][None, :, :, ::-1])[0]
    assert np.array_equal(embedded.embeddings, expected)


# What is refused


def test_a_search_elsewhere_is_an_error_rather_than_a_hidden_copy(bundle: Bundle, images: np.ndarray) -> None:
    embeddings = device_embedder(bundle).embed_on_device(images[:1])
    scorer = device_detector(bundle, ExactSearch(bundle.memory_bank, threads=1))._scorer
    with pytest.raises(ValueError, match="'exact' reads embeddings in the host's memory"):
        scorer.score(embeddings, pixel_threshold=1.0)


def test_embeddings_that_are_no_numbers_give_no_verdict(bundle: Bundle, images: np.ndarray) -> None:
    detector = device_detector(bundle)
    broken = detector._embedder
    assert isinstance(broken, DeviceEmbedder)
    good = broken.embed_on_device(images[:1])
    values = good.host().copy()
    values[0, 3] = np.nan
    from onnxruntime import OrtValue

    batch = bundle.manifest.embedding.batch or 1
    filled = np.repeat(values, batch, axis=0)
    parts = [(OrtValue.ortvalue_from_numpy(filled, "cpu", 0), 1)]
    bad = DeviceEmbeddings(parts, good.shape, "cpu", good.copies)
    with pytest.raises(BackendError, match="values on cpu that are not finite"):
        graph_search(bundle).nearest_on_device(bad)


def test_another_shape_than_announced_is_refused(made_bundle: BundleMaker, images: np.ndarray) -> None:
    bundle, other = Bundle.load(made_bundle()), Bundle.load(made_bundle(dim=12))
    embedder = DeviceEmbedder(
        other.embedder, bundle.manifest.embedding, provider="cpu", threads=1, device="cpu"
    )
    with pytest.raises(BundleError, match=r"float32 \[1, 96, 12\], the manifest says float32 \[1, 96, 8\]"):
        embedder.embed_on_device(images[:1])


def test_a_device_that_fails_is_a_backend_error(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="onnxruntime failed on cpu"):
        device_embedder(bundle).embed(np.zeros((bundle.manifest.embedding.batch or 1, 16, 16, 3), np.uint8))
    assert IMAGE_HW != (16, 16)


# Where copies are stated


def test_copies_are_stages_that_add_up(bundle: Bundle, images: np.ndarray) -> None:
    detector = device_detector(bundle)
    staged = StagedDetector(detector)
    items = [Item(str(number), image=image) for number, image in enumerate(images)]
    staged.serve(items[:1])
    staged.serve(items)
    samples = staged.samples
    assert set(COPY_STAGES) <= set(samples) and all(len(values) == 5 for values in samples.values())
    assert min(samples["host_to_device"]) > 0 and min(samples["device_to_host"]) > 0
    parts = [sum(samples[stage][n] for stage in samples if stage != "total") for n in range(5)]
    assert parts == pytest.approx(samples["total"])


def test_the_cpu_has_no_copies(bundle: Bundle, images: np.ndarray) -> None:
    plain = AnomalyDetector.load(bundle, provider="cpu", threads=1, profile=False)
    assert not plain.copies and not set(COPY_STAGES) & set(StagedDetector(plain).samples)


def test_result_lines_have_copies_where_there_are_any(bundle: Bundle, images: np.ndarray) -> None:
    frame = Frame("part.png", 0, images[0], None, 1.0)
    result = device_detector(bundle)(images[0])
    record = result_record(frame, result)
    times = record["timings_ms"]
    assert {"host_to_device", "device_to_host"} < set(times)
    assert times["total"] == pytest.approx(sum(times.values()) - times["total"], abs=0.01)
    line = Csv().line(record).strip().split(",")
    assert line[-2:] == [str(times["host_to_device"]), str(times["device_to_host"])]
    none = dataclasses.replace(result.timings, host_to_device_ms=None, device_to_host_ms=None)
    without = result_record(frame, dataclasses.replace(result, timings=none))
    assert set(times) - set(without["timings_ms"]) == {"host_to_device", "device_to_host"}
    assert json.dumps(without)
