"""The rows that are rendered before the first stage, and whether they fit the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data.common.errors import located
from data.records import Prompt
from data.splits import Corpus
from data.storage.views import Chain
from data.template import Renderer
from models.hub.limits import check_rows
from pipelines.recipe.derived import evaluation_prompts, response_limit
from pipelines.recipe.schema import Recipe
from pipelines.run.base_rehearsal import KnownBase
from pipelines.stages.table import STAGES
from stages.ppo.stage import none_fits, prompt_limit
from stages.stage import prompt_rows

ROWS = 2000
"""Rows of a part that are rendered: all of a small one, every n-th of a large one."""
SHORTER = ", or leave out the longest prompts"


def check_room(recipe: Recipe, corpus: Corpus, base: KnownBase) -> None:
    """Refuse a PPO that would leave out every prompt, or whose base cannot read one that it takes.

    Raises:
        UserError: as the stage would.
    """
    limit = prompt_limit(recipe.ppo, None if base.limits is None else base.limits.positions)
    prompts = corpus.prompts.train
    some = evenly_spaced(prompts)
    rendered = zip(prompt_rows(base.renderer, some), some, strict=True)
    kept = [(row, p.source) for row, p in rendered if len(row) <= limit]
    if not kept and len(prompts) <= ROWS:
        raise none_fits(len(prompts), limit)
    if base.limits is not None:  # none that is kept is too long
        rows, places = [row for row, _ in kept], [place for _, place in kept]
        check_rows(base.limits, rows, "data.prompts", "", lambda _: None, where=places)


def evenly_spaced(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[:: max(1, -(-len(rows) // ROWS))]


def partly_rehearsed(corpus: Corpus, chosen: Sequence[str]) -> list[str]:
    """Sentences about parts of the data of which only some rows are rendered before the first stage."""
    parts = dict.fromkeys(part for name in chosen for part in STAGES[name].data if part != "documents")
    found = {part: getattr(corpus, part).all for part in parts}
    return [
        f"data.{part}: {len(evenly_spaced(rows)):,} of {len(rows):,} rows are rendered ahead, evenly spaced; one of "
        "the others that the template refuses, or that is too long for the base, is found by the stage"
        for part, rows in found.items()
        if len(rows) > ROWS
    ]


Rendered = tuple[str, Sequence[list[int]], list[str], int, str]


def rendered_rows(recipe: Recipe, corpus: Corpus, renderer: Renderer, chosen: Sequence[str]) -> Iterator[Rendered]:
    """Rendered rows of each chosen stage: what they are, ids, places, new tokens behind them, what makes them fit."""
    if "sft" in chosen:
        shown = evenly_spaced(corpus.demonstrations.all)
        encoded = []
        for d in shown:
            with located(d.prompt.source):
                encoded.append(
                    renderer.conversation(
                        d.prompt.messages, d.answer, d.finished, recipe.sft.supervise, recipe.sft.max_tokens
                    ).ids
                )
        yield "data.demonstrations", encoded, [d.prompt.source for d in shown], 0, "lower sft.max_tokens"
    if "reward" in chosen and recipe.reward.base == "same":
        pairs, places = ranking_rows(recipe, corpus, renderer)
        yield "data.rankings", pairs, places, 0, "lower reward.max_tokens"
    for what, prompts, room, cure in _asked(recipe, corpus, chosen):
        some = evenly_spaced(prompts)
        yield what, prompt_rows(renderer, some), [p.source for p in some], room, cure


def ranking_rows(recipe: Recipe, corpus: Corpus, renderer: Renderer) -> tuple[list[list[int]], list[str]]:
    """Every response with its prompt as ids, within the limit, and its place."""
    pairs, places = [], []
    for r in evenly_spaced(corpus.rankings.all):
        with located(r.prompt.source):
            both = [
                renderer.prompt_and_answer(r.prompt.messages, a, max_tokens=recipe.reward.max_tokens) for a in r.answers
            ]
        pairs += [query + answer for query, answer in both]
        places += [r.prompt.source] * len(both)
    return pairs, places


def _asked(recipe: Recipe, corpus: Corpus, chosen: Sequence[str]) -> Iterator[tuple[str, Sequence[Prompt], int, str]]:
    """Prompts that are responded to: of rankings and evaluation; those of PPO, which leaves some out, are elsewhere."""
    if "rankings" in chosen and recipe.rankings is not None:
        r = recipe.rankings
        prompts = Chain(corpus.prompts.train[: r.prompts], corpus.prompts.held_out[: r.held_out_prompts])
        yield "data.prompts", prompts, r.max_new_tokens, f"lower rankings.max_new_tokens{SHORTER}"
    if "evaluate" in chosen:
        held_out = evaluation_prompts(recipe, corpus)
        yield "evaluation", held_out, response_limit(recipe), f"lower evaluation.max_new_tokens{SHORTER}"
