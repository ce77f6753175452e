"""How long rows are, in tokens: read by the base's rendering where it is there, otherwise guessed from characters."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from data.records import Message
from data.splits import Corpus
from pipelines.recipe.schema import Recipe
from pipelines.stages.memory import Rows, Sampling

if TYPE_CHECKING:
    from data.template import Renderer

CHARACTERS = 4.0  # a token, where the tokenizer is not made yet or not read
SAMPLED = 500  # rows whose length is taken
TURN = 5  # tokens that a template writes around a turn

Row = TypeVar("Row")


def _some(rows: Sequence[Row]) -> Sequence[Row]:
    """About ``SAMPLED`` of many rows."""
    return list(rows[:: max(1, len(rows) // SAMPLED)])


def largest_sum(lengths: Sequence[float], count: int, passes: float) -> float:
    """About the largest sum of ``count`` lengths that as many passes will meet; no more than the longest rows' own."""
    if not lengths or not count:
        return 0.0
    std = statistics.pstdev(lengths) if len(lengths) > 1 else 0.0
    likely = count * statistics.fmean(lengths) + std * math.sqrt(2 * count * math.log(max(1.0, passes)))
    longest = sorted(lengths, reverse=True)[:count]
    return min(likely, sum(longest) + max(0, count - len(longest)) * max(lengths))


class Lengths:
    """Lengths of some rows of each part of the data, and of the largest passes over them.

    Args:
        recipe: whose base.
        corpus: the rows.
        renderer: gives their lengths in tokens; without it they are guessed.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, renderer: Renderer | None = None) -> None:
        self.recipe, self.corpus, self.renderer = recipe, corpus, renderer

    def _tokens(self, text: str) -> float:
        p = None if isinstance(self.recipe.base, str) else self.recipe.base.pretrain
        kind = "" if p is None or p.given_tokenizer is not None else p.tokenizer
        if kind == "words":
            return float(len(text.split()))
        return len(text) / (1.0 if kind == "characters" else CHARACTERS)

    def _asked(self, messages: Sequence[Message]) -> float:
        if self.renderer is not None:
            return float(len(self.renderer.prompt_ids(messages)))
        return sum(self._tokens(m.content) for m in messages) + TURN * (len(messages) + 1)

    def _answered(self, messages: Sequence[Message], answer: str) -> float:
        """Tokens of a response behind its prompt."""
        if self.renderer is not None:
            return float(len(self.renderer.answer_ids(messages, answer, True)))
        return self._tokens(answer) + 1

    @cached_property
    def prompts(self) -> list[float]:
        """Tokens of some prompts that are asked."""
        return [self._asked(p.messages) for p in _some(self.corpus.prompts.train or self.corpus.prompts.held_out)]

    @cached_property
    def documents(self) -> list[float]:
        """Tokens of some documents."""
        return [self._tokens(d.text) + 2 for d in _some(self.corpus.documents.train)]

    @cached_property
    def demonstrations(self) -> list[tuple[float, float]]:
        """Tokens of some demonstrations' prompts and responses."""
        rows = _some(self.corpus.demonstrations.train)
        return [(self._asked(d.prompt.messages), self._answered(d.prompt.messages, d.answer)) for d in rows]

    @cached_property
    def ranked(self) -> list[tuple[float, list[float]]]:
        """Tokens of some rankings' prompts, and of each of their responses."""
        rows = _some(self.corpus.rankings.train)
        return [
            (self._asked(r.prompt.messages), [self._answered(r.prompt.messages, a) for a in r.answers]) for r in rows
        ]

    def rows(self, lengths: Sequence[float], read: Sequence[float], count: int, passes: float) -> Rows:
        """The largest of ``passes`` passes of ``count`` rows."""
        return Rows(
            count=count,
            tokens=largest_sum(lengths, count, passes),
            longest=max(lengths, default=0.0),
            read=largest_sum(read, count, passes),
        )

    def answers_of(self, prompts: Sequence[float], count: int, room: int, passes: float) -> Rows:
        """``count`` prompts with a response of ``room`` tokens each."""
        asked = largest_sum(prompts, count, passes)
        longest = max(prompts, default=0.0) + room
        return Rows(count=count, tokens=asked + count * room, longest=longest, read=count * room, uneven=True)

    def sampling(self, prompts: Sequence[float], rows: int, room: int) -> Sampling:
        """``rows`` responses at once, of at most ``room`` tokens each."""
        return Sampling(rows=rows, prompt=max(prompts, default=0.0), prompts=largest_sum(prompts, rows, 1.0), room=room)


NEGATIVES = {
    "empty response": 0.0,
    "cut short": 0.5,
    "end token missing": 1.0,
    "sentences repeated": 2.0,
    "answer to another prompt": 1.0,
}
"""Length of a damaged response (``reward.negatives``) by that of the whole one."""


Ranked = list[tuple[float, list[float]]]
"""Lengths of prompts, each with those of its responses."""


def within(ranked: Ranked, limit: float) -> Ranked:
    """The same once cut to a limit of tokens, which a response loses first."""
    return [(min(q, limit), [min(a, max(0.0, limit - q)) for a in answers]) for q, answers in ranked]


def with_negatives(
    ranked: Ranked, kinds: Sequence[str], length: Callable[[list[float]], float], share: float = 1.0
) -> Ranked:
    """The same with one response more to a share of the prompts, as long as ``length`` of the kinds' makes it."""
    if not kinds:
        return ranked
    factor = length([NEGATIVES[kind] for kind in kinds])
    return [
        (q, [*answers, factor * max(answers, default=0.0) + 1] if int((i + 1) * share) > int(i * share) else answers)
        for i, (q, answers) in enumerate(ranked)
    ]
