"""`pcbench report`: figures are those of the samples, plots are there when there is something to show."""

import copy
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcbench.cli import main
from pcbench.report.colours import shared_colours
from pcbench.report.drawing import SERIES
from pcbench.report.inputs import read_inputs
from pcbench.report.plots import all_plots, pareto
from pcbench.report.tables import milliseconds, section_of
from pcexport.cli import main as evaluate
from pcrun.images.image_io import encode_png
from tests.browser import chromium, complaints
from tests.data.make_tiny_bundle import smooth_image

Writer = Callable[..., Path]
_HOSTILE = """<script>alert("1")</script>&'$x$|"""


@pytest.fixture
def write(real_cell: dict[str, Any], tmp_path: Path) -> Writer:
    """Writes the measured cell with other settings; gives the folder of all of them."""
    folder = tmp_path / "results"
    folder.mkdir()

    def write_cell(*, bank: int = 100, digest: str = "a", **asked: Any) -> Path:
        cell = copy.deepcopy(real_cell)
        cell["asked"] |= asked
        cell["bundle"] |= {"memory_bank": bank, "digest": digest * 64}
        (folder / f"{len(list(folder.iterdir()))}.json").write_text(json.dumps(cell), encoding="utf-8")
        return folder

    return write_cell


def test_copies_of_a_gpu_are_one_part_of_the_bars_and_two_rows_of_the_tables(
    write: Writer, tmp_path: Path
) -> None:
    folder = write()
    plain = next(plot for plot in all_plots(read_inputs([folder])) if plot.name == "stages")
    assert "copies" not in [key.name for key in plain.key]
    (path,) = folder.iterdir()
    cell = json.loads(path.read_text(encoding="utf-8"))
    for content in cell["contents"]:
        stages = content["scenarios"]["single-stream"]["stages_ms"]
        for stage, factor in (("host_to_device", 2.0), ("device_to_host", 3.0)):
            stages[stage] = {name: factor * value for name, value in stages["embed"].items()}
    path.write_text(json.dumps(cell), encoding="utf-8")
    inputs = read_inputs([folder])
    shown = next(plot for plot in all_plots(inputs) if plot.name == "stages")
    assert [key.name for key in shown.key][-1] == "copies"
    rows = {name for name, _ in section_of(inputs.cells[0], inputs).rows}
    assert {"host_to_device", "device_to_host"} < rows


def evaluation(digest: str, auroc: float | None) -> dict[str, Any]:
    """The part of `pcexport eval`'s JSON that is used."""
    metric = {"value": auroc, "low": auroc and auroc - 0.01, "high": auroc and auroc + 0.01}
    return {
        "bundle": {"digest": digest * 64},
        "metrics": {"image": {"auroc": metric}},
        "runs_on": {},
        "data": {"name": "tiles"},
    }


def report(folder: Path, output: Path, *arguments: str) -> str:
    assert main(["report", str(folder), "-o", str(output), *arguments]) == 0
    return output.read_text(encoding="utf-8")


def test_figures_are_those_of_the_samples(write: Writer, tmp_path: Path) -> None:
    folder = write()
    inputs = read_inputs([folder])
    assert len(inputs.cells) == 2
    for cell in inputs.cells:
        section = section_of(cell, inputs)
        name, figures = section.rows[-1]
        samples = np.array(cell.samples_ms)
        assert name == "query" and figures[0] == str(len(samples))
        expected = [
            samples.mean(),
            *np.percentile(samples, (50, 90, 95, 99)),
            samples.max(),
            samples.std(ddof=1),
        ]
        for shown, value in zip(figures[1:], expected, strict=True):
            # One decimal from 100 ms on, two below.
            assert float(shown.replace(",", "")) == pytest.approx(value, abs=0.006 if value < 100 else 0.06)
    text = report(folder, tmp_path / "r.html")
    assert f">{milliseconds(inputs.cells[0].result['latency_ms']['median'])}<" in text


def test_page_is_whole_and_asks_for_nothing(write: Writer, tmp_path: Path) -> None:
    text = report(write(), tmp_path / "out" / "r.html")
    assert "<script" not in text and "@import" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", text)
    assert not re.findall(r"#0[23]010\w", text), "a colour of a plot was not replaced"
    identities = re.findall(r' id="([^"]+)"', text)
    assert len(identities) == len(set(identities))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(identities)


