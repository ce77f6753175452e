"""The shape of the model that distillation learns from, for plans; no weights are read."""

from __future__ import annotations

from pathlib import Path

from data.common.errors import UserError
from data.common.strict_json import read_object
from models.roles.files import CONFIG
from pipelines.loading.load import load_recipe
from pipelines.recipe.schema import Recipe
from pipelines.stages.shapes import Shape, shape_of
from pipelines.workspace.run_folder import RECIPE, run_of


def teacher_shape(recipe: Recipe) -> Shape | None:
    """That of ``distil.teacher``'s base: of a run's stage by its recipe, of an adapter by the base that it names.

    Returns:
        None without distillation, and where the base is not on this machine or cannot be read, which the stage says.
    """
    if recipe.distil is None:
        return None
    source, folder = recipe.distil.teacher, (recipe.base_dir / Path(recipe.distil.teacher).expanduser()).resolve()
    try:
        if folder.is_dir() and (run := run_of(folder)) is not None:
            return shape_of(load_recipe(run / RECIPE, may_idle=True))
        if (folder / CONFIG).is_file():
            source = str(read_object(folder / CONFIG).get("base_model_name_or_path") or "")
        return shape_of(recipe, source) if source else None
    except UserError:
        return None
