"""Plant a defect in a copy of the source tree. Knows nothing of what is planted or who looks for it."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("data", "models", "reward", "stages", "evaluation", "pipelines")


def mutated(source: str, old: str, new: str) -> str:
    """The changed source.

    Raises:
        ValueError: the old text is not there exactly once, the result is no Python, or its tree is the same.
    """
    if source.count(old) != 1:
        raise ValueError(f"occurs {source.count(old)} times instead of once: {old!r}")
    changed = source.replace(old, new)
    try:
        tree = ast.dump(ast.parse(changed))
    except SyntaxError as error:
        raise ValueError(f"does not parse: {error}") from error
    if tree == ast.dump(ast.parse(source)):
        raise ValueError(f"leaves the syntax tree as it is: {old!r}")
    return changed


def copy_tree(to: Path) -> Path:
    """Sources, tests and settings; no bytecode, so that nothing stale is read."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=skip)
    for name in ("pyproject.toml", "trivet_names.py"):
        shutil.copy(ROOT / name, to / name)
    return to
