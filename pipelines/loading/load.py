"""YAML (or a dict) -> a checked recipe: read, unknown keys refused, defaults filled in, values and their fit checked.

Each of these happens once and in this order; whatever is wrong is reported by file, line and key. Imports no torch.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from data.common.errors import UserError
from data.common.strict_json import read_object
from data.local_files import why_absent
from pipelines.loading.checks import AMOUNTS, default_stages, fill_in, problems_across
from pipelines.loading.idle import idle
from pipelines.recipe.errors import coerced, problems_of, recipe_error, unknown_keys
from pipelines.recipe.renamed import in_new_names, old_names
from pipelines.recipe.schema import Recipe
from pipelines.recipe.yaml_source import Source, apply_override, read_text
from pipelines.stages.table import STAGES
from pipelines.workspace.kept_recipes import kept_file
from pipelines.workspace.run_folder import RECIPE, is_run


def load_recipe(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), may_idle: bool = False
) -> Recipe:
    """Read and check a recipe.

    Args:
        recipe: a YAML file, or the same as a dict.
        overrides: dotted settings such as ``ppo.kl_coef=0.1``; the value is YAML.
        may_idle: let settings pass that cannot act, as where a finished run is evaluated in another way.

    Raises:
        UserError: names file, line and key of everything that is wrong, and the fix.
    """
    if isinstance(recipe, Mapping):
        source = Source(name="recipe", data=json.loads(json.dumps(recipe, default=_plain)))
        return _checked(source, Path.cwd(), overrides, may_idle=may_idle)
    source, folder = read_text(_text_of(Path(recipe)), str(recipe)), Path(recipe).resolve().parent
    resolved = Path(recipe).name == RECIPE and is_run(folder)
    if resolved:  # trivet wrote it, perhaps under other names
        source = in_new_names(source)
    return _checked(source, folder, overrides, resolved, may_idle)


def load_kept(run: Path, stage: str) -> Recipe | None:
    """The recipe that a stage's result in a run was made with; None where it was not kept, as in runs of before.

    Raises:
        UserError: what is there is no recipe; the file is named.
    """
    if (file := kept_file(run, stage)) is None:
        return None
    found = read_object(file)
    source = in_new_names(Source(name=str(file), data=found.get("recipe") or {}))
    return _checked(source, Path(found.get("recipe_folder") or run), resolved=True, may_idle=True)


def load_text(text: str, file: Path) -> Recipe:
    """Read and check the text of a recipe that is to be written to ``file``, where its relative paths start.

    Raises:
        UserError: names line and key of everything that is wrong, and the fix.
    """
    return _checked(read_text(text, str(file)), file.resolve().parent)


def _checked(
    source: Source, folder: Path, overrides: Sequence[str] = (), resolved: bool = False, may_idle: bool = False
) -> Recipe:
    """The recipe of plain values; ``resolved``: trivet wrote them, every setting with its value."""
    for override in overrides:
        apply_override(source, override)
    shape = recipe_class()
    renamed = old_names(source.data)
    at = {path for path, _ in renamed}
    if problems := [*renamed, *(p for p in unknown_keys(source.data, [shape]) if p[0] not in at)]:
        raise recipe_error(source, problems)
    fill_in(source.data, None if resolved else folder)
    try:
        made = with_stages(shape.model_validate(source.data | {"base_dir": folder}))
    except ValidationError as error:
        raise recipe_error(source, problems_of(error, source)) from None
    if resolved:  # what a run leaves to its data is settled when it starts
        made = closed(made)
    if problems := coerced(source.data, made) or problems_across(made) or ([] if may_idle else idle(made, resolved)):
        raise recipe_error(source, problems)
    return made


def closed(recipe: Recipe) -> Recipe:
    """The recipe with its own values for whatever it leaves out of what could follow from the data."""
    for group, name in (dotted.split(".") for dotted in AMOUNTS):
        if (config := getattr(recipe, group)) is not None:
            own = config.model_copy(update={name: getattr(config, name)})
            recipe = recipe.model_copy(update={group: own})
    return recipe


def recipe_class() -> type[Recipe]:
    """``Recipe`` with the groups that entries of the stage table bring along (``Stage.config``)."""
    own = {stage.group: stage.config for stage in STAGES.values() if stage.config is not None}
    fields: dict[str, Any] = {group: (config, config()) for group, config in own.items()}
    return create_model("Recipe", __base__=Recipe, **fields) if fields else Recipe


def with_stages(recipe: Recipe) -> Recipe:
    """With the stages that the settings call for, where none are named: the set of what was named stays as it is."""
    if "stages" not in recipe.model_fields_set:
        object.__setattr__(recipe, "stages", default_stages(recipe))
    return recipe


def _text_of(path: Path) -> str:
    try:
        if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: is no regular file but a pipe, socket or device; write the recipe to a file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path.is_symlink():
            raise UserError(f"{path} {why_absent(path)}") from None
        near = sorted(p.name for p in path.parent.glob("*.y*ml"))[:5] if path.parent.is_dir() else []
        hint = f" There is: {', '.join(near)}." if near else ""
        raise UserError(f"{path}: no such recipe.{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the recipe in it, for example {path / RECIPE}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Path):
        return str(value)
    raise UserError(f"recipe: {value!r} is no plain value (text, number, true or false, list, mapping)")
