"""A finished stage of another run as a model on a base of its own: what a student is taught by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from models.backbone.artifacts import load_artifact
from models.backbone.processes import Processes
from pipelines.execution.loaded_models import OpenedModel
from pipelines.stages.table import STAGES
from pipelines.workspace.run_folder import read_run, run_of


def open_stage(
    folder: Path, make: Callable[[Path, Mapping[str, str], str], Any], processes: Processes
) -> OpenedModel | None:
    """The model of a stage with its own run's base and rendering; None where the folder is of no run.

    Args:
        folder: of the stage.
        make: gives the pipeline of a run folder, of the folders that it was given and of the stage that is wanted.
        processes: that work together here.

    Raises:
        UserError: the stage has no model that responds, is not finished, or was altered.
    """
    run = run_of(folder)
    if run is None:
        return None
    responds = [n for n, stage in STAGES.items() if stage.asked_in_chat or stage.role == "base"]
    name = next((n for n, stage in STAGES.items() if run / stage.folder == folder), None)
    if name not in responds:
        what = "is a run" if name is None else f"holds no model that responds ({name})"
        raise UserError(f"{folder}: {what}; name the folder of one of its stages {', '.join(responds)}")
    load_artifact(folder, f"{name} stage")
    inputs = read_run(run).get("inputs", {})
    other = make(run, {n: path for n, path in inputs.items() if n in STAGES and Path(path).is_dir()}, str(name))
    other.__dict__["processes"] = processes
    role, loaded = str(STAGES[name].role), other.loaded
    if role == "base" and name != other.recipe.base_stage:  # a base that was trained further afterwards
        loaded.recipe = loaded.recipe.model_copy(update={"continued": None})
    elif role != "base":
        loaded.load(name, role, folder)
    return OpenedModel(base=loaded.base(), role=role, renderer=loaded.renderer())