def test_random_weights_are_named_before_the_figures(write: Writer, tmp_path: Path) -> None:
    folder = write(bundle="wide")
    text = report(folder, tmp_path / "r.html")
    assert "random weights" not in text
    path = folder / "0.json"
    cell = json.loads(path.read_text())
    cell["bundle"]["weights"] = "untrained (seed 0)"
    path.write_text(json.dumps(cell))
    for output in (tmp_path / "r.html", tmp_path / "r.md"):
        text = report(folder, output)
        assert "wide: random weights" in text and text.index("random weights") < text.index("p99")


def test_cells_are_folded_where_there_are_many(write: Writer, tmp_path: Path) -> None:
    folder = write(threads=1)
    assert report(folder, tmp_path / "few.html").count("<details open>") == 2
    for threads in range(2, 6):
        write(threads=threads)
    many = report(folder, tmp_path / "many.html")
    assert many.count("<details>") == 10 and "<details open>" not in many


def test_names_and_titles_are_text(write: Writer, tmp_path: Path) -> None:
    folder = write(bundle=_HOSTILE)
    write(bundle="other")
    assert "<script>" not in report(folder, tmp_path / "r.html", "--title", _HOSTILE)
    markdown = report(folder, tmp_path / "r.md")
    row = next(line for line in markdown.splitlines() if line.startswith("| <script>"))
    assert "\\|" in row
    for path in tmp_path.glob("*.svg"):
        ET.fromstring(path.read_text(encoding="utf-8"))


def test_asked_and_real_settings_stand_side_by_side(write: Writer, tmp_path: Path) -> None:
    text = report(write(threads=0), tmp_path / "r.html")
    assert re.search(r"<dt>asked for</dt><dd>[^<]*threads 0,", text)
    assert re.search(r"<dt>real settings</dt><dd>[^<]*threads 1,", text)


def test_warnings_and_what_could_not_run_are_shown(
    write: Writer, real_cell: dict[str, Any], tmp_path: Path
) -> None:
    folder = write()
    failed = {key: real_cell[key] for key in ("results_version", "kind", "asked", "machine", "versions")}
    (folder / "failed.json").write_text(json.dumps({**failed, "error": "no CUDA here"}))
    data = json.loads((folder / "0.json").read_text())
    data["contents"][0]["scenarios"]["single-stream"]["warnings"] = ["the processor throttled"]
    (folder / "0.json").write_text(json.dumps(data))
    for name in ("r.html", "r.md"):
        text = report(folder, tmp_path / name)
        assert "no CUDA here" in text and "the processor throttled" in text


def test_memory_banks_and_accuracy_are_plotted_when_there_are_several(write: Writer) -> None:
    folder = write(bundle="small", bank=100, digest="a")
    names = [plot.name for plot in all_plots(read_inputs([folder]))]
    assert names == ["percentiles-1", "percentiles-2", "stages"]
    write(bundle="large", bank=10_000, digest="b")
    (folder / "eval.json").write_text(json.dumps([evaluation("a", 0.95), evaluation("b", 0.97)]))
    inputs = read_inputs([folder])
    names = [plot.name for plot in all_plots(inputs)]
    assert names[3:] == ["memory-bank-1", "accuracy-1", "memory-bank-2", "accuracy-2"]
    by_bundle = {cell.asked["bundle"]: dict(section_of(cell, inputs).facts) for cell in inputs.cells}
    assert by_bundle["small"]["image AUROC"] == "0.9500 on tiles"
    assert by_bundle["large"]["image AUROC"] == "0.9700 on tiles"


def test_the_same_settings_have_the_same_colour_in_the_plots_of_every_kind_of_image(write: Writer) -> None:
    """The medians of the two kinds are in another order, and one setting was measured with one kind alone."""
    medians = {"none": (3.0, 1.0), "image": (1.0, 4.0), "mask": (2.0, 3.0), "full": (4.0, 2.0)}
    for number, (exactness, of_kinds) in enumerate(medians.items()):
        folder = write(exactness=exactness)
        path = folder / f"{number}.json"
        cell = json.loads(path.read_text(encoding="utf-8"))
        for content, median in zip(cell["contents"], of_kinds, strict=True):
            content["scenarios"]["single-stream"]["latency_ms"]["median"] = median
        if exactness == "image":
            del cell["contents"][1]
        path.write_text(json.dumps(cell), encoding="utf-8")
    (folder / "eval.json").write_text(json.dumps([evaluation("a", 0.95)]))
    plots = {plot.name: plot for plot in all_plots(read_inputs([folder]))}
    for name in ("percentiles", "accuracy"):
        first, second = ({key.name: key.colour for key in plots[f"{name}-{n}"].key} for n in (1, 2))
        assert set(first) == set(medians) and set(second) == set(medians) - {"image"}
        assert len(set(first.values())) == len(first)
        assert second == {key: first[key] for key in second}
        (axes,) = plots[f"{name}-2"].draw(True).axes
        drawn = [line.get_color() for line in axes.get_lines() if line.get_color() in SERIES]
        assert set(drawn) == {SERIES[colour] for colour in second.values()}


