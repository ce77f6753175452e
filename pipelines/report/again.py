"""How a run's results are made once more: the command, with the settings in which the newest call's recipe differs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.report.run_files import RunFiles
from pipelines.workspace.run_folder import RECIPE

PLAIN = re.compile(r"[^.=\s]+")  # a name that a dotted setting can hold


def command(files: RunFiles) -> str:
    """The command that repeats what the page is about, next to the old folder, relative where it can be.

    It starts from ``recipe.yaml``, which is the newest call's, and sets what the results were made with instead.
    """
    here, path = Path.cwd(), files.path.resolve()
    path = path.relative_to(here) if path.is_relative_to(here) else path
    parts = ["trivet", "run", str(path / RECIPE), "--run-dir", f"{path}-again"]
    if files.shown_recipe != files.recipe:
        newest, own = settings_of(files.recipe), settings_of(files.shown_recipe)
        changes = [change for key in own for change in overrides(newest.get(key), own[key], str(key))]
        parts += ["--set", *changes] if changes else []
    return shlex.join(parts)


def settings_of(recipe: str) -> dict[str, Any]:
    """The plain values of a resolved recipe; none of what is no recipe."""
    try:
        found = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def seed_of(files: RunFiles) -> Any:
    """The seed of what the page is about: as its recipe has it, else of the newest call; None where neither says it."""
    seed = settings_of(files.shown_recipe).get("seed")
    return seed if isinstance(seed, int) else files.run.get("seed")


def overrides(before: Any, wanted: Any, dotted: str) -> list[str]:
    """``a.b=value`` for every setting at or below ``dotted`` that is to be another one than before.

    A group is set as a whole where it has to lose a setting, or where a name in it cannot be written with dots.
    """
    if before == wanted:
        return []
    if _within(before, wanted):
        return [one for key in wanted for one in overrides(before.get(key), wanted[key], f"{dotted}.{key}")]
    return [f"{dotted}={json.dumps(wanted, ensure_ascii=False)}"]


def _within(before: Any, wanted: Any) -> bool:
    """Whether one group becomes the other when some of its settings are set."""
    if not (isinstance(before, Mapping) and isinstance(wanted, Mapping)):
        return False
    return before.keys() <= wanted.keys() and all(isinstance(key, str) and PLAIN.fullmatch(key) for key in wanted)
