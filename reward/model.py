"""The reward model: one fp32 score a response, less its mean, read at its last real token.

The same path serves reward training's evaluation, PPO, held-out evaluation and ``trivet score``. On the shared base
ids go in as they were sampled; a reward model on another base has its own tokenizer, and responses pass as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from data.common.errors import RowError, UserError
from data.counting import MANY, Fitted, unknown_text
from data.records import Message, Prompt
from data.template import Renderer
from models.backbone.logprobs import Rows, make_rows
from models.backbone.oom_retry import OOMRetry
from models.backbone.scalar_head import ScalarHead
from models.roles.role_view import RoleView
from models.roles.shared_base import SharedBase
from reward.tables import POOLINGS

SCORED = "responses scored at once"


def pooling_numbers(pooling: str) -> dict[str, float]:
    """What is stored with a head, so that it is known how it pools: ``NAME_pooling`` is 1 for that of another kind."""
    marked = pooling != "last" and not POOLINGS[pooling].attention
    return {"mean_pooling": 0.0} | ({f"{pooling}_pooling": 1.0} if marked else {})


def pooling_of(numbers: Mapping[str, float], head: nn.Module) -> str:
    """How a stored reward model pools, by the numbers stored with its head and by the head itself."""
    if isinstance(head, ScalarHead) and head.attention is not None:
        return next(name for name, one in POOLINGS.items() if one.attention)
    return next((name for name in POOLINGS if numbers.get(f"{name}_pooling")), "last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Responses to be rewarded, B of each: ids as they were sampled, and the same as text."""

    prompts: Sequence[Prompt]
    queries: Sequence[Sequence[int]]
    responses: Sequence[Sequence[int]]
    texts: Sequence[str]
    finished: Sequence[bool]


def pooled_scores(hidden: Tensor, head: nn.Module, rows: Rows, pooling: str = "last") -> Tensor:
    """Raw scores (B,) from hidden states (B, L, D), found by length, never by token id; an empty response scores 0."""
    if (padded := POOLINGS[pooling].padded) is not None:
        return padded(hidden, head, rows)
    spans = zip(hidden, rows.query_lengths.tolist(), rows.lengths.tolist(), strict=True)
    return _each(head, [states[first:end] for states, first, end in spans], pooling)


def pooled(states: Tensor, head: nn.Module, pooling: str) -> Tensor:
    """The score () of one response from the states (L, D) of its own tokens: as ``pooled_scores``, without padding."""
    return POOLINGS[pooling].function(states, head)


def packed_scores(states: Tensor, head: nn.Module, lengths: Sequence[int], pooling: str = "last") -> Tensor:
    """Raw scores (B,) from the states (T, D) of one response after another, which have ``lengths`` (B,) tokens.

    At once where the pooling has such a way and no response is empty, else one by one: equal but for rounding.
    """
    if (packed := POOLINGS[pooling].packed) is not None and min(lengths) > 0:
        return packed(states, head, lengths)
    return _each(head, states.split(list(lengths)), pooling)


def _each(head: nn.Module, answers: Sequence[Tensor], pooling: str) -> Tensor:
    """Scores (B,) of responses by their states; 0 for one without tokens."""
    bias: Any = head.bias
    return torch.stack([pooled(s, head, pooling) if len(s) else bias.new_zeros(()) for s in answers])


def row_scores(view: RoleView, rows: Rows, pooling: str = "last") -> Tensor:
    """Raw scores (B,) of rows, states computed only where a score is read: as ``pooled_scores``."""
    assert view.head is not None
    if POOLINGS[pooling].last_only:
        count, width = rows.ids.shape
        last = torch.arange(count, device=rows.ids.device) * width + rows.lengths - 1
        return view.head(view.states(rows.ids, rows.mask, last, rows.packing))
    states = view.states(rows.ids, rows.mask, rows.response_positions() + 1, rows.packing)
    return _each(view.head, states.split(rows.response_lengths.tolist()), pooling)


