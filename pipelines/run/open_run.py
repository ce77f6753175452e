"""Open a finished run again: its recipe, its corpus, its artifacts, for scoring, evaluation, export and chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.common.errors import UserError
from models.backbone.artifacts import MANIFEST, load_artifact, problems, read_artifact
from pipelines.loading.load import load_kept
from pipelines.run.given_results import otherwise
from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from pipelines.workspace.kept_recipes import kept_file
from pipelines.workspace.run_folder import RECIPE, find_run, read_run, stopped_at_gate

__all__ = ["find_run", "is_done", "open_run", "stage_folder"]


def open_run(path: Path, overrides: Sequence[str] = (), stage: str | None = None) -> Pipeline:
    """The pipeline of a run folder: relative paths as from its recipe's folder, inputs as they were given to it.

    Args:
        path: the run folder, or one in it.
        overrides: settings that take the place of the recipe's.
        stage: whose result is wanted, with the recipe that it was made with; by default the recipe of the newest call.
    """
    run = find_run(path)
    given = {
        stage: folder
        for stage, folder in read_run(run).get("inputs", {}).items()
        if stage in STAGES and Path(folder).is_dir()
    }
    if stage in STAGES and stage not in given and not overrides and (recipe := load_kept(run, str(stage))) is not None:
        return Pipeline.from_loaded(recipe, run, run, given)
    return Pipeline.from_recipe(run / RECIPE, overrides, run, given, may_idle=True)


def stage_folder(pipeline: Pipeline, stage: str) -> Path:
    """The folder of a stage's result, verified: the one that the run was given, or its own.

    Raises:
        UserError: it is not finished, altered since, or of another template, stops or limit than the pipeline's.
    """
    if stage not in pipeline.given:
        folder = pipeline.run_dir / STAGES[stage].folder
        if not is_done(pipeline, stage) and (why := stopped_at_gate(pipeline.run_dir, stage)):
            raise UserError(why)
        load_artifact(folder, f"{stage} stage")
        if differ := otherwise(pipeline.recipe, stage, folder):
            raise UserError(
                f"{stage} was made otherwise than the recipe says that it is opened with: {', '.join(differ)}. "
                f"{_remedy(pipeline.run_dir, stage)}"
            )
        return folder
    if (found := read_artifact(pipeline.given[stage])) is not None and (wrong := problems(found)):
        raise UserError(f"{stage} stage, which the run was given: {wrong[0]}")
    return pipeline.given[stage]


def _remedy(run: Path, stage: str) -> str:
    """What helps where a result differs from the recipe that it is opened with."""
    if (own := kept_file(run, stage)) is None:
        return (
            f"The recipe that it was made with was not kept: run that once more with --until {stage}, which skips what "
            f"is finished and keeps it, or make {stage} again by `trivet run {run / RECIPE}`"
        )
    return (
        f"Its own recipe is {own}: where that says the same, a file that it names has changed, such as a template; put "
        f"the file back as it was, or run the stage again"
    )


def is_done(pipeline: Pipeline, stage: str) -> bool:
    """Whether a run has a stage's result, or was given it."""
    return stage in pipeline.given or (pipeline.run_dir / STAGES[stage].folder / MANIFEST).is_file()
