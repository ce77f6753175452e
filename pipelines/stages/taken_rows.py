"""How many rows of each part a stage takes, for the plan, and which: of training, held out, or not made yet."""

from __future__ import annotations

from typing import NamedTuple

from data.splits import Corpus
from pipelines.recipe.schema import Recipe
from pipelines.stages.table import STAGES


class Taken(NamedTuple):
    """A number of rows, and what they are."""

    rows: int
    what: str


def taken_rows(name: str, recipe: Recipe, corpus: Corpus) -> dict[str, Taken]:
    """Rows by part: of training for a stage that trains, held out for evaluation.

    Rankings that a run samples are not in its data; their number is that of the prompts that they will be sampled for.
    """
    held_out = STAGES[name].group == "evaluation"
    found = {}
    for part in STAGES[name].parts(recipe):
        of = getattr(corpus, part)
        count = len(of.held_out if held_out else of.train)
        what = f"held-out {part}" if held_out else part
        if part == "prompts":
            count = min(count, _max_prompts(name, recipe, count))
        elif part == "rankings" and (sampled := recipe.rankings) is not None:
            prompts = corpus.prompts.held_out if held_out else corpus.prompts.train
            count = min(sampled.held_out_prompts if held_out else sampled.prompts, len(prompts))
            what += f" of {sampled.answers} responses, sampled by the run"
        found[part] = Taken(count, what)
    return found


def _max_prompts(name: str, recipe: Recipe, there: int) -> int:
    """How many prompts a stage's settings let it take at most."""
    if name == "rankings" and recipe.rankings is not None:
        return recipe.rankings.prompts
    if name == "distil" and recipe.distil is not None:
        return recipe.distil.prompts or there
    return recipe.evaluation.prompts if name == "evaluate" else there
