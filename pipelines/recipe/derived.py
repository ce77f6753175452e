"""What follows from several settings of a recipe: the responses' limit in evaluation, its prompts, and what chooses."""

from __future__ import annotations

from collections.abc import Sequence

from data.records import Prompt
from data.splits import Corpus
from evaluation.settings import OPTIMISED
from evaluation.systems import parse
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


def evaluation_prompts(recipe: Recipe, corpus: Corpus) -> Sequence[Prompt]:
    return corpus.prompts.held_out[: recipe.evaluation.prompts]
