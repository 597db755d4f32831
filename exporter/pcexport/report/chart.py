"""The report's score distribution, as inline SVG that takes its colours from the page."""

import dataclasses
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
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import gaussian_kde

from pcexport.report.format import format_l2
from pcrun.types import Int64Array
from pcrun.words import plural

Edges: TypeAlias = npt.NDArray[np.float64]

# Drawn as these colours and then replaced, so that the page's light and dark themes apply to the chart too.
INK, MUTED, LINE, NORMAL, ANOMALOUS, CARD = (f"#01010{i}" for i in range(1, 7))
_THEMED = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    NORMAL: "var(--accent)",
    ANOMALOUS: "var(--alarm)",
    CARD: "var(--card)",
}
_MARGIN = 10  # px
_MAX_ROWS = 14
_MAX_NAME = 24
_MIN_BINS, _MAX_BINS = 16, 44
_BOX_ROW = 16  # px that a box plot takes below its bars
_DENSITY_POINTS = 160
_FEWEST_FOR_DENSITY = 5


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
    box: int = 0


_WIDE = _Shape(width=912, gutter=196, row=48, bar=36, ticks=9)
_NARROW = _Shape(width=360, gutter=0, row=64, bar=34, ticks=5)


def draw_scores(
    groups: Sequence[ScoreGroup], threshold: float | None, *, wide: bool, detailed: bool = False
) -> Markup | None:
    """Draw one histogram per group over a common axis, with the threshold through all of them.

    Bars right of the threshold are the images called anomalous: no bar straddles it.

    Args:
        groups: from top to bottom; those beyond the 14th are drawn as one.
        threshold: L2 units, or None for no line.
        wide: for a screen or paper; False for a phone.
        detailed: with a density estimate over the bars and a box plot under them. The drawing then says
            where its axis lies (`data-left`, `data-right` in its own units, `data-low`, `data-high` in L2).

    Returns:
        `<svg>` without ids, links or fonts of its own; None when there is nothing to draw.
    """
    rows = _rows(groups)
    if not rows:
        return None
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A class name in a script that matplotlib's font lacks is drawn by the browser.
        warnings.simplefilter("ignore", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pcexport", "font.size": 12.5})
        edges = _bin_edges([score for _, scores in rows for score in scores], threshold)
        shape = _WIDE if wide else _NARROW
        if detailed:
            shape = dataclasses.replace(shape, row=shape.row + _BOX_ROW, box=_BOX_ROW)
        chart = _Chart(shape, len(rows), edges, threshold)
        chart.draw_grid()
        for position, (name, scores) in enumerate(rows):
            chart.draw_row(position, name, scores)
        chart.draw_threshold()
        axis = {
            "left": shape.gutter + _MARGIN,
            "right": shape.width - _MARGIN,
            "low": float(edges[0]),
            "high": float(edges[-1]),
            "top": shape.top - 6,
            "floor": chart.floor,
        }
        return themed(chart.figure, "Histograms of image scores", **(axis if detailed else {}))


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


class _Chart:
    """Axes whose vertical unit is one pixel, counted from the top, and what is drawn on them."""

    def __init__(self, shape: _Shape, rows: int, edges: Edges, threshold: float | None) -> None:
        self.shape = shape
        self.edges = edges
        self.threshold = threshold
        height = shape.top + shape.row * rows + shape.bottom
        self.floor = height - shape.bottom
        self.figure = Figure(figsize=(shape.width / 72, height / 72), dpi=72)
        self.figure.patch.set_visible(False)
        left, width = shape.gutter + _MARGIN, shape.width - shape.gutter - 2 * _MARGIN
        self.axes = self.figure.add_axes(
            (left / shape.width, shape.bottom / height, width / shape.width, shape.row * rows / height)
        )
        self.axes.set_xlim(edges[0], edges[-1])
        self.axes.set_ylim(self.floor, shape.top)
        self._style_axes()

    def _style_axes(self) -> None:
        self.axes.patch.set_visible(False)
        for spine in self.axes.spines.values():
            spine.set_visible(False)
        self.axes.set_yticks([])
        self.axes.tick_params(bottom=False, colors=MUTED, pad=6)
        self.axes.xaxis.set_major_locator(MaxNLocator(nbins=self.shape.ticks))
        self.axes.ticklabel_format(axis="x", useOffset=False, style="plain")
        self.axes.set_xlabel("image score (L2)", color=MUTED, labelpad=5)

    def draw_grid(self) -> None:
        for tick in self.axes.get_xticks():
            if self.edges[0] <= tick <= self.edges[-1]:
                self._line((tick, tick), (self.shape.top, self.floor), LINE, width=1, zorder=0)

    def draw_row(self, position: int, name: str, scores: Sequence[float]) -> None:
        base = self.shape.top + (position + 1) * self.shape.row - 2 - self.shape.box
        counts = _counts(scores, self.edges)
        for count, left, right in zip(counts, self.edges[:-1], self.edges[1:], strict=True):
            if count:
                anomalous = self.threshold is not None and left >= self.threshold
                # At least 2 px, so that a single image among hundreds is seen.
                tall = max(2.0, self.shape.bar * count / counts.max())
                self._bar(left, right, base, tall, ANOMALOUS if anomalous else NORMAL)
        self._line((self.edges[0], self.edges[-1]), (base, base), MUTED, width=0.8)
        if self.shape.box:
            self._draw_density(base, scores, int(counts.max()))
            self._draw_box(base, scores)
        self._write_name(base, name, f"{len(scores):,} {plural(len(scores), 'image')}")

    def _draw_density(self, base: float, scores: Sequence[float], tallest: int) -> None:
        """Gaussian kernels, in the units of the bars: expected images per bin."""
        if len(scores) < _FEWEST_FOR_DENSITY or np.ptp(scores) == 0:
            return
        x = np.linspace(self.edges[0], self.edges[-1], _DENSITY_POINTS)
        expected = gaussian_kde(scores)(x) * len(scores) * (self.edges[1] - self.edges[0])
        self.axes.plot(x, base - self.shape.bar * expected / tallest, color=INK, linewidth=1, clip_on=False)

    def _draw_box(self, base: float, scores: Sequence[float]) -> None:
        """Quartiles, and whiskers to the farthest scores within one and a half times their distance."""
        values = np.asarray(scores)
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        reach = 1.5 * (high - low)
        inside = values[(values >= low - reach) & (values <= high + reach)]
        centre, half = base + self.shape.box / 2, self.shape.box / 4
        self._line((inside.min(), low), (centre, centre), MUTED, width=1)
        self._line((high, inside.max()), (centre, centre), MUTED, width=1)
        self.axes.bar(
            low, 2 * half, high - low, centre - half, align="edge", color=LINE, edgecolor=MUTED, clip_on=False
        )
        self._line((middle, middle), (centre - half, centre + half), INK, width=1.6)

    def draw_threshold(self) -> None:
        if self.threshold is None:
            return
        self._line((self.threshold, self.threshold), (self.shape.top - 6, self.floor), INK, width=1.4)
        where = (self.threshold - self.edges[0]) / (self.edges[-1] - self.edges[0])
        align = "left" if where < 0.2 else "right" if where > 0.8 else "center"
        text = f"threshold {format_l2(self.threshold)}"
        self.axes.text(self.threshold, self.shape.top - 12, text, color=INK, ha=align, clip_on=False)

    def _write_name(self, base: float, name: str, images: str) -> None:
        """The row's name and size: left of the bars, or above them."""
        style: dict[str, Any] = {
            "clip_on": False,
            "parse_math": False,  # a class name may hold dollar signs
            "transform": self.axes.get_yaxis_transform(),
        }
        if self.shape.gutter:
            left = -(self.shape.gutter + 8) / (self.shape.width - self.shape.gutter - 2 * _MARGIN)
            self.axes.text(left, base - 21, name, color=INK, **style)
            self.axes.text(left, base - 4, images, color=MUTED, **style)
        else:
            # On a patch of the page's colour, so that no line runs through the names.
            style["bbox"] = {"facecolor": CARD, "edgecolor": "none", "pad": 1.5, "clip_on": False}
            above = base - self.shape.bar - 7
            self.axes.text(0, above, name, color=INK, **style)
            self.axes.text(1, above, images, color=MUTED, ha="right", **style)

    def _bar(self, left: float, right: float, base: float, tall: float, colour: str) -> None:
        gap = (right - left) * 0.08
        width = right - left - 2 * gap
        self.axes.bar(left + gap, -tall, width, base, align="edge", color=colour, clip_on=False)

    def _line(
        self, x: tuple[float, float], y: tuple[float, float], colour: str, *, width: float, zorder: float = 2
    ) -> None:
        self.axes.plot(x, y, color=colour, linewidth=width, clip_on=False, zorder=zorder)


def themed(figure: Figure, label: str, **data: float) -> Markup:
    """Matplotlib's SVG without header, ids, fixed size and font: what is left follows the page.

    Args:
        figure: drawn in the colours of this module.
        label: says what it shows.
        data: attributes for the page's script.
    """
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
    attributes = "".join(f' data-{name}="{value:.8g}"' for name, value in data.items())
    return Markup(f'<svg viewBox="{view_box[1]}" role="img" aria-label="{label}"{attributes}>{body.strip()}')
