"""Open a finished run again: its recipe, its corpus, its artifacts, for scoring, evaluation, export and chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.backbone.artifacts import MANIFEST, load_artifact
from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from pipelines.workspace.run_folder import RECIPE, find_run, read_run

__all__ = ["find_run", "open_run", "stage_folder"]


def open_run(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """The pipeline of a run folder: relative paths as from its recipe's folder, inputs as they were given to it."""
    run = find_run(path)
    given = {
        stage: folder
        for stage, folder in read_run(run).get("inputs", {}).items()
        if stage in STAGES and Path(folder).is_dir() and not (run / STAGES[stage].folder / MANIFEST).is_file()
    }
    return Pipeline.from_recipe(run / RECIPE, overrides, run, given, may_idle=True)


def stage_folder(run: Path, stage: str) -> Path:
    """A finished stage's folder, verified.

    Raises:
        UserError: it is not finished, or altered since.
    """
    folder = run / STAGES[stage].folder
    load_artifact(folder, f"{stage} stage")
    return folder
