"""Figures of an evaluation: scikit-learn's values, intervals that cover, no number for what is undefined."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from pcexport.evaluation.metrics import Metric, Metrics, Resamples, evaluate
from tests.exporter.evaluation.scores import scored, some


@pytest.fixture(scope="module")
def figures() -> Metrics:
    return evaluate(some())


def all_metrics(figures: Metrics) -> list[Metric]:
    return [
        *figures.image.values(),
        *figures.pixel.values(),
        *(m for c in figures.classes.values() for m in c.values()),
    ]


def test_figures_at_the_threshold_are_scikit_learns(figures: Metrics) -> None:
    images = some()
    truth = [image.image.is_defective for image in images]
    called = [image.is_anomalous for image in images]
    assert figures.image["precision"].value == pytest.approx(precision_score(truth, called))
    assert figures.image["recall"].value == pytest.approx(recall_score(truth, called))
    assert figures.image["f1"].value == pytest.approx(f1_score(truth, called))
    assert figures.image["auroc"].value == pytest.approx(
        roc_auc_score(truth, [image.score for image in images])
    )
    found = figures.confusion
    assert found.true_positives + found.false_negatives == 30
    assert found.false_positives + found.true_negatives == 40
    assert figures.image["false_positive_rate"].value == pytest.approx(found.false_positives / 40)


def test_every_interval_holds_its_value(figures: Metrics) -> None:
    for metric in all_metrics(figures):
        assert metric.value is not None
        if metric.low is None or metric.high is None:
            assert metric.value == 1, "perfect in every resample"
            continue
        assert 0 <= metric.low <= metric.value <= metric.high <= 1


def test_classes_are_compared_with_the_normal_images(figures: Metrics) -> None:
    images = [image for image in some() if image.image.defect in (None, "hole")]
    expected = roc_auc_score([i.image.is_defective for i in images], [i.score for i in images])
    assert figures.classes["hole"]["image_auroc"].value == pytest.approx(expected)
    assert sorted(figures.classes) == ["hole", "scratch"]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """AUROC of two unit normals one apart is Phi(1 / sqrt 2)."""
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        scores = np.concatenate([rng.normal(0, 1, 60), rng.normal(1, 1, 60)])
        images = [scored(n, float(s), "hole" if n >= 60 else None) for n, s in enumerate(scores)]
        metric = evaluate(images).image["auroc"]
        assert metric.low is not None and metric.high is not None
        covered += metric.low <= truth <= metric.high
    # 95 of 100, less four standard deviations.
    assert covered >= 86


def test_none_of_many_has_an_interval_too() -> None:
    images = [scored(n, 1.0, None) for n in range(100)] + [scored(n + 100, 3.0, "hole") for n in range(10)]
    rate = evaluate(images).image["false_positive_rate"]
    assert rate.value == 0 and rate.high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_a_perfect_ranking_of_few_images_has_no_interval() -> None:
    images = [scored(0, 1.0, None), scored(1, 1.1, None), *(scored(n, 3.0 + n, "hole") for n in range(2, 8))]
    metric = evaluate(images).image["auroc"]
    assert metric.value == 1 and metric.low is None and metric.high is None


def test_the_best_threshold_is_between_two_scores_and_gives_its_counts() -> None:
    images = some()
    best = evaluate(images).best_threshold
    assert best is not None
    called = [image.score > best.threshold for image in images]
    truth = [image.image.is_defective for image in images]
    assert f1_score(truth, called) == pytest.approx(best.f1)
    assert sum(c and not t for c, t in zip(called, truth, strict=True)) == best.false_positives
    assert best.threshold not in [image.score for image in images]


@pytest.mark.parametrize(
    ("normal", "defective", "missing"),
    [(20, 0, "there are no defective images"), (0, 20, "there are no normal images")],
)
def test_one_kind_alone_leaves_rankings_undefined(normal: int, defective: int, missing: str) -> None:
    figures = evaluate(some(normal, defective))
    for name in ("auroc", "aupr", "best_f1"):
        assert figures.image[name] == Metric(None, undefined=missing)
    assert figures.best_threshold is None
    rate, recall = figures.image["false_positive_rate"], figures.image["recall"]
    assert (rate.value is None) == (normal == 0) and (recall.value is None) == (defective == 0)


def test_defects_without_masks_leave_pixels_undefined() -> None:
    figures = evaluate(some(masks=False))
    assert {metric.undefined for metric in figures.pixel.values()} == {"no defect has a mask"}
    assert figures.image["auroc"].value is not None


def test_a_single_image_is_enough() -> None:
    for defect in (None, "hole"):
        figures = evaluate([scored(0, 1.0, defect)])
        assert figures.image["auroc"].value is None


def test_no_figure_is_ever_nan() -> None:
    sets = [some(), some(5, 1), some(1, 5), some(1, 1), some(3, 0), some(0, 3), some(6, 6, masks=False)]
    for images in sets:
        text = json.dumps(evaluate(images).to_json(), allow_nan=False)
        assert "NaN" not in text


def test_resamples_keep_the_numbers_of_both_kinds() -> None:
    defective = np.arange(30) < 10
    weights = Resamples(defective).weights
    assert (weights[:, defective].sum(1) == 10).all() and (weights[:, ~defective].sum(1) == 20).all()
    np.testing.assert_array_equal(weights, Resamples(defective).weights)
    assert len(np.unique(weights, axis=0)) > 900
