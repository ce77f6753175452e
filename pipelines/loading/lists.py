"""Lists of a recipe in which an item does nothing: a name given twice, a term of a reward without weight."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.metric_table import collision, columns_of_metric
from pipelines.recipe.errors import Problem
from pipelines.recipe.schema import Recipe
from reward.settings import RewardPart

OWN_JUDGES = ("gold", "held_out_reward", "reward")  # as results call those that score single responses


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
    for i, name in enumerate(config.metrics):
        for other in config.metrics[:i]:
            both = [column for column in columns_of_metric(other) if column in columns_of_metric(name)]
            if both and other != name:
                out.append((("evaluation", "metrics", i), collision(name, other, both[0])))
    for i, judge in enumerate(config.judges):
        if judge.name in OWN_JUDGES:
            why = f"'{judge.name}' is what results call a judge of their own; choose another name"
            out.append((("evaluation", "judges", i, "name"), why))
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
            if any(part.title == f"{other.title}/transformed" for other in parts if other.normalise or other.clip):
                why = f"'{part.title}' is what metrics call another term after `normalise` and `clip`; change this name"
                out.append(((*path, i), why))
            if part.weight == 0:
                out.append(((*path, i, "weight"), "has no effect: it is 0. Remove the term, or give it a weight"))
    return out
