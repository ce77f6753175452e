"""Reference answers of held-out prompts: held-out demonstrations, best ranked responses, and a file's own answers."""

from __future__ import annotations

from collections.abc import Sequence

from data.common.errors import UserError
from data.records import Message, Prompt
from data.sources import load_records
from data.splits import Corpus
from pipelines.recipe.schema import Recipe


def references_for(recipe: Recipe, corpus: Corpus, prompts: Sequence[Prompt]) -> list[tuple[str, ...]]:
    """Of every prompt the responses that people (or the data) gave to just this conversation, each once."""
    found: dict[tuple[Message, ...], dict[str, None]] = {}

    def note(prompt: Prompt, answer: str) -> None:
        found.setdefault(prompt.messages, {})[answer] = None

    if not isinstance(recipe.data.held_out, float):
        source, data = recipe.data.held_out, recipe.data
        try:
            where, every = recipe.base_dir, ("?*",)  # what is lost of columns was reported when the corpus was read
            for d in load_records(
                [source], "demonstrations", data, seed=recipe.seed, base_dir=where, known=every
            ).records:
                note(d.prompt, d.answer)
        except UserError:  # prompts alone
            pass
    for d in corpus.demonstrations.held_out:
        note(d.prompt, d.answer)
    for r in corpus.rankings.held_out:
        for answer, rank in zip(r.answers, r.ranks, strict=True):
            if rank == 0:
                note(r.prompt, answer)
    return [tuple(found.get(p.messages, ())) for p in prompts]
