"""The evaluation as one HTML file: no network, light and dark, readable on a phone and on paper."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pcexport.calibration.false_alarm_rate import shortage_warning
from pcexport.datasets import Dataset
from pcexport.datasets.reader import ImageReader
from pcexport.evaluation.charts import draw_precision_recall, draw_roc
from pcexport.evaluation.metrics import Samples
from pcexport.evaluation.outputs import IMAGE_METRICS, PIXEL_METRICS, described, name_of
from pcexport.evaluation.paired import EXPLANATION, Difference, table_rows
from pcexport.evaluation.pictures import Painter, Pictures
from pcexport.evaluation.run import Evaluation
from pcexport.evaluation.scored import ScoredImage
from pcexport.progress import Steps
from pcexport.report.chart import ScoreGroup, draw_scores
from pcexport.report.page import page_environment
from pcrun.detector import AnomalyDetector
from pcrun.files import write_file

_TEMPLATE = "evaluation.html.j2"
_COMPARISON = "comparison.html.j2"
_WORST = 8
_GALLERY = 96


def write_evaluation_report(
    path: Path, evaluation: Evaluation, detector: AnomalyDetector, dataset: Dataset, steps: Steps
) -> None:
    """Write the report.

    Args:
        path: the file.
        evaluation: what is shown.
        detector: that gave it; it scores the images shown once more.
        dataset: where they are.
        steps: progress.

    Raises:
        SinkError: the file cannot be written.
    """
    reader = ImageReader(
        dataset.root,
        white_level_16bit=evaluation.manifest.preprocess.white_level_16bit,
        strict=True,
        warn=lambda text: None,
    )
    painter = Painter(detector, reader)
    misses, alarms = worst(evaluation, defective=True), worst(evaluation, defective=False)
    chosen = spread_by_score(evaluation.scored, _GALLERY)
    with steps.step("pictures", len(chosen)) as step:
        worst_misses = [painter.everything(image) for image in misses[:_WORST]]
        worst_alarms = [painter.everything(image) for image in alarms[:_WORST]]
        gallery: list[Pictures] = []
        for done, image in enumerate(chosen, start=1):
            gallery.append(painter.overlay(image))
            step.advance_to(done)
    spec = evaluation.manifest.scoring.threshold
    threshold = evaluation.threshold if spec else None
    groups = score_groups(evaluation)
    curves = _curves(evaluation)
    page = (
        page_environment()
        .get_template(_TEMPLATE)
        .render(
            e=evaluation,
            m=evaluation.manifest,
            spec=spec,
            shortage=shortage_warning(spec) if spec else None,
            metrics=evaluation.metrics,
            image_metrics=IMAGE_METRICS,
            pixel_metrics=PIXEL_METRICS,
            described=described,
            groups=groups,
            charts=[draw_scores(groups, threshold, wide=wide, detailed=True) for wide in (True, False)],
            curves=curves,
            misses=worst_misses,
            missed=len(misses),
            alarms=worst_alarms,
            false_alarms=len(alarms),
            gallery=gallery,
            name_of=partial(name_of, root=dataset.root),
            scores=_scores_for_script(evaluation),
        )
    )
    write_file(path, page.encode("utf-8", "replace"))


def write_comparison_report(
    path: Path, evaluations: Sequence[Evaluation], rows: Sequence[dict[str, Difference]]
) -> None:
    """Several bundles side by side.

    Raises:
        SinkError: the file cannot be written.
    """
    figures, facts = table_rows(evaluations, rows)
    page = (
        page_environment()
        .get_template(_COMPARISON)
        .render(
            evaluations=evaluations,
            figures=figures,
            facts=facts,
            explanation=EXPLANATION,
            charts=[
                (
                    evaluation.manifest.name,
                    [
                        draw_scores(score_groups(evaluation), evaluation.threshold, wide=wide, detailed=True)
                        for wide in (True, False)
                    ],
                )
                for evaluation in evaluations
            ],
        )
    )
    write_file(path, page.encode("utf-8", "replace"))


def worst(evaluation: Evaluation, *, defective: bool) -> list[ScoredImage]:
    """Misses, lowest score first, or false alarms, highest first."""
    label = "defective" if defective else "normal"
    wrong = [image for image in evaluation.of_label(label) if image.is_anomalous != defective]
    sign = 1 if defective else -1
    return sorted(wrong, key=lambda image: (sign * image.score, str(image.image.ref)))


def spread_by_score(scored: Sequence[ScoredImage], count: int) -> list[ScoredImage]:
    """Highest score first; of more than `count`, those that divide the ranking evenly, ends included."""
    ranked = sorted(scored, key=lambda image: (-image.score, str(image.image.ref)))
    if len(ranked) <= count:
        return ranked
    return [ranked[round(place * (len(ranked) - 1) / (count - 1))] for place in range(count)]


def score_groups(evaluation: Evaluation) -> list[ScoreGroup]:
    """Normal images, each class of defects, or the unlabelled ones."""
    groups = []
    for label in ("normal", "unlabelled"):
        groups.append(_group(label, "normal", evaluation.of_label(label)))
    defects = evaluation.of_label("defective")
    for name in sorted({str(image.image.defect) for image in defects}):
        groups.append(_group(name, "defective", [image for image in defects if image.image.defect == name]))
    return [group for group in groups if group.scores]


def _group(name: str, kind: str, members: Sequence[ScoredImage]) -> ScoreGroup:
    flagged = sum(image.is_anomalous for image in members)
    return ScoreGroup(name, kind, tuple(image.score for image in members), flagged)


def _curves(evaluation: Evaluation) -> list[Markup]:
    """ROC and precision-recall, where they are defined."""
    if not evaluation.of_label("normal") or not evaluation.of_label("defective"):
        return []
    samples = Samples.of(evaluation.scored)
    return [draw_roc(samples), draw_precision_recall(samples)]


def _scores_for_script(evaluation: Evaluation) -> Markup:
    """Sorted scores by label, for the slider."""
    scores: dict[str, Any] = {
        label: sorted(round(image.score, 6) for image in evaluation.of_label(label))
        for label in ("normal", "defective", "unlabelled")
    }
    # Numbers and fixed names alone: nothing in it can end the script element.
    return Markup(json.dumps(scores, separators=(",", ":")))
