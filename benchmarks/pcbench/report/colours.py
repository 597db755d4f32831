"""Which colour a line of a plot has: the same in the plots of all kinds of image."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeAlias

from pcbench.latency.cell import PAIRED_BY
from pcbench.latency.load import Measured
from pcbench.report.drawing import SERIES

# The number of its colour by entry, for what a plot shows.
Colours: TypeAlias = dict[Hashable, int]
# Cells of one kind of image by what tells them apart.
Entries: TypeAlias = dict[Hashable, Measured]


def shared_colours(orders: Iterable[Sequence[Hashable]]) -> list[Colours]:
    """Colours for the foremost entries of each plot, as many as there are colours.

    An entry has the same colour in two plots; in further ones too, while no plot shows what others do not.

    Args:
        orders: the entries of each plot, the most important first.
    """
    given: Colours = {}
    plots = []
    for order in orders:
        shown = order[: len(SERIES)]
        colours: Colours = {}
        for entry in shown:
            if entry in given and given[entry] not in colours.values():
                colours[entry] = given[entry]
        free = [number for number in range(len(SERIES)) if number not in colours.values()]
        # One that stands for nothing yet comes first.
        free.sort(key=lambda number: number in given.values())
        colours |= zip([entry for entry in shown if entry not in colours], free, strict=False)
        given = colours | given
        plots.append({entry: colours[entry] for entry in shown})
    return plots


def told_apart(cells: Iterable[Measured]) -> Entries:
    """Cells of one kind of image by their settings; each file of the same settings gives an entry."""
    seen: Counter[Hashable] = Counter()
    entries: Entries = {}
    for cell in cells:
        settings = (*(cell.asked[name] for name in PAIRED_BY), cell.scenario, cell.run)
        entries[(*settings, seen[settings])] = cell
        seen[settings] += 1
    return entries
