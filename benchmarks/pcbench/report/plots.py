"""What a report shows as plots: percentiles, stages, memory banks, accuracy."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from pcbench.latency.cell import PAIRED_BY
from pcbench.latency.load import Measured
from pcbench.report.colours import Colours, Entries, shared_colours, told_apart
from pcbench.report.drawing import INK, MUTED, SERIES, Key, new_axes
from pcbench.report.inputs import Accuracy, Inputs, per_image_ms, short_names
from pcrun.bench.stages import COPY_STAGES, STAGES

# Both directions between host and device, in one colour.
_COPIES = "copies"
_MOST_BARS = 24
_MOST_TICKS = 6
_WIDE_RANGE = 10
_SHOWN_PERCENTILES = (0, 50, 90, 99, 99.9, 99.99)


@dataclass(frozen=True)
class Plot:
    """One plot, drawn when its width is known.

    Attributes:
        name: for a file.
        title: above it.
        note: below it.
        draw: gives the figure, for a screen or (False) for a phone; within `own_style`.
        key: its legend.
    """

    name: str
    title: str
    note: str
    draw: Callable[[bool], Figure]
    key: list[Key] = field(default_factory=list)

    def add_legend(self, figure: Figure) -> None:
        """Make room for the key under a figure that stands alone."""
        if not self.key:
            return
        handles = [Patch(color=SERIES[entry.colour], label=entry.name) for entry in self.key]
        columns = 1 if max(len(entry.name) for entry in self.key) > 40 else 3
        extra = 18 + 20 * -(-len(handles) // columns)
        width, height = figure.get_size_inches() * figure.dpi
        figure.set_size_inches(width / figure.dpi, (height + extra) / figure.dpi)
        for axes in figure.axes:
            box = axes.get_position()
            scale = height / (height + extra)
            axes.set_position(
                (box.x0, (box.y0 * height + extra) / (height + extra), box.width, box.height * scale)
            )
        figure.legend(
            handles=handles, loc="lower left", ncol=columns, frameon=False, labelcolor=MUTED, handlelength=0.9
        )


def all_plots(inputs: Inputs) -> list[Plot]:
    """Those for which there is something to show."""
    contents = list(dict.fromkeys(cell.content for cell in inputs.cells))
    kinds = [[cell for cell in inputs.cells if cell.content == content] for content in contents]
    entries = list(map(told_apart, kinds))
    by_median = shared_colours([sorted(cells, key=_median_of(cells)) for cells in entries])
    plots = [
        percentile_plot(cells, colours, content, number)
        for number, (cells, colours, content) in enumerate(zip(entries, by_median, contents, strict=True))
    ]
    if inputs.cells:
        plots.append(stage_plot(inputs.cells))
    lines = list(map(_bank_lines, kinds))
    of_lines = shared_colours([list(alike) for alike in lines])
    points = [_best_first(cells, inputs.accuracy) for cells in entries]
    of_points = shared_colours([list(best) for best in points])
    for number, content in enumerate(contents):
        plots += bank_plot(lines[number], of_lines[number], content, number)
        plots += accuracy_plot(points[number], of_points[number], inputs.accuracy, content, number)
    return plots


def _median_of(cells: Entries) -> Callable[[Hashable], float]:
    return lambda entry: float(cells[entry].result["latency_ms"]["median"])


def percentile_plot(cells: Entries, colours: Colours, content: str, number: int) -> Plot:
    """Every latency against its rank; the axis makes room for the slowest."""
    shown = [cells[entry] for entry in colours]
    left = len(cells) - len(shown)

    def draw(wide: bool) -> Figure:
        figure, axes = new_axes(wide=wide, height_px=340 if wide else 280)
        most = max(len(cell.samples_ms) for cell in shown)
        for cell, colour in zip(shown, colours.values(), strict=True):
            values = np.sort(cell.samples_ms)
            ranks = (np.arange(len(values)) + 0.5) / len(values)
            axes.plot(-np.log10(1 - ranks), values, color=SERIES[colour], linewidth=1.8)
        ticks = [p for p in _SHOWN_PERCENTILES[0 if wide else 1 :] if 1 - p / 100 >= 0.5 / most]
        axes.set_xticks([-np.log10(1 - p / 100) for p in ticks], [f"{p:g} %" for p in ticks])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("share of the queries that are not slower")
        axes.set_ylabel("ms per query")
        return figure

    note = "Each query is in its curve. The axis is logarithmic towards 100 %."
    if left:
        note += f" The {len(shown)} cells with the lowest medians are shown, {left} more are in the table."
    return Plot(f"percentiles-{number + 1}", f"Percentiles: {content}", note, draw, _keys(colours, shown))


def _keys(colours: Colours, shown: Sequence[Measured]) -> list[Key]:
    return [Key(colour, name) for colour, name in zip(colours.values(), short_names(shown), strict=True)]


def stage_plot(cells: Sequence[Measured]) -> Plot:
    """Mean time of each stage, because means add up."""
    shown = sorted(cells, key=lambda cell: (cell.content, float(cell.result["latency_ms"]["mean"])))
    left = len(shown) - _MOST_BARS
    shown = shown[:_MOST_BARS]
    names = [f"{name} · {cell.content}" for name, cell in zip(short_names(shown), shown, strict=True)]
    copied = any(set(COPY_STAGES) & set(cell.result["stages_ms"]) for cell in shown)
    parts = (*STAGES, *((_COPIES,) if copied else ()))

    def draw(wide: bool) -> Figure:
        row = 46
        figure, axes = new_axes(wide=wide, height_px=row * len(shown) + 66, left_px=12)
        for position, (cell, name) in enumerate(zip(shown, names, strict=True)):
            start = 0.0
            for stage, colour in zip(parts, SERIES, strict=False):
                mean = _mean(cell, stage)
                axes.barh(position, mean, 0.42, start, color=colour)
                start += mean
            style: dict[str, Any] = {"va": "bottom", "parse_math": False}
            axes.text(0, position - 0.27, name if wide else _cut(name, 34), color=INK, **style)
            at_end: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right"}
            axes.text(1, position - 0.27, f"{start:.2f}", color=MUTED, **style, **at_end)
        axes.set_ylim(len(shown) - 0.6, -0.8)
        axes.set_yticks([])
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("mean ms per query")
        return figure

    note = "Means of the stages, which add up to the mean latency inside the detector and the decoder."
    if left > 0:
        note += f" {left} more are in the tables."
    return Plot("stages", "Stages", note, draw, [Key(i, stage) for i, stage in enumerate(parts)])


def _mean(cell: Measured, part: str) -> float:
    stages = cell.result["stages_ms"]
    wanted = COPY_STAGES if part == _COPIES else (part,)
    return sum(float(stages[stage]["mean"]) for stage in wanted if stage in stages)


def _bank_lines(cells: Sequence[Measured]) -> dict[Hashable, list[Measured]]:
    """Cells of the same network and settings, where their memory banks have several sizes."""
    series: dict[Hashable, list[Measured]] = {}
    for cell in cells:
        bundle = cell.whole["bundle"]
        alike = [cell.run, *(cell.asked[name] for name in PAIRED_BY if name != "bundle")]
        network = [bundle["backbone"], bundle["dim"], bundle["input_px"], cell.whole["settings"]["precision"]]
        series.setdefault(tuple(map(str, (*alike, *network))), []).append(cell)
    return {alike: line for alike, line in series.items() if len(set(map(bank_of, line))) > 1}


def bank_plot(
    series: dict[Hashable, list[Measured]], colours: Colours, content: str, number: int
) -> list[Plot]:
    """Median latency against the size of the memory bank, everything else being equal."""
    lines = [series[alike] for alike in colours]
    left = len(series) - len(lines)
    if not lines:
        return []

    def draw(wide: bool) -> Figure:
        figure, axes = new_axes(wide=wide, height_px=320 if wide else 270)
        for line, colour in zip(lines, colours.values(), strict=True):
            points = sorted(
                (c.whole["bundle"]["memory_bank"], c.result["latency_ms"]["median"]) for c in line
            )
            style: dict[str, Any] = {"linewidth": 1.8, "marker": "o", "markersize": 5}
            axes.plot(*zip(*points, strict=True), color=SERIES[colour], **style)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        sizes = sorted({bank_of(cell) for line in lines for cell in line})
        if len(sizes) <= _MOST_TICKS:
            axes.set_xticks(sizes)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        medians = [float(c.result["latency_ms"]["median"]) for line in lines for c in line]
        if max(medians) > _WIDE_RANGE * min(medians):
            # Brute force beside everything else: on a linear axis all others would be one line.
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("entries of the memory bank")
        axes.set_ylabel("median ms per query")
        return figure

    firsts = [line[0] for line in lines]
    names = short_names(firsts) if len(firsts) > 1 else [f"{firsts[0].asked['provider']}"]
    keys = [Key(colour, name) for colour, name in zip(colours.values(), names, strict=True)]
    note = "Bundles of the same network and settings, with memory banks of several sizes."
    if left > 0:
        note += f" {left} more such lines are in the table."
    return [Plot(f"memory-bank-{number + 1}", f"Latency and memory bank: {content}", note, draw, keys)]


def _best_first(cells: Entries, accuracy: dict[str, Accuracy]) -> Entries:
    """Those whose accuracy is known; those of the Pareto front first, then the quicker ones."""
    known = {entry: cell for entry, cell in cells.items() if cell.whole["bundle"]["digest"] in accuracy}
    order = sorted(known, key=lambda entry: (per_image_ms(known[entry]), -_auroc(known[entry], accuracy)))
    front = pareto([_cost_and_worth(known[entry], accuracy) for entry in order])
    order = [*(order[i] for i in front), *(order[i] for i in range(len(order)) if i not in front)]
    return {entry: known[entry] for entry in order}


def _cost_and_worth(cell: Measured, accuracy: dict[str, Accuracy]) -> tuple[float, float]:
    return per_image_ms(cell), _auroc(cell, accuracy)


def accuracy_plot(
    points: Entries, colours: Colours, accuracy: dict[str, Accuracy], content: str, number: int
) -> list[Plot]:
    """Image AUROC against latency; the line joins what nothing else is both faster and better than."""
    shown = [points[entry] for entry in colours]
    if not points:
        return []

    def draw(wide: bool) -> Figure:
        figure, axes = new_axes(wide=wide, height_px=340 if wide else 290, left_px=68)
        every = [_cost_and_worth(cell, accuracy) for cell in points.values()]
        best = [every[i] for i in pareto(every)]
        axes.step(*zip(*best, strict=True), where="post", color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for cell, colour in zip(shown, colours.values(), strict=True):
            found = accuracy[cell.whole["bundle"]["digest"]]
            at = per_image_ms(cell)
            if found.low is not None and found.high is not None:
                axes.plot((at, at), (found.low, found.high), color=SERIES[colour], linewidth=1.2)
            axes.plot(at, found.image_auroc, "o", color=SERIES[colour], markersize=7)
        axes.set_xlim(left=0)
        axes.margins(0.08)
        axes.set_xlabel("median ms per image")
        axes.set_ylabel("image AUROC")
        return figure

    data = ", ".join(sorted({accuracy[cell.whole["bundle"]["digest"]].data for cell in points.values()}))
    note = f"Image AUROC on {data} with its 95 % interval. The broken line is the Pareto front."
    if len(points) > len(shown):
        note += f" {len(points) - len(shown)} slower or less accurate cells are left out."
    return [
        Plot(f"accuracy-{number + 1}", f"Accuracy and latency: {content}", note, draw, _keys(colours, shown))
    ]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of points that no other is both cheaper and better than, the cheapest first.

    Args:
        points: cost and worth of each.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def bank_of(cell: Measured) -> int:
    """Entries of its bundle's memory bank."""
    count: int = cell.whole["bundle"]["memory_bank"]
    return count


def _auroc(cell: Measured, accuracy: dict[str, Accuracy]) -> float:
    return accuracy[cell.whole["bundle"]["digest"]].image_auroc


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
