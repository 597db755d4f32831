"""Real magnetic tiles, real ImageNet weights: the bundle scores as plain PyTorch with brute force does."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from pcexport.cli import main as pcexport
from pcexport.datasets import find_dataset
from pcrun import AnomalyDetector, Bundle
from pcrun.cli import main as pcrun
from pcrun.pipeline.drift import DriftWatch
from pcrun.preprocess import map_on_original
from tests.exporter.calibration.test_calibration import promise_kept

pytestmark = pytest.mark.realdata

WEIGHTS = "weights/resnet18_torchvision_conv1-layer3.pth"
TRAIN_IMAGES = 80
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PlainPatchCore:
    """PatchCore as one would write it in PyTorch without this project: hooks, pooling, torch.cdist."""

    def __init__(self, weights: Path, bank: np.ndarray) -> None:
        self.model = torchvision.models.resnet18().eval()
        self.model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
        self.maps: dict[str, torch.Tensor] = {}
        for name in ("layer2", "layer3"):
            self.model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: self.maps.__setitem__(name, output)
            )
        self.bank = torch.from_numpy(np.array(bank)).double()

    @torch.inference_mode()
    def score(self, path: Path) -> float:
        self.model(self._prepare(path))
        pooled = [torch.nn.functional.avg_pool2d(self.maps[k], 3, 1, 1) for k in ("layer2", "layer3")]
        deep = torch.nn.functional.interpolate(pooled[1], size=(28, 28), mode="bilinear", align_corners=False)
        patches = torch.cat([pooled[0], deep], 1)[0].flatten(1).T.double()
        distances = torch.cdist(patches, self.bank, compute_mode="donot_use_mm_for_euclid_dist")
        return float(distances.min(dim=1).values.max())

    @staticmethod
    def _prepare(path: Path) -> torch.Tensor:
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        # Area averaging along the axes that shrink, bilinear along those that grow.
        image = cv2.resize(image, (min(width, 224), min(height, 224)), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (224, 224), interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        return torchvision.transforms.functional.normalize(tensor, MEAN, STD)


def subset_of_tiles(source: Path, target: Path) -> Path:
    """A smaller data set of the same layout: links to some normal tiles, and two tiles of each defect."""
    split = json.loads((source / "split.json").read_text())
    small = {"train_good": split["train_good"][:: 761 // TRAIN_IMAGES], "test_good": split["test_good"][::20]}
    (target / "MT_Free" / "Imgs").mkdir(parents=True)
    for name in (*small["train_good"], *small["test_good"]):
        (target / "MT_Free" / "Imgs" / name).symlink_to(source / "MT_Free" / "Imgs" / name)
    for folder in sorted(source.glob("MT_*")):
        if folder.name != "MT_Free":
            (target / folder.name / "Imgs").mkdir(parents=True)
            for image in sorted((folder / "Imgs").glob("*.jpg"))[:2]:
                for path in (image, image.with_suffix(".png")):  # and its mask
                    (target / folder.name / "Imgs" / path.name).symlink_to(path)
    (target / "split.json").write_text(json.dumps(small))
    return target


@pytest.fixture(scope="module")
def tiles(realdata_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return subset_of_tiles(realdata_dir / "mtd", tmp_path_factory.mktemp("tiles") / "mtd")


@pytest.fixture(scope="module")
def bundle(tiles: Path, realdata_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundle") / "tiles.pcbundle"
    assert (
        pcexport(
            ["build", str(tiles), "-o", str(output), "--weights", str(realdata_dir / WEIGHTS), "--no-tune"]
        )
        == 0
    )
    return output


def test_every_score_equals_plain_pytorch_with_brute_force(
    bundle: Path, tiles: Path, realdata_dir: Path
) -> None:
    detector = AnomalyDetector.load(bundle)
    assert detector.search in ("quantised", "hnsw") and detector.exactness == "mask"
    plain = PlainPatchCore(realdata_dir / WEIGHTS, detector.bundle.memory_bank)
    dataset = find_dataset(str(tiles))
    paths = [image.path for image in dataset.test] + list(dataset.normal[:5])
    assert len(paths) >= 20
    for path in paths:
        assert detector(cv2.imread(str(path))).image_score == pytest.approx(plain.score(path), rel=1e-3)


def test_certified_verdicts_equal_exact_search_with_the_poorest_engines(bundle: Path, tiles: Path) -> None:
    exact = AnomalyDetector.load(bundle, exactness="full")
    certified = [AnomalyDetector.load(bundle, ef=1), AnomalyDetector.load(bundle, search="quantised")]
    trusting = AnomalyDetector.load(bundle, ef=1, exactness="none")
    excess = wrong_pixels = marked = 0
    for sample in find_dataset(str(tiles)).test:
        image = cv2.imread(str(sample.path))
        truth = exact(image)
        for detector in certified:
            result = detector(image)
            assert result.image_score == pytest.approx(truth.image_score, rel=1e-5)
            sure = np.abs(truth.anomaly_map - truth.pixel_threshold) > 1e-4 * truth.pixel_threshold
            assert np.array_equal(result.mask[sure], truth.mask[sure])
            assert np.allclose(result.anomaly_map[truth.mask], truth.anomaly_map[truth.mask], rtol=1e-4)
        trusted = trusting(image)
        excess = max(excess, trusted.image_score / truth.image_score)
        wrong_pixels += int((trusted.mask != truth.mask).sum())
        marked += int(truth.mask.sum())
    # Without the certificate some verdicts are wrong, or this test would show nothing.
    assert excess > 1.001 and wrong_pixels > 0 and marked > 0


def test_accuracy_in_the_manifest_is_scikit_learns(bundle: Path, tiles: Path) -> None:
    detector = AnomalyDetector.load(bundle)
    test = find_dataset(str(tiles)).test
    results = [detector(cv2.imread(str(image.path))) for image in test]
    labels = [image.is_defective for image in test]
    accuracy = detector.manifest.accuracy
    assert accuracy is not None
    assert accuracy.image_auroc == pytest.approx(roc_auc_score(labels, [r.image_score for r in results]))
    assert accuracy.misses == sum(not r.is_anomalous for r, bad in zip(results, labels, strict=True) if bad)
    assert accuracy.false_alarms == sum(
        r.is_anomalous for r, bad in zip(results, labels, strict=True) if not bad
    )


def test_the_map_peaks_at_the_drawn_defect(bundle: Path, realdata_dir: Path) -> None:
    """On most blowhole tiles the hottest pixel, in original coordinates, lies within 12 px of the mask."""
    detector = AnomalyDetector.load(bundle)
    paths = sorted((realdata_dir / "mtd" / "MT_Blowhole" / "Imgs").glob("*.jpg"))[:20]
    hits = 0
    for path in paths:
        image = cv2.imread(str(path))
        heat = map_on_original(detector(image).anomaly_map, image.shape[:2], detector.manifest.preprocess)
        mask = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_GRAYSCALE) > 127
        near = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
        hits += bool(near[np.unravel_index(heat.argmax(), heat.shape)])
    assert hits >= 0.6 * len(paths)


@pytest.mark.timeout(300)
def test_int8_scores_stay_close_to_float32_and_find_the_same_defects(
    bundle: Path, tiles: Path, realdata_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "int8.pcbundle"
    arguments = [
        "build",
        str(tiles),
        "-o",
        str(output),
        "--weights",
        str(realdata_dir / WEIGHTS),
        "--no-tune",
    ]
    assert pcexport([*arguments, "--precision", "int8", "--allow-flips"]) == 0
    manifest, reference = Bundle.load(output).manifest, Bundle.load(bundle).manifest
    drift, accuracy = manifest.precision, manifest.accuracy
    assert drift is not None and accuracy is not None and reference.accuracy is not None
    assert drift.images == manifest.source.images_bank
    assert drift.mean_score_drift < 0.03 and drift.max_score_drift < 0.15
    # The same patches in float32; few test images, so that one pair in the other order is 0.01.
    assert drift.reference_auroc is not None
    assert accuracy.image_auroc == pytest.approx(drift.reference_auroc, abs=0.03)
    assert (output / "embedder.onnx").stat().st_size < 0.3 * (bundle / "embedder.onnx").stat().st_size
    detector, exact = AnomalyDetector.load(output), AnomalyDetector.load(output, exactness="full")
    paths = [image.path for image in find_dataset(str(tiles)).test][:8]
    for path in paths:
        image = cv2.imread(str(path))
        assert detector(image).image_score == pytest.approx(exact(image).image_score, rel=1e-5)


def test_video_frames_are_scored_one_line_each(
    bundle: Path, realdata_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = realdata_dir / "videos" / "bottle-detection.mp4"
    assert (
        pcrun(["--bundle", str(bundle), "--video", str(video), "--max-frames", "5", "--format", "jsonl"]) == 0
    )
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["frame"] for record in records] == [0, 1, 2, 3, 4]
    assert all(record["verdict"] == "anomalous" for record in records)  # bottles are no magnetic tiles


def test_a_promised_five_percent_is_kept_on_unseen_tiles(
    bundle: Path, tiles: Path, realdata_dir: Path
) -> None:
    """As with generated scores; and so is the promise of the build, which saw none of these tiles."""
    used = {path.name for path in find_dataset(str(tiles)).normal}
    detector = AnomalyDetector.load(bundle)
    unseen = [p for p in find_dataset(str(realdata_dir / "mtd")).normal if p.name not in used][:400]
    assert len(unseen) == 400
    scores = np.array([detector.peaks(cv2.imread(str(path)))[0] for path in unseen])
    observed, expected, within, within_expected = promise_kept(scores, rate=0.05)
    assert expected <= 0.05 and observed == pytest.approx(expected, rel=0.1)
    assert within >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 300) and within_expected < 0.9
    threshold = detector.manifest.scoring.threshold
    assert threshold is not None and threshold.method == "kfold"
    alarms = int((scores > threshold.value).sum())
    assert alarms <= binom.ppf(0.99, len(scores), threshold.false_alarm_rate_upper_95)


def test_calibrate_refuses_the_tiles_of_the_build_and_takes_others(
    bundle: Path, tiles: Path, realdata_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built_from = str(tiles / "MT_Free" / "Imgs" / "*.jpg")
    output = tmp_path / "new.pcbundle"
    assert pcexport(["calibrate", str(bundle), built_from, "-o", str(output), "--allow-shortage"]) == 2
    assert re.search(r"(\d+) of the images are in the memory bank", capsys.readouterr().err)
    rate = ["--false-alarm-rate", "0.05"]
    assert pcexport(["calibrate", str(bundle), str(realdata_dir / "mtd"), "-o", str(output), *rate]) == 0
    scoring = Bundle.load(output).manifest.scoring
    assert scoring.threshold is not None and scoring.threshold.images == 191
    assert pcrun(["selftest", "--bundle", str(output)]) == 0


@pytest.mark.parametrize("images", ["build", "line"])
def test_drift_is_silent_on_other_tiles_and_speaks_on_blurred_ones(
    bundle: Path, tiles: Path, realdata_dir: Path, tmp_path: Path, images: str
) -> None:
    """With the k-fold baseline of the build, and with one of other tiles."""
    path = bundle
    if images == "line":
        path = tmp_path / "line.pcbundle"
        rate = ["--false-alarm-rate", "0.05"]
        assert pcexport(["calibrate", str(bundle), str(realdata_dir / "mtd"), "-o", str(path), *rate]) == 0
    detector = AnomalyDetector.load(path)
    baseline = detector.manifest.scoring.baseline
    assert baseline is not None
    assert baseline.method == ("kfold" if images == "build" else "holdout")
    used = {image.name for image in find_dataset(str(tiles)).normal}
    unseen = [p for p in find_dataset(str(realdata_dir / "mtd")).normal if p.name not in used][:160]
    watch = DriftWatch(40)
    told = []
    for number, image_path in enumerate(unseen):
        image = cv2.imread(str(image_path))
        if number >= 80:
            image = cv2.GaussianBlur(image, (0, 0), 3)
        told += [(number, event.name) for event in watch.update("line", detector, detector(image))]
    assert told and set(told) == {(159, "drift")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_auroc_of_the_full_split_is_the_same_exact_and_through_the_bundle(
    realdata_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mtd.pcbundle"
    arguments = [
        "build",
        str(realdata_dir / "mtd"),
        "-o",
        str(output),
        "--weights",
        str(realdata_dir / WEIGHTS),
    ]
    assert pcexport([*arguments, "--seed", "0", "--no-evaluate"]) == 0
    exact, deployed = AnomalyDetector.load(output, exactness="full"), AnomalyDetector.load(output)
    test = find_dataset(str(realdata_dir / "mtd")).test
    images = [cv2.imread(str(image.path)) for image in test]
    labels = [image.is_defective for image in test]
    exact_auroc = roc_auc_score(labels, [exact(image).image_score for image in images])
    deployed_auroc = roc_auc_score(labels, [deployed(image).image_score for image in images])
    assert exact_auroc >= 0.965
    assert round(deployed_auroc, 4) == round(exact_auroc, 4)


def exact_aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """Per-region overlap from every single pixel value, sorted: no bins, nothing shared with the project."""
    values, region_shares, false = [], [], []
    outside = sum(int((~mask).sum()) for mask in masks)
    regions = 0
    for heat, mask in zip(maps, masks, strict=True):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        areas = np.bincount(labels.ravel(), minlength=count)
        values.append(heat.ravel())
        region_shares.append(np.where(mask, 1 / areas[labels], 0).ravel())
        false.append((~mask).ravel() / outside)
        regions += count - 1
    order = np.argsort(np.concatenate(values))[::-1]
    overlap = np.concatenate([[0], np.cumsum(np.concatenate(region_shares)[order]) / regions])
    rate = np.concatenate([[0], np.cumsum(np.concatenate(false)[order])])
    inside = rate <= limit
    rate, overlap = (
        np.append(rate[inside], limit),
        np.append(overlap[inside], np.interp(limit, rate, overlap)),
    )
    return float(np.trapezoid(overlap, rate) / limit)


def test_the_evaluation_of_real_tiles_is_that_of_libraries_and_of_the_definition(
    bundle: Path, tiles: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    assert pcexport(["eval", str(bundle), str(tiles), "-o", str(report), "--provider", "cpu"]) == 0
    with report.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figures = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))["metrics"]
    truth = [row["label"] == "defective" for row in rows]
    scores = [float(row["score"]) for row in rows]
    assert figures["image"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)

    detector = AnomalyDetector.load(bundle, provider="cpu")
    maps, masks = [], []
    for row in rows:
        path = tiles / row["image"]
        image = cv2.imread(str(path))
        result = detector(image)
        maps.append(map_on_original(result.anomaly_map, image.shape[:2], detector.manifest.preprocess))
        mask = np.zeros(image.shape[:2], bool)
        if row["label"] == "defective":
            mask = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_GRAYSCALE) > 127
        masks.append(mask)
    pixels = figures["pixel"]
    for limit, name in ((0.3, "aupro_30"), (0.05, "aupro_05")):
        assert pixels[name]["value"] == pytest.approx(exact_aupro(maps, masks, limit), abs=1e-3)
    every_pixel = np.concatenate([mask.ravel() for mask in masks])
    every_value = np.concatenate([heat.ravel() for heat in maps])
    assert pixels["auroc"]["value"] == pytest.approx(roc_auc_score(every_pixel, every_value), abs=1e-3)
