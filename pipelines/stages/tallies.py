"""What a stage will cut or drop of its rows, counted before it runs, by the stage's own encoding."""

from __future__ import annotations

from data.counting import Tally
from data.splits import Corpus
from data.template import Renderer
from pipelines.recipe.schema import Recipe

MAX_ROWS = 20_000
"""Rows of a part that are rendered for a plan; of more, the first so many."""


def sft(renderer: Renderer, recipe: Recipe, corpus: Corpus) -> Tally | None:
    from stages.sft import encode_demonstrations

    return encode_demonstrations(renderer, corpus.demonstrations.train[:MAX_ROWS], recipe.sft)[1]


def reward(renderer: Renderer, recipe: Recipe, corpus: Corpus) -> Tally | None:
    """None for rows that are sampled later, rendered otherwise, or drawn by lot."""
    if recipe.rankings is not None or recipe.reward.base != "same" or recipe.reward.holdout:
        return None
    from stages.training.ranking_rows import encode_rankings

    return encode_rankings(renderer, corpus.rankings.train[:MAX_ROWS], recipe.reward)[1]


def ppo(renderer: Renderer, recipe: Recipe, corpus: Corpus) -> Tally | None:
    from stages.ppo.stage import fitting_prompts

    return fitting_prompts(renderer, corpus.prompts.train[:MAX_ROWS], recipe.ppo.max_prompt_tokens)[1]
