"""What follows from several settings of a recipe: evaluation's limit, prompts and systems, and what chooses."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from data.records import Prompt
from data.splits import Corpus
from evaluation.settings import OPTIMISED, EvaluationConfig
from evaluation.systems import Named, parse
from pipelines.recipe.schema import Recipe
from reward.settings import RewardPart


def response_limit(recipe: Recipe) -> int:
    """Longest response in evaluation: its own setting, or PPO's."""
    return recipe.evaluation.max_new_tokens or recipe.ppo.max_new_tokens


def choosing(recipe: Recipe) -> dict[str, tuple[RewardPart, ...]]:
    """The terms of the reward that chooses, of every best-of-n in evaluation, by the system's name.

    They are those of ``evaluation.best_of_by``, the reward model alone, or all of PPO's.
    """
    own = recipe.evaluation.best_of_by | {"model": (RewardPart(source="model"),), OPTIMISED: recipe.ppo.reward}
    systems = [parse(name) for name in recipe.evaluation.systems]
    return {s.name: own[s.by] for s in systems if s.kind == "best_of"}


def lacking(recipe: Recipe, stages: Collection[str]) -> dict[str, str]:
    """Systems of evaluation that a run with results of these stages cannot offer, each with the reason and a cure."""
    names = dict.fromkeys(recipe.evaluation.systems)
    needed = {name: stage_of(name, recipe) for name in names}
    known = [name for name, stage in needed.items() if not stage or stage in stages]
    rest = f", or leave it out: [{', '.join(known)}]" if known else ""
    return {
        name: f"{name}: there is no {stage} stage in this run; add it, give --input {stage}=PATH{rest}"
        for name, stage in needed.items()
        if name not in known
    }


def stage_of(system: str, recipe: Recipe) -> str:
    """The stage without whose result a system cannot be; '' where it needs none, or names its update or folder."""
    named = parse(system)
    if named.kind == "role" and system != "base":
        return system
    if named.kind == "best_of" and any(part.kind == "model" for part in choosing(recipe)[system]):
        return "reward"
    asked = recipe.evaluation.asked(named.value) if named.kind == "prompted" else None
    return stage_of(asked.model, recipe) if asked is not None else ""


def offered(recipe: Recipe, stages: Collection[str]) -> list[Named]:
    """Systems that a run with results of these stages evaluates, in the recipe's order: those named that it has."""
    missing = lacking(recipe, stages)
    return [parse(name) for name in dict.fromkeys(recipe.evaluation.systems) if name not in missing]


def names_systems(recipe: Recipe) -> bool:
    """Whether other systems than the default ones are asked for; of those a run evaluates what it has."""
    return recipe.evaluation.systems != EvaluationConfig().systems


def evaluation_prompts(recipe: Recipe, corpus: Corpus) -> Sequence[Prompt]:
    return corpus.prompts.held_out[: recipe.evaluation.prompts]
