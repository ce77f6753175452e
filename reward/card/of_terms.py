"""The report card of a reward that no stage of the run has trained: a ready classifier, a scorer behind an address or
a function, with whatever other terms are added to it.

A card asks by token ids, such scorers by texts: ``TermsAsked`` remembers which ids stand for which response, and tells
rows apart whose prompts differ in what a function is given of them alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.errors import UserError
from data.common.user_functions import RESERVED, check_statically, columns_read, load_function, offered_for
from data.records import Prompt, RankedAnswers
from data.template import Renderer
from reward.card.examine import examine, examined
from reward.card.scored_once import Phase, ScoredOnce
from reward.model import Samples
from reward.settings import RewardPart
from reward.terms.composition import FunctionReward, WeightedSum

Ids = tuple[int, ...]


AT_ONCE = 64  # responses between two reports of progress


class _Progress:
    """Who hears of so many more responses that are scored."""

    def __init__(self) -> None:
        self.done: Callable[[int], None] = lambda rows: None

    @contextmanager
    def reporting(self, done: Callable[[int], None]) -> Iterator[None]:
        before, self.done = self.done, done
        try:
            yield
        finally:
            self.done = before


class TermsAsked:
    """A sum of terms with the parts of a reward model that a card asks for.

    Args:
        reward: the terms; those that are normalised take the examined responses into their running mean.
        renderer: writes the policy's conversations, whose tokens lengths are counted in.
    """

    members: tuple[Any, ...] = ()

    def __init__(self, reward: WeightedSum, renderer: Renderer) -> None:
        self.reward, self._renderer, self.memory = reward, renderer, _Progress()
        self._read = {
            column
            for _, _, source in reward.parts
            if isinstance(source, FunctionReward)
            for column in columns_read(source.function.name, source.function.folder)
        }
        self._rows: dict[Ids, dict[str, int]] = {}
        self._known: dict[tuple[Ids, Ids], tuple[Prompt, str, bool]] = {}

    def ids_of(self, prompt: Prompt, answer: str, finished: bool = True) -> tuple[list[int], list[int]]:
        """Ids of prompt and response, by which the response is known from here on.

        Behind a prompt's ids stands the number of its row, negative, where other rows of them came before it.
        """
        query, response = self._renderer.prompt_and_answer(prompt.messages, answer, finished)
        rows = self._rows.setdefault(tuple(query), {})
        if number := rows.setdefault(self._given_of(prompt), len(rows)):
            query = [*query, -number]
        self._known[tuple(query), tuple(response)] = (prompt, answer, finished)
        return query, response

    def _given_of(self, prompt: Prompt) -> str:
        """What the terms are given of a prompt, as text that is equal for equal rows: columns that nobody reads would
        have the same response scored again."""
        every = "*" in self._read
        columns = {k: v for k, v in prompt.columns.items() if (every or k in self._read) and k not in RESERVED}
        given = [[m.as_dict() for m in prompt.messages], prompt.category, columns]
        return json.dumps(given, sort_keys=True, default=str)

    def score_ids(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
        """Scores (B,) of responses that ``ids_of`` has written."""
        rows = [self._known[tuple(q), tuple(a)] for q, a in zip(queries, responses, strict=True)]
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(rows), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            samples = Samples(
                prompts=[prompt for prompt, _, _ in rows[part]],
                queries=[[i for i in query if i >= 0] for query in queries[part]],
                responses=responses[part],
                texts=[text for _, text, _ in rows[part]],
                finished=[finished for _, _, finished in rows[part]],
            )
            found.append(self.reward.scores(samples))
            self.memory.done(len(rows[part]))
        return self.reward.combine({name: torch.cat([scores[name] for scores in found]) for name in found[0]})[0]


def unasked(
    parts: Sequence[RewardPart], rankings: Sequence[RankedAnswers], folder: Path, *, run_code: bool = False
) -> str:
    """Why a function among the terms cannot be asked of rankings: they lack a column that it takes. '' where all can.

    Args:
        folder: what a function's relative path starts from.
        run_code: load the functions, which runs their files; otherwise only what can be read is judged.
    """
    offered = offered_for((ranking.prompt for ranking in rankings), "completion_ids")
    for part in parts:
        if part.kind == "function":
            try:
                if run_code:
                    load_function(part.source, folder).check(offered)
                else:
                    check_statically(part.source, offered, folder)
            except UserError as error:
                return str(error)
    return ""


def card_of_terms(
    reward: WeightedSum,
    renderer: Renderer,
    train: Sequence[RankedAnswers],
    held_out: Sequence[RankedAnswers],
    *,
    seed: int,
    phase: Phase,
) -> dict[str, Any]:
    """The card (see ``reward.card.report_card.make_card``) of a sum of terms; empty without a held-out ranking."""
    chosen = examined(held_out)
    model: Any = TermsAsked(reward, renderer)
    return examine(ScoredOnce(model=model, phase=phase), train, chosen, of=len(held_out), seed=seed)
