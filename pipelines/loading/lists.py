"""Lists of a recipe in which an item does nothing: a name given twice, a term of a reward without weight."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.recipe.errors import Problem
from pipelines.recipe.schema import Recipe
from reward.settings import RewardPart


def repeated_names(recipe: Recipe) -> list[Problem]:
    """Names that evaluation is given twice: the second would have no effect, or take the place of the first."""
    config, out = recipe.evaluation, list[Problem]()
    lists: dict[tuple[str, ...], Sequence[str]] = {
        ("systems",): config.systems,
        ("metrics",): config.metrics,
        ("judges",): [judge.name for judge in config.judges],
        ("labels",): config.labels,
        ("lm_eval", "tasks"): config.lm_eval.tasks,
        ("lm_eval", "systems"): config.lm_eval.systems,
    }
    for keys, names in lists.items():
        for i, name in enumerate(names):
            if name in names[:i]:
                out.append((("evaluation", *keys, i), f"{name!r} is listed twice; remove one"))
    return out


def idle_terms(recipe: Recipe) -> list[Problem]:
    """Terms of a reward that is empty, names one twice, or gives one no weight."""
    rewards: dict[tuple[str, ...], Sequence[RewardPart]] = {("ppo", "reward"): recipe.ppo.reward}
    rewards |= {("evaluation", "best_of_by", name): parts for name, parts in recipe.evaluation.best_of_by.items()}
    out: list[Problem] = []
    for path, parts in rewards.items():
        if not parts:
            out.append((path, "names no term of the reward; remove it for {source: model}, or name one"))
        for i, part in enumerate(parts):
            if part.title in [other.title for other in parts[:i]]:
                how = "add the weights up, or give each a `name` of its own"
                out.append(((*path, i), f"'{part.title}' is listed twice; {how}"))
            if part.weight == 0:
                out.append(((*path, i, "weight"), "has no effect: it is 0. Remove the term, or give it a weight"))
    return out