@torch.no_grad()
def score_rows(
    base: SharedBase,
    role: str,
    queries: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    batch: int,
    pooling: str = "last",
    memory: OOMRetry | None = None,
) -> Tensor:
    """Raw scores (B,) on the CPU, rows in length-bucketed batches; of smaller ones where memory runs out."""
    order = sorted(range(len(queries)), key=lambda i: len(queries[i]) + len(responses[i]))
    scores = torch.zeros(len(queries), dtype=torch.float32)

    def score(chosen: Sequence[int]) -> None:
        rows = make_rows([queries[i] for i in chosen], [responses[i] for i in chosen], pad_id, base.device)
        with base.role(role) as view:
            assert view.head is not None
            scores[list(chosen)] = row_scores(view, rows, pooling).float().cpu()

    (memory or OOMRetry(SCORED)).each(order, batch, score)
    return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One role of an ensemble: its own mean raw score of SFT responses, and their standard deviation."""

    role: str
    score_mean: float = 0.0
    score_std: float = 1.0


def combined(scores: Tensor, how: str, uncertainty_penalty: float = 1.0) -> Tensor:
    """One score a response (B,) from the members' ones, each less its mean (N, B).

    ``mean``; ``min``, the smallest; or ``mean_minus_std``, the mean less ``uncertainty_penalty`` times the members'
    standard deviation (over N). Coste et al. 2023 (arXiv 2310.02743): mean, worst-case and
    uncertainty-weighted optimisation; theirs subtracts the variance.
    """
    if how == "min":
        return scores.min(0).values
    mean = scores.mean(0)
    return mean if how == "mean" else mean - uncertainty_penalty * scores.std(0, correction=0)


@dataclass(slots=True)
class TextsRead:
    """What a reward model was given as text so far: rows, those that its limit cut, tokens, and those unknown to it."""

    rows: int = 0
    cut: int = 0
    tokens: int = 0
    unknown: int = 0

    def add(self, ids: Sequence[int], cut: bool, sign: int | None) -> None:
        """Count a row that is read as ``ids``; ``sign`` is the id that stands for text without a token."""
        self.rows, self.cut = self.rows + 1, self.cut + cut
        self.tokens, self.unknown = self.tokens + len(ids), self.unknown + sum(i == sign for i in ids)

    def warning(self) -> str:
        """That much was not read as it is; '' where more than 95 % of rows and of tokens were."""
        parts = []
        if self.cut > MANY * self.rows:
            parts.append(f"of {self.cut:,} of {self.rows:,} responses only a part is scored (reward.max_tokens)")
        if self.unknown > MANY * self.tokens:
            parts.append(unknown_text(self.unknown, self.tokens))
        return "; ".join(parts)

    def since(self, before: TextsRead) -> Tensor:
        """What came after ``before``: rows, cut rows, tokens and unknown ones (4,)."""
        counts = zip(astuple(self), astuple(before), strict=True)
        return torch.tensor([now - then for now, then in counts], dtype=torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """A trained reward role, or an ensemble of them, ready to score.

    ``members``, where there are any, are scored each by itself and ``combine``d; ``score_mean`` and
    ``score_std`` are then those of the combined score.
    ``pooling`` is as it was trained.
    ``score_mean`` is the mean raw score of SFT responses and is subtracted; ``score_std`` their standard deviation,
    which PPO divides by when ``ppo.standardise_scores`` is on. ``takes_ids`` is False on another base: text is rendered
    again by ``renderer``.
    """

    base: SharedBase
    role: str
    renderer: Renderer
    score_mean: float = 0.0
    score_std: float = 1.0
    pooling: str = "last"
    takes_ids: bool = True
    max_tokens: int = 1024
    batch: int = 64
    members: tuple[Member, ...] = ()
    combine: str = "mean"
    uncertainty_penalty: float = 1.0
    memory: OOMRetry = field(default_factory=lambda: OOMRetry(SCORED), compare=False, repr=False)
    texts: TextsRead = field(default_factory=TextsRead, compare=False, repr=False)

    @property
    def head_mean(self) -> float:
        """What the head of the role ``role`` gives to a response that scores 0, as far as one member knows."""
        return self.score_mean + (self.members[0].score_mean if self.members else 0.0)

    def score(self, samples: Samples) -> Tensor:
        """Scores (B,), less their mean, of sampled responses; of one that a stop string ended, as training wrote it:
        without the string, and with the stop token."""
        if self.takes_ids:
            rows = zip(samples.prompts, samples.responses, strict=True)
            return self.score_ids(samples.queries, [self.renderer.closed(p.messages, ids) for p, ids in rows])
        return self.score_texts([p.messages for p in samples.prompts], samples.texts, samples.finished)

    def score_ids(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
        """Scores (B,), less their mean, of responses by ids; the stop token of a finished one is among them."""
        raw = self.raw_scores(queries, responses)
        return raw - self.score_mean

    def raw_scores(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
        """Scores (B,) before the mean is subtracted; each member subtracts its own."""
        rest = (queries, responses, self.renderer.pad_id, self.batch, self.pooling, self.memory)
        if not self.members:
            return score_rows(self.base, self.role, *rest)
        each = torch.stack([score_rows(self.base, m.role, *rest) - m.score_mean for m in self.members])
        return combined(each, self.combine, self.uncertainty_penalty)

    def score_texts(
        self,
        messages: Sequence[Sequence[Message]],
        answers: Sequence[str],
        finished: Sequence[bool],
        prove: bool = False,
    ) -> Tensor:
        """Scores (B,), less their mean, of responses given as text; finished ones get the stop token.

        Args:
            messages: the conversations.
            answers: one to each.
            finished: whether it ended.
            prove: refuse a response whose text the template leaves out, as somebody's own rows are to be.

        Raises:
            RowError: a row cannot be rendered.
        """
        return self.score_ids(*self.encoded(messages, answers, finished, prove))

    def ids_of(self, prompt: Prompt, answer: str, finished: bool = True) -> tuple[list[int], list[int]]:
        """Query and response as ids within the model's limit."""
        return self.renderer.prompt_and_answer(prompt.messages, answer, finished, max_tokens=self.max_tokens)

    def encoded(
        self,
        messages: Sequence[Sequence[Message]],
        answers: Sequence[str],
        finished: Sequence[bool],
        prove: bool = False,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Queries and responses as ids within the model's limit; arguments and errors as of ``score_texts``."""
        made = self.fitted(messages, answers, finished, prove)
        return [one.query for one in made], [one.response for one in made]

    def fitted(
        self,
        messages: Sequence[Sequence[Message]],
        answers: Sequence[str],
        finished: Sequence[bool],
        prove: bool = False,
    ) -> list[Fitted]:
        """Rows within the model's limit, which say what it cut; arguments and errors as of ``score_texts``."""
        made = []
        for i, (m, a, f) in enumerate(zip(messages, answers, finished, strict=True)):
            try:
                made.append(self.renderer.fitted(m, a, f, max_tokens=self.max_tokens, prove=prove))
            except UserError as error:
                raise RowError(f"row {i + 1}: {error}", i) from error
            row = made[-1]
            self.texts.add([*row.query, *row.response], row.cut, self.renderer.unknown_id)
        return made
