"""Plots as SVG: on a page they take its colours, in a file they have colours of their own."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Drawn as these colours and replaced afterwards, so that light and dark themes reach the plots.
INK, MUTED, LINE = "#02010a", "#02010b", "#02010c"
SERIES = tuple(f"#03010{number}" for number in range(8))
_ON_PAGE = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES)},
}
# Told apart with red-green blindness too (Okabe and Ito 2008), the yellow darkened.
_SERIES_IN_FILE = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d00", "#6b7780",
)  # fmt: skip
_IN_FILE = {
    INK: "#1a2127",
    MUTED: "#5b6771",
    LINE: "#e2e6e9",
    **dict(zip(SERIES, _SERIES_IN_FILE, strict=True)),
}
_WIDE_PX, _NARROW_PX = 912, 360


@dataclass(frozen=True)
class Key:
    """An entry of a plot's legend: the number of its colour, and its name."""

    colour: int
    name: str


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Draw and save with these settings, whatever the user's are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn by the browser.
        warnings.simplefilter("ignore", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pcbench", "font.size": 12.5})
        yield


def new_axes(*, wide: bool, height_px: int, left_px: int = 56, top_px: int = 12) -> tuple[Figure, Axes]:
    """A figure whose unit is the CSS pixel, with one pair of plain axes."""
    width = _WIDE_PX if wide else _NARROW_PX
    figure = Figure(figsize=(width / 72, height_px / 72), dpi=72)
    figure.patch.set_visible(False)
    bottom = 48
    axes = figure.add_axes(
        (
            left_px / width,
            bottom / height_px,
            (width - left_px - 14) / width,
            (height_px - bottom - top_px) / height_px,
        )
    )
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, colors=MUTED, which="both")
    axes.grid(color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    return figure, axes


def on_page(figure: Figure, label: str, name: str) -> Markup:
    """`<svg>` without size and fonts of its own: what is left follows the page.

    Args:
        figure: drawn in the colours of this module.
        label: says what it shows.
        name: goes before its ids; unique on the page.
    """
    view_box, body = _body(figure)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", body)
    for drawn, themed in _ON_PAGE.items():
        body = body.replace(drawn, themed)
    return Markup(f'<svg viewBox="{view_box}" role="img" aria-label="{escape(label)}">{body}')


def as_file(figure: Figure) -> bytes:
    """A whole SVG file on white."""
    view_box, body = _body(figure)
    for drawn, fixed in _IN_FILE.items():
        body = body.replace(drawn, fixed)
    width, height = view_box.split()[2:]
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {spaces} viewBox="{view_box}" width="{width}" height="{height}">'
    return f'{head}<rect width="100%" height="100%" fill="#ffffff"/>{body}\n'.encode("utf-8", "replace")


def _body(figure: Figure) -> tuple[str, str]:
    """The view box, and what stands between the SVG's tags with its end tag."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None  # matplotlib always writes it
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    return box[1], re.sub(r"\s*\n\s*", " ", body).strip()
