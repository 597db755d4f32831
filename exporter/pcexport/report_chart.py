"""The report's score distribution, as inline SVG that takes its colours from the page."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pcrun.types import Int64Array

Edges: TypeAlias = npt.NDArray[np.float64]

# Drawn as these colours and then replaced, so that the page's light and dark themes apply to the chart too.
_INK, _MUTED, _LINE, _NORMAL, _ANOMALOUS, _CARD = (f"#01010{i}" for i in range(1, 7))
_THEMED = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _NORMAL: "var(--accent)",
    _ANOMALOUS: "var(--alarm)",
    _CARD: "var(--card)",
}
_MAX_ROWS = 14
_MAX_NAME = 24
_MIN_BINS, _MAX_BINS = 16, 44


@dataclass(frozen=True)
class ScoreGroup:
    """Image scores shown together.

    Attributes:
        name: for people.
        kind: "calibration", "normal" or "defective".
        scores: L2 units.
        flagged: how many of them are above the threshold.
    """

    name: str
    kind: str
    scores: tuple[float, ...]
    flagged: int

    @property
    def median(self) -> float:
        """Median score, L2 units."""
        return float(np.median(self.scores))


@dataclass(frozen=True)
class _Shape:
    """Sizes of a chart in CSS pixels; `gutter` is the column of the names, 0 puts them above their bars."""

    width: int
    gutter: int
    row: int
    bar: int
    ticks: int
    top: int = 30
    bottom: int = 44


_WIDE = _Shape(width=912, gutter=196, row=48, bar=36, ticks=9)
_NARROW = _Shape(width=360, gutter=0, row=64, bar=34, ticks=5)


def draw_scores(groups: Sequence[ScoreGroup], threshold: float | None, *, wide: bool) -> Markup | None:
    """Draw one histogram per group over a common axis, with the threshold through all of them.

    Bars right of the threshold are the images called anomalous: no bar straddles it.

    Args:
        groups: from top to bottom; those beyond the 14th are drawn as one.
        threshold: L2 units, or None for no line.
        wide: for a screen or paper; False for a phone.

    Returns:
        `<svg>` without ids, links or fonts of its own; None when there is nothing to draw.
    """
    rows = _rows(groups)
    if not rows:
        return None
    shape = _WIDE if wide else _NARROW
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A class name in a script that matplotlib's font lacks is drawn by the browser.
        warnings.simplefilter("ignore", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pcexport", "font.size": 12.5})
        height = shape.top + shape.row * len(rows) + shape.bottom
        figure = Figure(figsize=(shape.width / 72, height / 72), dpi=72)
        figure.patch.set_visible(False)
        axes = _axes(figure, shape, height)
        edges = _bin_edges([score for _, scores in rows for score in scores], threshold)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(height - shape.bottom, shape.top)
        _draw_grid(axes, shape, height)
        for position, (name, scores) in enumerate(rows):
            _draw_row(axes, shape, position, name, scores, edges, threshold)
        if threshold is not None:
            _draw_threshold(axes, shape, threshold, edges, height)
        return _themed(figure)


def _rows(groups: Sequence[ScoreGroup]) -> list[tuple[str, tuple[float, ...]]]:
    """Name and scores of what is drawn."""
    finite = [(_short(group.name), tuple(filter(math.isfinite, group.scores))) for group in groups]
    rows = [(name, scores) for name, scores in finite if scores]
    if len(rows) <= _MAX_ROWS:
        return rows
    rest = rows[_MAX_ROWS - 1 :]
    together = tuple(score for _, scores in rest for score in scores)
    return [*rows[: _MAX_ROWS - 1], (f"{len(rest)} other classes", together)]


def _short(name: str) -> str:
    name = " ".join(name.encode("utf-8", "replace").decode().split())
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _bin_edges(scores: list[float], threshold: float | None) -> Edges:
    """Equal bins over all scores; one edge is the threshold, exactly."""
    marks = [*scores, threshold] if threshold is not None else scores
    low, high = min(marks), max(marks)
    span = (high - low) or max(abs(high) * 0.2, 1e-6)
    bins = min(_MAX_BINS, max(_MIN_BINS, round(4 * math.sqrt(len(scores)))))
    step = span * 1.06 / bins
    anchor = threshold if threshold is not None else low
    first = -math.ceil((anchor - low + 0.03 * span) / step)
    last = math.ceil((high - anchor + 0.03 * span) / step)
    return np.asarray(anchor + step * np.arange(first, last + 1), np.float64)


def _counts(scores: Sequence[float], edges: Edges) -> Int64Array:
    """Histogram with bins closed on the right: a score equal to the threshold is normal."""
    bins = np.searchsorted(edges, np.asarray(scores, np.float64), side="left") - 1
    return np.bincount(bins.clip(0, len(edges) - 2), minlength=len(edges) - 1).astype(np.int64)


def _axes(figure: Figure, shape: _Shape, height: int) -> Axes:
    """Axes whose vertical unit is one pixel, counted from the top."""
    margin = 10
    plot_width = shape.width - shape.gutter - 2 * margin
    axes = figure.add_axes(
        (
            (shape.gutter + margin) / shape.width,
            shape.bottom / height,
            plot_width / shape.width,
            1 - (shape.top + shape.bottom) / height,
        )
    )
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_yticks([])
    axes.tick_params(bottom=False, colors=_MUTED, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=shape.ticks))
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    axes.set_xlabel("image score (L2)", color=_MUTED, labelpad=5)
    return axes


def _draw_grid(axes: Axes, shape: _Shape, height: int) -> None:
    low, high = axes.get_xlim()
    for tick in axes.get_xticks():
        if low <= tick <= high:
            axes.plot(
                [tick, tick], [shape.top, height - shape.bottom], color=_LINE, linewidth=1, clip_on=False, zorder=0
            )


def _draw_row(
    axes: Axes,
    shape: _Shape,
    position: int,
    name: str,
    scores: Sequence[float],
    edges: Edges,
    threshold: float | None,
) -> None:
    base = shape.top + (position + 1) * shape.row - 2
    counts = _counts(scores, edges)
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            colour = _ANOMALOUS if threshold is not None and left >= threshold else _NORMAL
            gap = (right - left) * 0.08
            # At least 2 px, so that a single image among hundreds is seen.
            tall = max(2.0, shape.bar * count / counts.max())
            axes.bar(
                left + gap, -tall, right - left - 2 * gap, base, align="edge", color=colour, clip_on=False
            )
    axes.plot([edges[0], edges[-1]], [base, base], color=_MUTED, linewidth=0.8, clip_on=False)
    _write_name(axes, shape, base, name, f"{len(scores):,} image{'s' if len(scores) != 1 else ''}")


def _write_name(axes: Axes, shape: _Shape, base: float, name: str, images: str) -> None:
    """The row's name and size: left of the bars, or above them."""
    transform = axes.get_yaxis_transform()
    style: dict[str, Any] = {"clip_on": False, "parse_math": False, "transform": transform}
    if shape.gutter:
        left = -(shape.gutter + 8) / (shape.width - shape.gutter - 20)
        axes.text(left, base - 21, name, color=_INK, **style)
        axes.text(left, base - 4, images, color=_MUTED, **style)
    else:
        # Names stand on a patch of the page's colour, so that no line runs through them.
        style["bbox"] = {"facecolor": _CARD, "edgecolor": "none", "pad": 1.5, "clip_on": False}
        axes.text(0, base - shape.bar - 7, name, color=_INK, **style)
        axes.text(1, base - shape.bar - 7, images, color=_MUTED, ha="right", **style)


def _draw_threshold(
    axes: Axes,
    shape: _Shape,
    threshold: float,
    edges: Edges,
    height: int,
) -> None:
    axes.plot(
        [threshold, threshold],
        [shape.top - 6, height - shape.bottom],
        color=_INK,
        linewidth=1.4,
        clip_on=False,
    )
    where = (threshold - edges[0]) / (edges[-1] - edges[0])
    align = "left" if where < 0.2 else "right" if where > 0.8 else "center"
    axes.text(threshold, shape.top - 12, f"threshold {threshold:.4g}", color=_INK, ha=align, clip_on=False)


def _themed(figure: Figure) -> Markup:
    """Matplotlib's SVG without header, ids, fixed size and font: what is left follows the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None  # matplotlib always writes it
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<(metadata|defs)>.*?</\1>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    for drawn, themed in _THEMED.items():
        body = body.replace(drawn, themed)
    label = "Histograms of image scores"
    return Markup(f'<svg viewBox="{view_box[1]}" role="img" aria-label="{label}">{body.strip()}')
