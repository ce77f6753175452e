"""Settings that cannot act: each setting of a recipe does something, or is refused with what stands in its way.

What counts is a value other than the default, so that a resolved recipe, which writes every setting, says nothing that
is refused. Settings of a stage that an explicit ``stages`` leaves out wait for it and are no mistake.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from data.common.config import Config
from evaluation.systems import parse
from pipelines.loading.checks import fill_in
from pipelines.loading.needs import RULES, Dotted, has
from pipelines.recipe.errors import Problem
from pipelines.recipe.rates import SETTING
from pipelines.recipe.schema import Recipe
from pipelines.stages.table import STAGES

SettingPath = tuple[str | int, ...]
MANY = 8  # settings named in a sentence


def idle(recipe: Recipe, resolved: bool = False) -> list[Problem]:
    """Every setting that is not as by default and cannot act.

    Args:
        resolved: trivet wrote the recipe with every setting; rates that it chose, perhaps for a base that has moved,
            are nobody's mistake.
    """
    found: dict[tuple[str | int, ...], str] = {}
    for path, value, default in leaves(recipe, defaults(recipe)):
        if value == default or (resolved and path[-1] == SETTING):
            continue
        for one in RULES:
            if any(covers(name, path) for name in one.settings) and not one.acts(recipe):
                found.setdefault(path, f"has no effect: {one.why}. Remove it, or change what it needs")
    return [*found.items(), *_unused(recipe)]


def waiting(recipe: Recipe, given: Collection[str] = ()) -> str:
    """A sentence about settings of stages that an explicit ``stages`` leaves out; empty where there are none.

    Those of a stage whose result is given say how it was made, and wait for nothing.
    """
    if "stages" not in recipe.model_fields_set:
        return ""
    here = {path for path, _ in idle(recipe)}
    names = [path for path, _ in idle(_called_for(recipe, [*recipe.stages, *given])) if path not in here]
    if not names:
        return ""
    return f"settings that wait, since `stages` does not name the stage that takes them: {_some(names)}"


def replaced(recipe: Recipe, given: Collection[str]) -> str:
    """A sentence about settings of the recipe's stages whose results it is given; empty where there are none."""
    if not (stages := [name for name in recipe.stages if name in given]):
        return ""
    whole = {group for name, group in WHOLE.items() if name in stages}
    names = [p for p, value, usual in leaves(recipe, defaults(recipe)) if value != usual and _begins(p, whole)]
    acting = {path for path, _ in idle(_called_for(recipe, recipe.stages))} | {CARD}
    left = [name for name in recipe.stages if name not in given]
    names += [path for path, _ in idle(_called_for(recipe, left)) if path not in acting and path not in names]
    if not names:
        return ""
    options = " ".join(f"{name}=..." for name in stages)
    are = "is" if len(stages) == 1 else "are"
    return f"settings without effect, since {' and '.join(stages)} {are} given (--input {options}): {_some(names)}"


OPTIONAL = [name for name, field in Recipe.model_fields.items() if field.default is None]
WHOLE = {"pretrain": ("base", "pretrain")} | {name: (name,) for name in OPTIONAL}
"""Stages all of whose settings are their own; what is needed of the others' without them, ``RULES`` says."""
CARD = ("evaluation", "rankings")  # a given reward model is examined on them as well


def _called_for(recipe: Recipe, stages: Sequence[str]) -> Recipe:
    """The recipe as if its settings had called for these stages alone."""
    made = recipe.model_copy(update={"stages": tuple(stages)})
    made.model_fields_set.discard("stages")
    return made


def _begins(path: SettingPath, groups: Collection[tuple[str, ...]]) -> bool:
    return any(path[: len(group)] == group for group in groups)


def _some(paths: Sequence[SettingPath]) -> str:
    """The first few of many settings."""
    more = f" and {len(paths) - MANY} more" if len(paths) > MANY else ""
    return ", ".join(".".join(map(str, path)) for path in paths[:MANY]) + more


def covers(name: Dotted, path: tuple[str | int, ...]) -> bool:
    parts = tuple(name.split("."))
    return path[: len(parts)] == parts


def leaves(config: Config, default: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, Any, Any]]:
    """Path, value and default of every setting; groups inside groups are opened, lists are not."""
    for name, field in type(config).model_fields.items():
        if field.exclude:
            continue
        value = getattr(config, name)
        usual = default.get(name, ...) if isinstance(default, dict) else ...
        if isinstance(value, Config):
            yield from leaves(value, usual, (*path, name))
        else:
            yield (*path, name), value, field.get_default(call_default_factory=True) if usual is ... else usual


def defaults(recipe: Recipe) -> dict[str, Any]:
    """Defaults that follow from other settings, as ``fill_in`` gives them."""
    base = (
        recipe.base
        if isinstance(recipe.base, str)
        else {"pretrain": {"model": recipe.base.pretrain.model.model_dump()}}
    )
    value = {"init": recipe.ppo.value.init}
    made: dict[str, Any] = {"base": base, "ppo": {"max_new_tokens": recipe.ppo.max_new_tokens, "value": value}}
    made |= {"adapter": {"method": recipe.adapter.method}, "reward": {"base": recipe.reward.base}}
    if recipe.distil is not None:
        made["distil"] = {"teacher": recipe.distil.teacher}
    fill_in(made, recipe.base_dir)
    made["reward"].pop("base")
    made.get("distil", {}).pop("teacher", None)  # which no recipe has by default
    kept = {k: v for k, v in made["ppo"].items() if k in ("max_prompt_tokens", SETTING)}
    return {k: v for k, v in made.items() if k in STAGES and STAGES[k].learns} | {
        "ppo": kept | {"value": {k: v for k, v in value.items() if k == "head"}}
    }


def _unused(recipe: Recipe) -> list[Problem]:
    """Declared by name, and named by nothing."""
    config, out = recipe.evaluation, list[Problem]()
    if not has(recipe, "evaluate"):
        return []
    named = [parse(name) for name in (*config.systems, *config.lm_eval.systems)]
    choosing, asked = {n.by for n in named if n.kind == "best_of"}, {n.value.replace("-", "_") for n in named}
    for name in config.best_of_by:
        if name not in choosing:
            path = ("evaluation", "best_of_by", name)
            out.append((path, f"has no effect: no system chooses by it; add best_of_4:{name} to evaluation.systems"))
    for name in config.prompted:
        if name not in asked:
            path = ("evaluation", "prompted", name)
            out.append((path, f"has no effect: no system asks so; add prompted:{name} to evaluation.systems"))
    return out
