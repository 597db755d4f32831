"""Options of a build, each by what it changes in the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: export)")

from pcrun.bundle.bundle import Bundle
from pcrun.cli import main as pcrun
from pcrun.detector import AnomalyDetector
from tests.exporter.build.builds import NORMALS, scores_of


def test_holdout_keeps_images_out_of_the_bank_and_scores_them_with_the_bundle(build) -> None:
    built = build("--calibration", "holdout", "--holdout-fraction", "0.3")
    source, scoring = built.manifest.source, built.manifest.scoring
    assert (source.images_held_out, source.images_bank) == (4, 10)
    assert (scoring.threshold.method, scoring.threshold.images) == ("holdout", 4)
    assert built.manifest.memory_bank.coreset.candidates == 10 * built.manifest.embedding.patches


def test_the_holdout_threshold_is_the_largest_score_of_the_held_out_images(build, parts: Path) -> None:
    from pcexport.calibration.false_alarm_rate import plan_calibration
    from pcexport.config import BuildConfig

    built = build("--calibration", "holdout", "--holdout-fraction", "0.3")
    plan = plan_calibration(NORMALS, BuildConfig(calibration="holdout", holdout_fraction=0.3))
    detector = AnomalyDetector.load(built.path, exactness="full")
    images = sorted((parts / "train" / "good").iterdir())
    results = [detector(cv2.imread(str(images[i]))) for i in plan.folds[0]]
    assert detector.threshold == pytest.approx(max(r.image_score for r in results), rel=1e-5)
    assert detector.pixel_threshold == pytest.approx(
        max(float(r.anomaly_map.max()) for r in results), rel=1e-5
    )
    baseline = built.manifest.scoring.baseline
    assert baseline.image_scores == pytest.approx(sorted(r.image_score for r in results), rel=1e-5)
    # As the search of the build found them: not smaller, and hardly larger.
    found = np.array(baseline.patch_medians) / sorted(float(np.median(r.patch_scores)) for r in results)
    assert (found > 1 - 1e-5).all() and (found < 1.05).all()


def test_kfold_uses_every_image_for_both(build) -> None:
    built = build("--calibration", "kfold", "--folds", "3", "--false-alarm-rate", "0.3")
    manifest = built.manifest
    assert (manifest.source.images_held_out, manifest.source.images_bank) == (0, NORMALS)
    threshold = manifest.scoring.threshold
    assert (threshold.method, threshold.images, threshold.rank) == ("kfold", NORMALS, 11)
    assert manifest.memory_bank.coreset.candidates == NORMALS * manifest.embedding.patches
    baseline = manifest.scoring.baseline
    assert (baseline.method, baseline.images) == ("kfold", NORMALS)
    assert len(baseline.image_scores) == len(baseline.patch_medians) == NORMALS
    # The threshold is one of these scores.
    assert baseline.image_scores[threshold.rank - 1] == pytest.approx(threshold.value, rel=1e-6)


def test_without_calibration_there_is_no_threshold_and_pcrun_asks_for_one(build, parts: Path, capsys) -> None:
    built = build("--calibration", "none", report=True)
    assert built.code == 0 and built.manifest.scoring.threshold is None
    assert built.manifest.scoring.baseline is None
    assert "no threshold was chosen" in built.err
    images = str(parts / "test" / "good")
    assert pcrun(["--bundle", str(built.path), "--images", images]) == 2
    assert "--threshold" in capsys.readouterr().err
    assert pcrun(["selftest", "--bundle", str(built.path)]) == 0


def test_without_an_index_scores_are_the_same(plain: Path, build, parts: Path, capsys) -> None:
    built = build("--index", "none")
    assert not (built.path / "memory_bank.hnsw").exists() and built.manifest.memory_bank.index is None
    images = parts / "test" / "good"
    assert scores_of(built.path, images, capsys) == pytest.approx(scores_of(plain, images, capsys), rel=1e-5)


def test_a_random_coreset_is_recorded_and_differs_from_the_greedy_one(plain: Path, build) -> None:
    built = build("--coreset", "random", "--coreset-size", "20")
    spec = built.manifest.memory_bank
    assert (spec.coreset.method, spec.count, spec.coreset.covering_radius) == ("random", 20, None)
    greedy = {row.tobytes() for row in Bundle.load(plain).memory_bank}
    assert {row.tobytes() for row in Bundle.load(built.path).memory_bank} != greedy


def test_bank_rows_are_unprojected_embeddings_of_the_normal_images(plain: Path, parts: Path) -> None:
    from pcrun.backends.session import OnnxEmbedder
    from pcrun.preprocess import preprocess

    bundle = Bundle.load(plain)
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding)
    images = [cv2.imread(str(path)) for path in sorted((parts / "train" / "good").iterdir())]
    prepared = np.stack([preprocess(image, bundle.manifest.preprocess) for image in images])
    candidates = embedder.embed(prepared).reshape(-1, bundle.manifest.embedding.dim)
    distances = np.linalg.norm(bundle.memory_bank[:, None] - candidates[None], axis=2).min(axis=1)
    assert distances.max() < 1e-4 * np.linalg.norm(candidates, axis=1).mean()


def brute_force_eq7(bundle: Bundle, embeddings: np.ndarray, b: int) -> float:
    """Image score of Eq. 7 in float64, from the definition; m_test, m* and N_b as in the paper."""
    bank = bundle.memory_bank.astype(np.float64)
    distances = np.linalg.norm(embeddings[:, None].astype(np.float64) - bank[None], axis=2)
    m_test = int(distances.min(axis=1).argmax())
    m_star = int(distances[m_test].argmin())
    s_star = distances[m_test, m_star]
    nearest = np.linalg.norm(bank - bank[m_star], axis=1).argsort(kind="stable")[:b]
    return (1 - np.exp(s_star) / np.exp(distances[m_test, nearest]).sum()) * s_star


def test_reweighted_scores_equal_brute_force_eq_7(build, parts: Path) -> None:
    from pcrun.backends.session import OnnxEmbedder
    from pcrun.preprocess import preprocess

    built = build("--image-score", "reweighted", "--neighbours", "5", "--coreset-size", "60")
    bundle = Bundle.load(built.path)
    assert np.load(built.path / "neighbours.npy").shape == (60, 5)
    detector = AnomalyDetector.load(bundle)
    embedder = OnnxEmbedder(bundle.embedder, bundle.manifest.embedding)
    for path in sorted((parts / "test").glob("*/*.png")):
        image = cv2.imread(str(path))
        embeddings = embedder.embed(preprocess(image, bundle.manifest.preprocess)[None])[0]
        score = detector(image).image_score
        assert score == pytest.approx(brute_force_eq7(bundle, embeddings, 5), rel=1e-4)
        assert score < detector(image).patch_scores.max()
    assert bundle.manifest.scoring.threshold.value < bundle.manifest.scoring.pixel_threshold.value * 10


@pytest.mark.parametrize("batch, expected", [("dynamic", None), ("4", 4)])
def test_other_batches_give_the_same_scores(
    plain: Path, build, parts: Path, capsys, batch: str, expected
) -> None:
    built = build("--batch", batch)  # 14 images: the last batch of 4 is padded
    assert built.code == 0 and built.manifest.embedding.batch == expected
    images = parts / "test" / "good"
    assert scores_of(built.path, images, capsys) == pytest.approx(scores_of(plain, images, capsys), rel=1e-3)


def test_embedding_with_torch_gives_the_same_bank_within_parity(plain: Path, build) -> None:
    built = build("--embed-with", "torch")
    assert built.manifest.source.config["embed_with"] == "torch"
    with_torch, with_onnx = Bundle.load(built.path).memory_bank, Bundle.load(plain).memory_bank
    np.testing.assert_allclose(with_torch, with_onnx, rtol=1e-3, atol=1e-4 * np.abs(with_onnx).max())


def test_another_backbone_and_size(build, parts: Path) -> None:
    built = build("--backbone", "mobilenet_v3_small", "--image-size", "64x96", "--golden-samples", "1")
    assert built.code == 0
    manifest = built.manifest
    assert manifest.embedding.backbone == "mobilenet_v3_small" and manifest.preprocess.input_hw == (64, 96)
    assert (manifest.embedding.grid_height, manifest.embedding.grid_width) == (8, 12)
    result = AnomalyDetector.load(built.path)(cv2.imread(str(parts / "test" / "good" / "000.png")))
    assert result.anomaly_map.shape == (64, 96)


def test_a_crop_is_what_the_network_sees(build, parts: Path) -> None:
    built = build("--image-size", "80", "--crop-size", "64", "--resize-mode", "keep_aspect")
    spec = built.manifest.preprocess
    assert (spec.resize_height_px, spec.input_hw, spec.keep_aspect) == (80, (64, 64), True)


@pytest.mark.parametrize(
    "recipe, backbone, size", [("fast", "mobilenet_v3_small", "64x96"), ("jetson", "resnet18", "64")]
)
def test_a_named_recipe_is_used_and_flags_win_over_it(build, recipe: str, backbone: str, size: str) -> None:
    built = build("--config", recipe, "--image-size", size, "--coreset-ratio", "0.02")
    config = built.manifest.source.config
    assert built.code == 0
    assert (config["backbone"], config["image_size"], config["coreset_ratio"]) == (backbone, size, 0.02)


def test_evaluation_can_be_left_out(build) -> None:
    built = build("--no-evaluate", "--json")
    assert built.manifest.accuracy is None and "evaluate" not in json.loads(built.out)["seconds"]


def test_two_normal_images_are_enough(build, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for name in ("000.png", "001.png"):
        shutil.copy(parts / "train" / "good" / name, tmp_path / "two" / name)
    built = build(data=tmp_path / "two")
    assert built.code == 0 and built.manifest.scoring.threshold.images == 2


def test_one_normal_image_is_refused(build, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(parts / "train" / "good" / "000.png", tmp_path / "one")
    refused = build(data=tmp_path / "one")
    refused.assert_refused("1 normal image cannot give a threshold")
    assert "trace" not in refused.err, "refused after work that was for nothing"
    alone = build("--calibration", "none", data=tmp_path / "one")
    assert alone.code == 0 and "\n1 image x 64 patches" in alone.err
