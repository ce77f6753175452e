"""What a stage will cut or drop of its rows, counted before it runs, by the stage's own encoding."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np

from data.counting import Tally
from data.splits import Corpus
from data.storage.views import View
from data.template import Renderer
from pipelines.recipe.schema import Recipe

MAX_ROWS = 20_000
"""Rows of a part that are rendered for a plan; of more, so many at random, always the same ones."""

Row = TypeVar("Row")


class Count(Protocol):
    """What is counted of a part of the data: as numbers and in words, which are empty where nothing is to be said."""

    def as_dict(self) -> Mapping[str, Any]: ...

    def summary(self) -> str: ...

    def sampled(self) -> str: ...

    def warning(self) -> str: ...


def pretrain(recipe: Recipe, corpus: Corpus) -> dict[str, Count]:
    """Documents in chunks of the context, by the given tokenizer, or one that is trained as the stage trains it; none
    where the given one is not on this machine."""
    if isinstance(recipe.base, str):
        return {}
    from models.hub.load import given_tokenizer
    from stages.pretrain import planned

    source, rows = recipe.base.pretrain.given_tokenizer, corpus.documents.train
    given = None if source is None else given_tokenizer(source, recipe.base_dir, fetch=False)
    if source is not None and given is None:
        return {}
    texts, others = [d.text for d in _some(rows)], [d.text for d in corpus.documents.held_out]
    return dict(planned(texts, others, recipe.base.pretrain, len(rows), given))


def continued(tokenizer: Any, positions: int | None, recipe: Recipe, corpus: Corpus, encoder: bool) -> dict[str, Count]:
    """Documents in chunks, by the tokenizer of the base that is trained further."""
    from stages.continued import planned

    assert recipe.continued is not None
    rows, held_out = corpus.documents.train, corpus.documents.held_out
    texts, others = [d.text for d in _some(rows)], [d.text for d in held_out]
    return dict(planned(tokenizer, positions, texts, others, recipe.continued, len(rows), encoder))


def sft(renderer: Renderer, recipe: Recipe, corpus: Corpus, positions: int | None) -> dict[str, Tally]:
    from stages.sft import encode_demonstrations

    parts = {
        "counts": (corpus.demonstrations.train, "demonstrations"),
        "held_out_counts": (corpus.demonstrations.held_out, "held-out demonstrations"),
    }
    return {
        name: _marked(encode_demonstrations(renderer, _some(rows), recipe.sft, unit, positions=positions)[1], rows)
        for name, (rows, unit) in parts.items()
    }


def reward(renderer: Renderer, recipe: Recipe, corpus: Corpus, positions: int | None) -> dict[str, Tally]:
    """Nothing for rankings that are sampled later."""
    if recipe.rankings is not None:
        return {}
    from stages.reward_model import HOLDOUT_COUNTS, split_holdout
    from stages.training.ranking_rows import encode_rankings

    mine, holdout = split_holdout(corpus.rankings.train, recipe.reward.holdout)
    parts = {"counts": (mine, "rankings"), "held_out_counts": (corpus.rankings.held_out, "held-out rankings")}
    if recipe.reward.holdout:
        parts[HOLDOUT_COUNTS] = (holdout, "rankings of the held-out reward model")
    return {
        name: _marked(encode_rankings(renderer, _some(rows), recipe.reward, unit, positions)[1], rows)
        for name, (rows, unit) in parts.items()
    }


def ppo(renderer: Renderer, recipe: Recipe, corpus: Corpus, positions: int | None) -> dict[str, Tally]:
    from stages.ppo.stage import fitting_prompts

    rows = corpus.prompts.train
    return {"counts": _marked(fitting_prompts(renderer, _some(rows), recipe.ppo, positions)[1], rows)}


def _some(rows: Sequence[Row]) -> Sequence[Row]:
    """All rows, or of many a sample in their order."""
    if len(rows) <= MAX_ROWS:
        return rows
    return View(rows, np.array(sorted(random.Random(0).sample(range(len(rows)), MAX_ROWS))))


def _marked(tally: Tally, rows: Sequence[object]) -> Tally:
    """The count, with the number of rows that its sample stands for."""
    return tally if tally.rows == len(rows) else replace(tally, sample_of=len(rows))
