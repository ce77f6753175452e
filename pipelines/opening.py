"""Open a finished run again: its recipe, its corpus, its artifacts, for scoring, evaluation, export and chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError
from models.artifacts import load_artifact
from pipelines.jobs import STAGES
from pipelines.runner import Pipeline


def find_run(path: Path) -> Path:
    """The run folder of a path: itself, or the parent of one of its stages.

    Raises:
        UserError: neither.
    """
    path = path.resolve()
    for folder in (path, path.parent):
        if (folder / "recipe.yaml").is_file():
            return folder
    raise UserError(f"{path}: no run folder (recipe.yaml) there or one level up; `trivet ls` lists the runs")


def open_run(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """The pipeline of a run folder, with relative paths seen from where its recipe lay."""
    run = find_run(path)
    return Pipeline.from_recipe(run / "recipe.yaml", overrides, run)


def stage_folder(run: Path, stage: str) -> Path:
    """A finished stage's folder, verified.

    Raises:
        UserError: it is not finished, or altered since.
    """
    folder = run / STAGES[stage].folder
    load_artifact(folder, f"{stage} stage")
    return folder
