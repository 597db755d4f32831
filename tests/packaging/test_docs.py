"""The documentation against the code: fields, keys, flags, examples, links."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pcbench.readme import BEGIN, END
from pcrun._version import __version__
from pcrun.bundle.bundle import GoldenSample, GoldenSamples
from pcrun.bundle.manifest import SCHEMA_VERSION, Manifest, parse_manifest
from pcrun.detector import AnomalyDetector
from pcrun.errors import BundleError
from pcrun.sinks.record import event_record, result_record
from pcrun.sinks.text import Csv
from pcrun.sources import Event, Frame
from tests.contract.damage import edit_manifest
from tests.exporter.student_graphs import write_student
from tests.packaging.commands import COMMON_FLAGS, PROGRAMS, command_tree, flags_of

ROOT = Path(__file__).resolve().parents[2]
BUNDLE_PAGE = ROOT / "docs" / "bundle.md"
CLI_PAGE = ROOT / "docs" / "cli.md"
BACKBONES_PAGE = ROOT / "docs" / "backbones.md"
# The tables of figures, which a command writes, apart.
README_LINES = 150

# The parser asks for them before it looks at any default.
ALWAYS_REQUIRED = ("manifest.schema_version", "manifest.method")
SCALARS = {bool: "true/false", int: "integer", float: "number", str: "text"}


def pages() -> list[Path]:
    return [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "benchmarks" / "peers" / "README.md",
    ]


def sections(page: Path) -> dict[str, str]:
    """Heading (without #, backticks) -> the text below it, subsections not included."""
    found: dict[str, str] = {}
    heading, in_code = "", False
    for line in page.read_text(encoding="utf-8").splitlines():
        in_code ^= line.startswith("```")
        if not in_code and re.match(r"#+ ", line):
            heading = line.lstrip("# ").replace("`", "")
            assert heading not in found, f"{page.name} has two sections {heading!r}"
            found[heading] = ""
        else:
            found[heading] = found.get(heading, "") + line + "\n"
    return found


def table_rows(text: str) -> list[list[str]]:
    """Cells of all table rows whose first cell is code."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def code_words(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


# ---- docs/bundle.md


def without_none(hint: Any) -> tuple[Any, bool]:
    """The hint without `None`, and whether it had it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (inner,) = (a for a in typing.get_args(hint) if a is not type(None))
        return inner, True
    return hint, False


def documented_type(hint: Any) -> str:
    """How the page writes the JSON type of a field."""
    inner, nullable = without_none(hint)
    if nullable:
        return documented_type(inner) + " or null"
    origin, args = typing.get_origin(inner), typing.get_args(inner)
    if origin is tuple:
        return "list of " + documented_type(args[0])
    if origin is dict:
        return "map" if args[1] is Any else "map to " + documented_type(args[1])
    return "table" if dataclasses.is_dataclass(inner) else SCALARS[inner]


def tables_of(record: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every dataclass below `record` with its dotted place: what the page has a section for."""
    yield where, record
    prefix = "" if where == "manifest" else where + "."
    for name, hint in typing.get_type_hints(record).items():
        inner, _ = without_none(hint)
        origin, args = typing.get_origin(inner), typing.get_args(inner)
        if dataclasses.is_dataclass(inner):
            yield from tables_of(inner, prefix + name)
        elif origin is tuple and dataclasses.is_dataclass(args[0]):
            yield from tables_of(args[0], f"{prefix}{name}[]")
        elif origin is dict and dataclasses.is_dataclass(args[1]):
            yield from tables_of(args[1], f"{prefix}{name}.NAME")


TABLES = dict(tables_of(Manifest, "manifest"))
# Their sections are those of scoring.threshold and scoring.calibrated_on.
del TABLES["scoring.pixel_threshold"]
for key in ("threshold", "pixel_threshold", "calibrated_on"):
    del TABLES[f"scoring.history[].{key}"]


def documented_keys(where: str) -> dict[str, list[str]]:
    """Key -> the cells of its row."""
    return {row[0].strip("`"): row for row in table_rows(sections(BUNDLE_PAGE)[where])}


@pytest.mark.parametrize("where", TABLES)
def test_bundle_page_has_exactly_the_keys_and_types_of_the_manifest(where: str) -> None:
    hints = typing.get_type_hints(TABLES[where])
    shown = {key: row[1] for key, row in documented_keys(where).items()}
    assert shown == {name: documented_type(hint) for name, hint in hints.items()}


@pytest.mark.parametrize("where", TABLES)
def test_bundle_page_names_the_default_of_each_key_that_may_be_left_out(where: str) -> None:
    rows = documented_keys(where)
    for field in dataclasses.fields(TABLES[where]):
        named = re.findall(r"left out: `(.+)`", rows[field.name][2])
        if field.default is dataclasses.MISSING or f"{where}.{field.name}" in ALWAYS_REQUIRED:
            assert named == [], f"{where}.{field.name} is required"
        else:
            assert named == [json.dumps(field.default)], f"{where}.{field.name}"


def test_golden_sample_keys_and_types_are_documented() -> None:
    rows = {row[0].strip("`"): row[1] for row in table_rows(sections(BUNDLE_PAGE)["Golden samples"])}
    hints = typing.get_type_hints(GoldenSamples) | typing.get_type_hints(GoldenSample)
    assert rows == {name: documented_type(hint) for name, hint in hints.items()}


def test_bundle_page_lists_every_file_of_a_bundle(made_bundle: Callable[..., Path]) -> None:
    bundle = made_bundle(image_score="reweighted", search_dim=3)
    present = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    listed = {row[0].split(",")[0].strip("`") for row in table_rows(sections(BUNDLE_PAGE)["Files"])}
    assert listed == present - {"samples/001.png"}  # "samples/000.png, ..."


def test_documented_schema_version_is_the_current_one() -> None:
    assert f"`schema_version` is {SCHEMA_VERSION}." in sections(BUNDLE_PAGE)["Versions"]
    for key in ALWAYS_REQUIRED:
        raw: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "method": "patchcore"}
        del raw[key.removeprefix("manifest.")]
        with pytest.raises(BundleError, match=key.removeprefix("manifest.").split("_")[0]):
            parse_manifest(json.dumps(raw).encode())


@pytest.mark.parametrize("image_score", ["max", "reweighted"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("image_hw", [(32, 48), (75, 40), (20, 130)])
def test_example_without_this_project_gives_the_detectors_score(
    made_bundle: Callable[..., Path], tmp_path: Path, image_score: str, batch: int, image_hw: tuple[int, int]
) -> None:
    bundle = made_bundle(image_score=image_score, batch=batch)
    image = np.random.default_rng(7).integers(0, 256, (*image_hw, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "part.png"), image)
    expected = pytest.approx(detector_score(bundle, image), rel=1e-5)
    assert run_example(bundle, tmp_path / "part.png") == expected


def test_example_without_this_project_crops_and_keeps_the_aspect(tiny_bundle: Path, tmp_path: Path) -> None:
    changes = {"resize_height_px": 41, "resize_width_px": 55, "keep_aspect": True}
    edit_manifest(tiny_bundle, lambda manifest: manifest["preprocess"].update(changes))
    image = np.random.default_rng(7).integers(0, 256, (67, 120, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "part.png"), image)
    expected = pytest.approx(detector_score(tiny_bundle, image), rel=1e-5)
    assert run_example(tiny_bundle, tmp_path / "part.png") == expected


def run_example(bundle: Path, image_path: Path) -> float:
    """Execute the page's Python, which may not use this project, and call its function."""
    (source,) = code_blocks(BUNDLE_PAGE.read_text(encoding="utf-8"), "python")
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    assert imported == {"json", "pathlib", "cv2", "numpy", "onnxruntime"}
    namespace: dict[str, Any] = {}
    exec(compile(source, str(BUNDLE_PAGE), "exec"), namespace)
    score: float = namespace["image_score"](bundle, image_path)
    return score


def detector_score(bundle: Path, image: np.ndarray) -> float:
    return AnomalyDetector.load(bundle, provider="cpu", threads=1)(image).image_score


# ---- docs/cli.md


def flags_in_tables(text: str) -> set[str]:
    """Flags in the first two columns: those that the section claims for its command."""
    cells = " ".join(" ".join(row[:2]) for row in table_rows(text))
    return {word for word in code_words(cells) if word.startswith("-") and word != "-"}


@pytest.mark.parametrize("name", [n for n, c in command_tree().items() if flags_of(c)])
def test_cli_page_has_exactly_the_flags_of_each_command(name: str) -> None:
    text = sections(CLI_PAGE)
    listed = flags_in_tables(text[name])
    if name == "pcexport build":
        listed |= flags_in_tables(text["Configuration keys"])
    assert listed == flags_of(command_tree()[name])


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    documented = {heading for heading in sections(CLI_PAGE) if heading.split()[0] in PROGRAMS}
    # `pcexport` and `pcbench` do nothing by themselves.
    assert documented == set(command_tree()) - {"pcexport", "pcbench"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_flag_named_anywhere_exists(page: Path) -> None:
    known = COMMON_FLAGS.union(*map(flags_of, command_tree().values()))
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = {flag for code in code_words(text) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    assert named <= known


def example_commands() -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for page in pages():
        for block in code_blocks(page.read_text(encoding="utf-8"), "sh"):
            for line in block.splitlines():
                found = re.search(rf"(?:^|\s)((?:{'|'.join(PROGRAMS)})\s.*)", line)
                if found:
                    lines.append((page.name, found[1]))
    return lines


@pytest.mark.parametrize("page, line", example_commands())
def test_example_commands_parse(page: str, line: str) -> None:
    """Unknown flags, missing ones and values out of range are errors; files are not looked at."""
    program, *arguments = shlex.split(re.split(r"\s(?:\|\||>|\|)\s", line)[0], comments=True)
    tree = command_tree()
    if arguments[0] in tree[program].commands:
        program, arguments = f"{program} {arguments[0]}", arguments[1:]
    params = tree[program].make_context(program, arguments).params
    if program == "pcrun":
        names = ("images", "video", "camera", "watch", "stdin_frames", "sources")
        assert sum(params[name] not in (None, ()) for name in names) == 1


def config_rows() -> dict[str, list[str]]:
    return {row[0].strip("`"): row for row in table_rows(sections(CLI_PAGE)["Configuration keys"])}


def config_fields() -> list[Any]:
    return list(dataclasses.fields(importlib.import_module("pcexport.config").BuildConfig))


def test_cli_page_has_exactly_the_configuration_keys_in_order() -> None:
    assert list(config_rows()) == [field.name for field in config_fields()]


@pytest.mark.parametrize("field", config_fields(), ids=lambda field: field.name)
def test_documented_flag_default_and_choices_of_a_key(field: Any) -> None:
    _, flags, default, meaning = config_rows()[field.name]
    flag = "--" + field.name.replace("_", "-")
    assert code_words(flags) == ([flag, f"--no-{flag[2:]}"] if isinstance(field.default, bool) else [flag])
    shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    assert default == ("-" if field.default is None else f"`{shown}`")
    assert set(field.metadata["choices"]) <= set(code_words(meaning))


def whole_number_fields() -> list[Any]:
    hints = typing.get_type_hints(importlib.import_module("pcexport.config").BuildConfig)
    return [field for field in config_fields() if without_none(hints[field.name])[0] is int]


@pytest.mark.parametrize("field", whole_number_fields(), ids=lambda field: field.name)
def test_documented_range_of_a_key_is_the_one_enforced(field: Any) -> None:
    found = re.search(r"(\d+) to (\d+)", config_rows()[field.name][3])
    assert found, f"{field.name} has no range"
    low, high = map(int, found.groups())
    config = importlib.import_module("pcexport.config").BuildConfig
    for inside in (low, high):
        config(**{field.name: inside})
    for outside in (low - 1, high + 1):
        with pytest.raises(ValueError, match=field.name):
            config(**{field.name: outside})


def test_keys_documented_as_not_recorded_are_those() -> None:
    unrecorded = {field.name for field in config_fields() if not field.metadata["in_bundle"]}
    text = sections(CLI_PAGE)["Configuration keys"]
    (sentence,) = re.findall(r"All keys but (.+?) are recorded", text, re.DOTALL)
    assert set(code_words(sentence)) == unrecorded


def test_documented_recipes_are_the_installed_ones() -> None:
    rows = {row[0].strip("`"): code_words(row[1])[0] for row in table_rows(sections(CLI_PAGE)["Recipes"])}
    load_config = importlib.import_module("pcexport.config").load_config
    assert set(rows) == set(importlib.import_module("pcexport.config").recipe_names())
    assert rows == {name: load_config(name, {}).backbone for name in rows}


def test_example_recipe_loads(tmp_path: Path) -> None:
    (recipe,) = code_blocks(CLI_PAGE.read_text(encoding="utf-8"), "yaml")
    (tmp_path / "line3.yaml").write_text(recipe, encoding="utf-8")
    config = importlib.import_module("pcexport.config").load_config(str(tmp_path / "line3.yaml"), {})
    written = dict(line.split("  #")[0].split(": ") for line in recipe.splitlines() if ": " in line)
    for key in ("backbone", "coreset_ratio", "false_alarm_rate"):
        assert str(getattr(config, key)) == written[key]


FIELD_TYPES = ("text", "number", "integer", "list", "table")


def test_documented_result_lines_have_the_fields_of_real_ones(tiny_bundle: Path) -> None:
    image = cv2.imread(str(tiny_bundle / "samples/001.png"))
    frame = Frame("part.png", 0, image, None, 1.0)
    real = result_record(frame, AnomalyDetector.load(tiny_bundle, provider="cpu")(image))
    assert real["regions"], "the tiny bundle's defective sample has a region"
    failed = result_record(Frame("bad.png", 0, None, "why", 0.0), None)
    text = sections(CLI_PAGE)["Results"]
    shown, shown_failed, shown_event = (json.loads(block) for block in code_blocks(text, "json"))
    assert list(shown) == list(real)
    assert list(shown["regions"][0]) == list(real["regions"][0])
    assert list(shown["timings_ms"]) == list(real["timings_ms"])
    assert list(shown_failed) == list(failed)
    fields = [row[0].strip("`") for row in table_rows(text) if len(row) == 3 and row[1] in FIELD_TYPES]
    assert fields == list(real)
    lost = Event("lost", "rtsp://***@10.0.0.5/ch1", {"reason": "no frame for 5 s", "retry_in_s": 0.5})
    assert shown_event == event_record(lost, 1772352930.25)

    (header,) = code_blocks(text, "csv")
    assert next(csv.reader([header.replace("\n", "")])) == Csv().head().strip().split(",")


def test_documented_environment_variables_are_read() -> None:
    rows = [row for row in table_rows(CLI_PAGE.read_text(encoding="utf-8")) if row[0].strip("`").isupper()]
    documented = {name for row in rows for name in code_words(row[0])}
    sources = [p for folder in ("runtime", "exporter", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    text = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    named = set(re.findall(r'"((?:PCRUN|PCEDGE|PCBENCH|OPENCV)_[A-Z_]+|NO_COLOR)"', text))
    assert documented == named


# ---- docs/datasets.md


def test_datasets_page_shows_every_layout_as_the_command_does() -> None:
    known = importlib.import_module("pcexport.datasets").LAYOUTS
    text = sections(ROOT / "docs" / "datasets.md")
    assert [heading for heading in text if heading in known] == list(known)
    for name, layout in known.items():
        assert code_blocks(text[name], "text")[0] == layout.expects + "\n", name


# ---- docs/backbones.md


def test_backbones_page_has_exactly_the_facts_and_types_of_a_student_file() -> None:
    facts = importlib.import_module("pcexport.backbones.student_facts")
    rows = {row[0].strip("`"): row[1] for row in table_rows(sections(BACKBONES_PAGE)["The file"])}
    hints = typing.get_type_hints(facts.StudentFacts) | typing.get_type_hints(facts.CheckValues)
    assert rows == {name: documented_type(hint) for name, hint in hints.items()}


def test_backbones_page_names_every_key_that_a_student_file_decides(tmp_path: Path) -> None:
    network = importlib.import_module("pcexport.graph.network")
    config = importlib.import_module("pcexport.config").BuildConfig()
    read_student = importlib.import_module("pcexport.backbones.student_file").read_student
    write_student(tmp_path / "a.onnx")
    decided = [key for key, _, _ in network._fixed_keys(read_student(tmp_path / "a.onnx"), config, (28, 28))]
    rows = table_rows(sections(BACKBONES_PAGE)["What cannot be asked of a student"])
    assert [row[0].strip("`") for row in rows] == decided


# ---- all pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in map(anchor_of, sections(linked)), f"{page.name} links to {target}"


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figures = text[text.index(BEGIN) : text.index(END)]
    assert len(text.splitlines()) - len(figures.splitlines()) <= README_LINES


def test_changelog_names_this_version() -> None:
    assert __version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
