"""Tables for people, with one look in `pcexport`, `pcrun` and `pcbench`.

Where rows come one at a time (results, trials of `tune`, findings of `doctor`) they are plain lines: the
frame of a table is as wide as its longest row, which is known at the end.
"""

import sys
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.table import Table

# Where there is no terminal: wide enough for a digest or a path to stay on one line, for grep.
_WIDTH = 160


def table_of(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]] = (),
    *,
    title: str | None = None,
    words: Collection[int] = (0,),
) -> Table:
    """A table with a head; more rows and sections may be added.

    Args:
        columns: their names.
        rows: a text per column.
        title: above it.
        words: numbers of the columns that hold words; the others hold figures, which end at the right.
    """
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number in words else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def facts_table(rows: Iterable[tuple[str, str]] = (), *, title: str) -> Table:
    """Names and values, without a head."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value", overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def show(*parts: Table | str) -> None:
    """Print tables and lines on standard output."""
    console = Console(
        file=sys.stdout,
        highlight=False,
        markup=False,
        soft_wrap=True,
        width=None if sys.stdout.isatty() else _WIDTH,
    )
    for part in parts:
        console.print(part)
