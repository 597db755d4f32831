"""The shape of the sources: no circular imports, and nothing too long to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"pcrun": "runtime", "pcexport": "exporter", "pcbench": "benchmarks"}
MOST_LINES = {"file": 400, "function": 60}
# Tests are read one by one, and their tables of cases are long.
MOST_LINES_OF_TESTS = {"file": 500, "function": 75}


def sources() -> dict[str, str]:
    """Module name -> source, of all three packages."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """What an import runs: neither the inside of functions nor what type checkers alone see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_on_import(child)


def imported(name: str, source: str, modules: set[str]) -> set[str]:
    """The modules of `modules` that `name` imports, the packages they lie in included."""
    asked: set[str] = set()
    for node in run_on_import(ast.parse(source)):
        if isinstance(node, ast.Import):
            asked |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # A name of the package itself, where it is no module in it.
            asked |= inner if inner <= modules else {node.module} | (inner & modules)
    found = asked & modules
    for module in asked:
        parts = module.split(".")
        found |= {".".join(parts[:end]) for end in range(1, len(parts))} & modules - around(name)
    return found - {name}


def around(name: str) -> set[str]:
    """The packages that a module lies in: they are being imported already."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def cycle_in(imports: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a circle, the first one again at the end."""
    finished: set[str] = set()

    def walk(path: list[str]) -> list[str] | None:
        for module in sorted(imports[path[-1]] - finished):
            if module in path:
                return [*path[path.index(module) :], module]
            circle = walk([*path, module])
            if circle:
                return circle
        finished.add(path[-1])
        return None

    return next((circle for start in imports if start not in finished and (circle := walk([start]))), None)


def graph_of(found: dict[str, str]) -> dict[str, set[str]]:
    return {name: imported(name, source, set(found)) for name, source in found.items()}


def test_no_module_imports_itself_by_way_of_others() -> None:
    imports = graph_of(sources())
    assert {"pcrun.detector", "pcexport.build", "pcbench.cli"} <= set(imports)
    assert "pcrun.scoring.open" in imports["pcrun.detector"]
    circle = cycle_in(imports)
    assert circle is None, " imports ".join(circle)


@pytest.mark.parametrize(
    ("found", "circle"),
    [
        ({"a": "import b", "b": "from c import x", "c": "import a"}, ["a", "b", "c", "a"]),
        ({"p": "from p.b import x", "p.a": "", "p.b": "from p import y"}, ["p", "p.b", "p"]),
        ({"p": "", "p.a": "from p import b", "p.b": "try:\n  import p.a\nfinally: 1"}, ["p.a", "p.b", "p.a"]),
        # A package is imported with what lies in it.
        ({"p": "import q.b", "p.a": "", "q": "", "q.b": "import p.a"}, ["p", "q.b", "p"]),
        ({"a": "import b", "b": "def f():\n  import a"}, None),
        ({"a": "import b", "b": "if TYPE_CHECKING:\n  import a"}, None),
        ({"p": "import p.a", "p.a": "import p.b", "p.b": "x = 1"}, None),
    ],
)
def test_circles_are_found_and_named(found: dict[str, str], circle: list[str] | None) -> None:
    assert cycle_in(graph_of(found)) == circle


def too_long(source: str, most: dict[str, int]) -> list[str]:
    lines = len(source.splitlines())
    found = [f"{lines} lines"] if lines > most["file"] else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
            length = node.end_lineno - node.lineno + 1
            if length > most["function"]:
                found.append(f"{node.name} with {length} lines")
    return found


@pytest.mark.parametrize(
    ("folders", "most"), [((*PACKAGES.values(), "scripts"), MOST_LINES), (("tests",), MOST_LINES_OF_TESTS)]
)
def test_no_file_and_no_function_is_too_long(folders: tuple[str, ...], most: dict[str, int]) -> None:
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 80
    long = {
        path.relative_to(ROOT).as_posix(): found
        for path in paths
        if (found := too_long(path.read_text(encoding="utf-8"), most))
    }
    assert not long, f"at most {most['file']} lines a file and {most['function']} a function: {long}"


def test_what_is_too_long_is_found() -> None:
    source = "class A:\n    def f(self):\n" + "        1\n" * 3
    assert too_long(source, {"file": 5, "function": 4}) == []
    assert too_long(source, {"file": 4, "function": 3}) == ["5 lines", "f with 4 lines"]
