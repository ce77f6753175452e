"""When settings call for a stage, what it takes, and the user's functions and classifiers that it asks."""

from __future__ import annotations

from data.common.user_functions import offered_for
from data.splits import Corpus
from pipelines.recipe.derived import choosing, evaluation_prompts
from pipelines.recipe.schema import Recipe


def base(recipe: Recipe) -> tuple[str, ...]:
    return () if recipe.base_stage is None else (recipe.base_stage,)


def first_base(recipe: Recipe) -> tuple[str, ...]:
    return () if recipe.first_base_stage is None else (recipe.first_base_stage,)


def reward_asks_model(recipe: Recipe) -> bool:
    return any(part.kind == "model" for part in recipe.ppo.reward)


def ppo_needs(recipe: Recipe) -> tuple[str, ...]:
    watched = recipe.ppo.keep == "best" or recipe.reward.holdout > 0
    asks = reward_asks_model(recipe) or recipe.ppo.value.init == "reward" or watched
    return (*base(recipe), "sft", *(("reward",) if asks else ()))


def ppo_wanted(recipe: Recipe, before: set[str]) -> bool:
    asked_for = "ppo" in recipe.model_fields_set and not reward_asks_model(recipe)
    return bool(recipe.data.prompts or recipe.data.demonstrations) and ("reward" in before or asked_for)


def evaluation_wanted(recipe: Recipe, before: set[str]) -> bool:
    return bool({"ppo", "distil"} & before) or (
        "sft" in before and ("reward" in before or bool(recipe.evaluation.gold))
    )


def ppo_data(recipe: Recipe) -> tuple[str, ...]:
    """What PPO reads besides prompts."""
    return (recipe.ppo.ptx_data,) if recipe.ppo.ptx_coef else ()


def annotator(recipe: Recipe) -> list[str]:
    return [recipe.rankings.annotator] if recipe.rankings is not None else []


def reward_functions(recipe: Recipe) -> list[str]:
    return [part.source for part in recipe.ppo.reward if part.kind == "function"]


def reward_classifiers(recipe: Recipe) -> list[str]:
    return [part.source for part in recipe.ppo.reward if part.kind == "classifier"]


def choosing_classifiers(recipe: Recipe) -> list[str]:
    return [part.source for parts in choosing(recipe).values() for part in parts if part.kind == "classifier"]


def evaluation_functions(recipe: Recipe) -> list[str]:
    own = [name for name in recipe.evaluation.metrics if ":" in name and not name.startswith(("hub:", "folder:"))]
    own += [part.source for parts in choosing(recipe).values() for part in parts if part.kind == "function"]
    return [*([recipe.evaluation.gold] if recipe.evaluation.gold else []), *own]


def offered_in_evaluation(recipe: Recipe, corpus: Corpus, reference: str) -> set[str]:
    more = ["references"] if reference in recipe.evaluation.metrics else []
    chosen_by = [reference] if reference not in (recipe.evaluation.gold, *recipe.evaluation.metrics) else []
    return offered_for(evaluation_prompts(recipe, corpus), *more, *("completion_ids" for _ in chosen_by))
