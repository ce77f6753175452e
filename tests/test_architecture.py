"""The shape of the code: imports point one way at every depth, nothing runs in a circle, modules say what they are."""

from __future__ import annotations

import ast
import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["data", "models", "reward", "stages", "evaluation", "pipelines"]  # each may import those before it
FLOORS = {
    "data": ["common", "storage", "readers", "formats", "cleaning", "demo", "doctor"],
    "models": ["backbone", "hub", "fast", "roles", "sampling"],
    "reward": ["terms", "card"],
    "stages": ["safe_points", "training", "ppo"],
    "evaluation": ["metrics", "judges"],
    "pipelines": [
        *("recipe", "execution", "evaluate", "stages", "workspace", "loading"),
        *("run", "export", "init", "report", "ui", "cli"),
    ],
}
"""The folders inside each room, from the ground up: each may import those before it. Loose files may stand between."""
LONG_FILE, LONG_FUNCTION, COMPLEX = 350, 60, 14  # from here on a file or function is pointed out, not refused
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FORBIDDEN = ("eval", "exec")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(p): p for p in FILES}


def imported(tree: ast.Module, known: Mapping[str, object] = MODULES) -> Iterator[tuple[str, int]]:
    """Every module of the project that a file imports: at its head, inside functions, and for annotations alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module or "", node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno


def of_project(tree: ast.Module) -> Iterator[tuple[str, int]]:
    return ((name, line) for name, line in imported(tree) if name.split(".")[0] in ROOMS)


def folder_of(module: str) -> str:
    """``models.fast`` for a module in that folder; a loose file stands for itself."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir() else module


def too_far_up(module: str, tree: ast.Module) -> list[str]:
    """Imports of a room, or of a folder in the own room, that stands above."""
    room, *inside = folder_of(module).split(".")
    out = []
    for name, line in of_project(tree):
        other, *other_inside = folder_of(name).split(".")
        floors = FLOORS[room]
        up = ROOMS.index(other) > ROOMS.index(room)
        if other == room and inside and other_inside and {inside[0], other_inside[0]} <= set(floors):
            up = floors.index(other_inside[0]) > floors.index(inside[0])
        if up:
            out.append(f"line {line} imports {name}")
    return out


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    assert not too_far_up(module_of(path), tree_of(path))


def test_an_upward_import_would_be_seen() -> None:
    upward = ast.parse("def f():\n    from stages.sft import run\n")
    assert too_far_up("models.roles.files", upward) == ["line 2 imports stages.sft"]
    assert not too_far_up("evaluation.results", upward)
    inside = ast.parse("from models.sampling import generate")
    assert too_far_up("models.fast.weights", inside) == ["line 1 imports models.sampling.generate"]


def test_every_folder_has_its_floor() -> None:
    for room, floors in FLOORS.items():
        folders = {p.name for p in (ROOT / room).iterdir() if p.is_dir() and (p / "__init__.py").is_file()}
        assert folders == set(floors)


def test_the_map_names_every_floor_in_order() -> None:
    rows = [line.split("|") for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()]
    shown = {row[1].strip(" `"): re.findall(r"`(\w+)`", row[3]) for row in rows if len(row) == 5 and "`" in row[1]}
    assert {room: shown[room] for room in ROOMS} == FLOORS
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert " -> ".join(reversed(ROOMS)) in text and " -> ".join(reversed(FLOORS["pipelines"])) in text


def test_no_import_runs_in_a_circle() -> None:
    """Neither between files nor between folders and loose files; imports in functions and for annotations count."""
    files: dict[str, set[str]] = {m: {n for n, _ in of_project(tree_of(p))} - {m} for m, p in MODULES.items()}
    assert not circle(files)
    folders: dict[str, set[str]] = {}
    for module, names in files.items():
        here = folder_of(module)
        folders.setdefault(here, set()).update({folder_of(n) for n in names} - {here})
    assert not circle(folders)


def test_a_circle_would_be_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_no_test_imports_another_test(path: Path) -> None:
    names = [n for name, _ in imported(tree_of(path), {}) for n in name.split(".") if name.startswith("tests.")]
    assert not [n for n in names if n.startswith("test_")]


def complexity(node: ast.AST) -> int:
    """McCabe's number: one more than the branches of a function."""
    kinds = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.BoolOp, ast.comprehension, ast.match_case)
    return 1 + sum(isinstance(n, kinds) for n in ast.walk(node))


def test_long_files_and_functions_are_pointed_out() -> None:
    """A look, not a limit: nobody should pack lines to stay below a number."""
    long = []
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONG_FILE:
            long.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONG_FUNCTION or complexity(node) > COMPLEX:
                    long.append(f"{name_of(path)}: {node.name} has {length} lines, {complexity(node)} branches")
    if long:
        warnings.warn("worth another look:\n  " + "\n  ".join(long), stacklevel=1)
    assert complexity(ast.parse("def f(x):\n    return x if x and x > 1 else 0\n")) == 3


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_line_is_packed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "fmt: skip" not in text and "fmt: off" not in text


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_have_a_docstring(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled_evaluated_or_run_from_the_hub(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "dill", "cloudpickle"} & {n.split(".")[0] for n in names}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN and called != "torch.load", f"line {node.lineno}: {called}"
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    assert isinstance(keyword.value, ast.Constant) and keyword.value.value is False


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert listed == sorted({p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in FILES})
