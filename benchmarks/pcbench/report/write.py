"""The job behind `pcbench report`: read, draw, write one page or Markdown with its plots."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from pcbench.report.drawing import as_file, on_page, own_style
from pcbench.report.inputs import Inputs, read_inputs
from pcbench.report.plots import Plot, all_plots
from pcbench.report.tables import FIGURES, machines, notes, overview, section_of
from pcrun.errors import PcError
from pcrun.files import make_folder, write_file

SUFFIXES = (".html", ".md")


def write_report(paths: Sequence[Path], output: Path, title: str) -> Inputs:
    """Write a report; gives what it was made of.

    Args:
        paths: result files, or folders of them.
        output: ends in .html or .md; the plots of the latter are SVG files beside it.
        title: of the report.

    Raises:
        PcError: no latency is among the files, one cannot be read, or another suffix.
    """
    if output.suffix not in SUFFIXES:
        raise PcError(f"{output} is neither a page nor Markdown. Expected a name that ends in .html or .md.")
    inputs = read_inputs(paths)
    make_folder(output.parent)
    plots = all_plots(inputs)
    if output.suffix == ".html":
        text = _rendered("latency.html.j2", inputs, plots, title, drawn=_inline(plots))
    else:
        text = _rendered("latency.md.j2", inputs, plots, title, files=_files(plots, output))
    write_file(output, text.encode("utf-8", "replace"))
    return inputs


def _inline(plots: Sequence[Plot]) -> list[tuple[Markup, Markup]]:
    """Each plot for a screen and for a phone."""
    with own_style():
        return [
            (
                on_page(plot.draw(True), plot.title, f"{plot.name}-wide"),
                on_page(plot.draw(False), plot.title, f"{plot.name}-narrow"),
            )
            for plot in plots
        ]


def _files(plots: Sequence[Plot], output: Path) -> list[str]:
    """Write each plot beside the text; gives their names."""
    names = []
    with own_style():
        for plot in plots:
            path = output.with_name(f"{output.stem}-{plot.name}.svg")
            figure = plot.draw(True)
            plot.add_legend(figure)
            write_file(path, as_file(figure))
            names.append(path.name)
    return names


def _rendered(template: str, inputs: Inputs, plots: Sequence[Plot], title: str, **drawings: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment.get_template(template).render(
        title=title,
        inputs=inputs,
        plots=plots,
        figures=FIGURES,
        overview=overview(inputs.cells),
        notes=notes(inputs.cells),
        sections=[section_of(cell, inputs) for cell in inputs.cells],
        machines=machines(inputs),
        **drawings,
    )