def test_a_plot_of_more_settings_than_colours_uses_each_colour_once() -> None:
    many = len(SERIES)
    first, second = shared_colours([list(range(many + 3)), list(range(5, 5 + many))])
    assert list(first) == list(range(many)) and list(second) == list(range(5, 5 + many))
    for colours in (first, second):
        assert sorted(colours.values()) == list(range(many))
    assert all(second[entry] == first[entry] for entry in first if entry in second)


def test_an_evaluation_is_found_by_the_digest_of_its_bundle(
    made_bundle: Callable[..., Path], real_cell: dict[str, Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    for folder in ("train/good", "test/good", "test/bad"):
        (tmp_path / "parts" / folder).mkdir(parents=True)
        for number in range(4):
            image = smooth_image(rng)
            (tmp_path / "parts" / folder / f"{number}.png").write_bytes(encode_png(image))
    evaluated = tmp_path / "evaluation.html"
    assert evaluate(["eval", str(made_bundle()), str(tmp_path / "parts"), "-o", str(evaluated)]) == 0
    (tmp_path / "cell.json").write_text(json.dumps(real_cell))
    inputs = read_inputs([tmp_path / "cell.json", evaluated.with_suffix(".json")])
    (accuracy,) = inputs.accuracy.values()
    found = json.loads(evaluated.with_suffix(".json").read_text())["metrics"]["image"]["auroc"]
    assert accuracy.image_auroc == found["value"] and not inputs.left_out
    assert "accuracy-1" in [plot.name for plot in all_plots(inputs)]


def test_front_by_hand() -> None:
    points = [(3.0, 0.9), (1.0, 0.8), (2.0, 0.95), (2.0, 0.85), (5.0, 0.95)]
    assert pareto(points) == [1, 2]
    assert pareto([]) == []


def test_markdown_names_its_plots(write: Writer, tmp_path: Path) -> None:
    text = report(write(), tmp_path / "r.md")
    named = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert sorted(named) == sorted(path.name for path in tmp_path.glob("*.svg")) and len(named) == 3


def test_reports_of_pcrun_bench_are_taken(write: Writer, real_cell: dict[str, Any], tmp_path: Path) -> None:
    bench = {
        key: value for key, value in real_cell.items() if key not in ("asked", "kind", "results_version")
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench))
    (cell, _) = read_inputs([path]).cells
    assert cell.asked["bundle"] == bench["bundle"]["name"] and cell.asked["threads"] == 1


def test_other_files_are_left_out_by_name(
    write: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write()
    (folder / "b.json").write_text(json.dumps({"results_version": 1, "kind": "build"}))
    (folder / "e.json").write_text(json.dumps(evaluation("a", None)))
    text = report(folder, tmp_path / "r.html")
    assert "b.json: of kind build" in text and "e.json: an evaluation without an image AUROC" in text
    assert "left out: b.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, output, message",
    [
        ({"kind": "build"}, "r.html", "None of the files holds latencies"),
        (None, "r.pdf", "ends in .html or .md"),
        (None, "r.html", "holds no JSON file"),
    ],
)
def test_wrong_use(
    tmp_path: Path, content: Any, output: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    if content:
        (folder / "x.json").write_text(json.dumps(content))
    assert main(["report", str(folder), "-o", str(tmp_path / output)]) == 2
    assert message in capsys.readouterr().err


def test_two_accuracies_of_one_bundle(write: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write()
    (folder / "e1.json").write_text(json.dumps(evaluation("a", 0.9)))
    (folder / "e2.json").write_text(json.dumps(evaluation("a", 0.8)))
    assert main(["report", str(folder), "-o", str(folder / "r.html")]) == 2
    assert "holds another accuracy" in capsys.readouterr().err


def test_page_in_a_browser(write: Writer, tmp_path: Path) -> None:
    pytest.importorskip("selenium", reason="selenium is not installed")
    path = tmp_path / "r.html"
    write(threads=2)
    report(write(), path)
    with chromium(tmp_path, width=1200) as driver:
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            for width in (1200, 390):
                metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == 390}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                driver.get(path.as_uri())
                # Nothing hangs over the side, and one drawing of each plot is seen.
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width
                seen = "return [...document.querySelectorAll('svg')].filter(s => s.clientWidth > 200).length"
                assert driver.execute_script(seen) == 3
            back = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", back))) < 384) == (scheme == "dark")
        assert complaints(driver) == []
