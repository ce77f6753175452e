"""Open a finished run again: its recipe, its corpus, its artifacts, for scoring, evaluation, export and chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.common.errors import UserError
from models.backbone.artifacts import MANIFEST, load_artifact, problems, read_artifact
from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from pipelines.workspace.run_folder import RECIPE, find_run, read_run, stopped_at_gate

__all__ = ["find_run", "is_done", "open_run", "stage_folder"]


def open_run(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """The pipeline of a run folder: relative paths as from its recipe's folder, inputs as they were given to it."""
    run = find_run(path)
    given = {
        stage: folder
        for stage, folder in read_run(run).get("inputs", {}).items()
        if stage in STAGES and Path(folder).is_dir()
    }
    return Pipeline.from_recipe(run / RECIPE, overrides, run, given, may_idle=True)


def stage_folder(pipeline: Pipeline, stage: str) -> Path:
    """The folder of a stage's result, verified: the one that the run was given, or its own.

    Raises:
        UserError: it is not finished, or altered since.
    """
    if stage not in pipeline.given:
        folder = pipeline.run_dir / STAGES[stage].folder
        if not is_done(pipeline, stage) and (why := stopped_at_gate(pipeline.run_dir, stage)):
            raise UserError(why)
        load_artifact(folder, f"{stage} stage")
        return folder
    if (found := read_artifact(pipeline.given[stage])) is not None and (wrong := problems(found)):
        raise UserError(f"{stage} stage, which the run was given: {wrong[0]}")
    return pipeline.given[stage]


def is_done(pipeline: Pipeline, stage: str) -> bool:
    """Whether a run has a stage's result, or was given it."""
    return stage in pipeline.given or (pipeline.run_dir / STAGES[stage].folder / MANIFEST).is_file()
