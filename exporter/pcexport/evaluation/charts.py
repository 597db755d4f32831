"""ROC and precision-recall curves as inline SVG, with the point at which the bundle works."""

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from sklearn.metrics import precision_recall_curve, roc_curve

from pcexport.evaluation.metrics import Samples
from pcexport.report.chart import INK, LINE, MUTED, NORMAL, themed

_SIZE_PX = 430
_DOT = 0.022  # of an axis


def draw_roc(samples: Samples) -> Markup:
    """False-positive rate against recall, over all thresholds."""
    false, true, _ = roc_curve(samples.defective, samples.scores, drop_intermediate=True)
    found = samples.confusion()
    normal = found.false_positives + found.true_negatives
    defective = found.true_positives + found.false_negatives
    with rc_context():
        figure, axes = _axes("false-positive rate", "recall")
        axes.plot((0, 1), (0, 1), color=LINE, linewidth=1, clip_on=False)
        axes.plot(false, true, color=NORMAL, linewidth=1.8, clip_on=False)
        _mark(axes, found.false_positives / normal, found.true_positives / defective)
        return themed(figure, "ROC curve of the image score")


def draw_precision_recall(samples: Samples) -> Markup:
    """Recall against precision, over all thresholds."""
    precision, recall, _ = precision_recall_curve(samples.defective, samples.scores, drop_intermediate=True)
    found = samples.confusion()
    flagged = found.true_positives + found.false_positives
    with rc_context():
        figure, axes = _axes("recall", "precision")
        share = float(np.mean(samples.defective))
        axes.plot((0, 1), (share, share), color=LINE, linewidth=1, clip_on=False)
        axes.plot(recall, precision, color=NORMAL, linewidth=1.8, drawstyle="steps-post", clip_on=False)
        if flagged:
            defective = found.true_positives + found.false_negatives
            _mark(axes, found.true_positives / defective, found.true_positives / flagged)
        return themed(figure, "Precision-recall curve of the image score")


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    rcdefaults()
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pcexport", "font.size": 12.5})
    figure = Figure(figsize=(_SIZE_PX / 72, _SIZE_PX / 72), dpi=72)
    figure.patch.set_visible(False)
    axes = figure.add_axes((0.13, 0.12, 0.84, 0.84))
    axes.patch.set_visible(False)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(color=LINE, linewidth=0.8, clip_on=False)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(colors=MUTED, length=0)
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    return figure, axes


def _mark(axes: Axes, x: float, y: float) -> None:
    # A patch: markers are defined apart from where they are drawn, and lost with their ids.
    axes.add_patch(Ellipse((x, y), _DOT, _DOT, color=INK, clip_on=False, zorder=5))
    left = x > 0.7
    axes.annotate(
        "threshold",
        (x, y),
        xytext=(-12 if left else 12, -16),
        textcoords="offset points",
        ha="right" if left else "left",
        color=INK,
        clip_on=False,
    )
