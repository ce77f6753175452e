"""The shape of the code: imports point one way, functions and files stay short, modules say what they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ["data", "models", "reward", "stages", "evaluation", "pipelines"]  # each may import those before it
LONGEST_FUNCTION, LONGEST_FILE = 60, 400
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
FORBIDDEN = ("eval", "exec")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_rooms(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            names = [node.module or ""]
        for name in names:
            if (room := name.split(".")[0]) in ROOMS:
                yield room, node.lineno


def too_far_up(room: str, tree: ast.Module) -> list[str]:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    return [f"line {line} imports {found}" for found, line in imported_rooms(tree) if found not in allowed]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    assert not too_far_up(path.relative_to(ROOT).parts[0], tree_of(path))


def test_an_upward_import_would_be_seen() -> None:
    upward = ast.parse("def f():\n    from stages.sft import run\n")
    assert too_far_up("models", upward) == ["line 2 imports stages"]
    assert not too_far_up("evaluation", upward)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_and_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


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
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert listed == ROOMS
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in FILES}
    assert folders <= set(listed)
