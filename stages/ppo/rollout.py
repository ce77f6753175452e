"""One rollout of PPO: what was asked, what was sampled, and every number that the update needs.

Shapes: B rows, those of all processes; R the longest response. ``mask`` True = a real response token, the stop token
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data.batching import token_batches
from data.records import Prompt
from models.backbone.logprobs import Rows, make_rows
from models.roles.role_view import RoleView
from models.sampling.generate import Generated
from reward.model import Samples
from stages.ppo_math import response_mask

EVALUATED = ("logprobs", "ref_logprobs", "entropy", "values")


@dataclass(slots=True, kw_only=True)
class Rollout:
    """Tensors live on the training device; ids are kept as they were sampled."""

    prompts: Sequence[Prompt]
    queries: Sequence[list[int]]
    responses: Sequence[list[int]]
    texts: Sequence[str]
    finished: Tensor  # (B,) bool: ends in a stop token that was sampled
    mask: Tensor  # (B, R) bool
    logprobs: Tensor  # (B, R) of the policy before the update
    ref_logprobs: Tensor  # (B, R) of the reference
    entropy: Tensor  # (B, R) of the policy's tempered distribution, in nats
    values: Tensor  # (B, R) of the state before each token
    raw_scores: Tensor  # (B,) the reward sum as the sources gave it
    scores: Tensor  # (B,) after clip and missing-EOS penalty
    score_parts: dict[str, Tensor] = field(default_factory=dict)  # (B,) each source's own
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, R) score and KL penalty
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, R)
    returns: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, R)
    importance: Tensor | None = None  # (B, R) weights of tokens that servers sampled; in ``advantages`` already
    prefix_states: Tensor | None = None  # (T, D) the sampler's states below all adapters, of all rows packed

    @classmethod
    def of(cls, made: Generated, device: torch.device, **rows: Any) -> Rollout:
        """What was sampled, with zeros for what is not evaluated yet; ``rows``: prompts, queries and texts."""
        width = max(1, max(map(len, made.ids), default=1))
        lengths = torch.tensor([len(ids) for ids in made.ids], dtype=torch.long, device=device)
        zeros: dict[str, Any] = {n: torch.zeros((len(made.ids), width), device=device) for n in EVALUATED}
        return cls(
            responses=made.ids,
            prefix_states=None if made.prefix_states is None else torch.cat(list(made.prefix_states)),
            finished=torch.tensor(made.finished, dtype=torch.bool, device=device),
            mask=response_mask(lengths, width),
            raw_scores=torch.zeros(len(made.ids), device=device),
            scores=torch.zeros(len(made.ids), device=device),
            **zeros,
            **rows,
        )

    @property
    def lengths(self) -> Tensor:
        """(B,) response tokens."""
        return self.mask.sum(1)

    def rows(self, index: Sequence[int], pad_id: int) -> Rows:
        """Queries and responses of some rows, numbered by ``index`` and padded for a forward pass."""
        queries, responses = [self.queries[i] for i in index], [self.responses[i] for i in index]
        return make_rows(queries, responses, pad_id, self.mask.device, numbers=index)

    @property
    def row_lengths(self) -> list[int]:
        """Tokens of each row, its query included."""
        return [len(q) + len(r) for q, r in zip(self.queries, self.responses, strict=True)]

    @property
    def longest(self) -> int:
        """Tokens of the longest row, its query included."""
        return max(self.row_lengths, default=1)

    def parts(self, index: Sequence[int], rows: int, tokens: int | None) -> list[list[int]]:
        """Some rows cut into micro-batches of similar length: at most ``rows`` each, or ``tokens`` padded tokens."""
        index = list(index)
        if tokens is None:
            found = micro_batches([len(self.responses[i]) for i in index], rows)
        else:
            found = token_batches([len(self.queries[i]) + len(self.responses[i]) for i in index], tokens)
        return [[index[i] for i in part] for part in found]

    def samples(self, rows: range) -> Samples:
        """Neighbouring rows as a reward sees them."""
        some = slice(rows.start, rows.stop)
        return Samples(
            prompts=self.prompts[some],
            queries=self.queries[some],
            responses=self.responses[some],
            texts=self.texts[some],
            finished=self.finished[some].tolist(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one optimizer step did, for those who want to check."""

    row_ids: list[int]  # rows of the minibatch
    tokens: float  # the denominator: response tokens of the minibatch
    policy_grad_norm: float  # before clipping
    value_grad_norm: float
    learning_rate: float
    applied: bool  # False when a gradient was not finite and the step was skipped
    metrics: dict[str, float]

    @property
    def norms(self) -> str:
        """The norms before clipping, for messages."""
        return f"gradient norms: policy {self.policy_grad_norm:g}, value {self.value_grad_norm:g}"


@dataclass(slots=True, kw_only=True)
class Cycle:
    """One rollout and what has been learnt from it so far."""

    rollout: Rollout
    numbers: dict[str, float]  # seconds, and how the servers that sampled compare
    records: list[StepRecord] = field(default_factory=list)


def policy_pass(
    view: RoleView, rows: Rows, temperature: float, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (N,) of response tokens: the one path for old, new and reference."""
    states = response_states(view, rows)
    return view.logprobs(states, rows.targets(), temperature, entropy_gradient)


def value_pass(view: RoleView, rows: Rows) -> Tensor:
    """Values (N,) of the states before each response token."""
    assert view.head is not None
    return view.head(response_states(view, rows))


def response_states(view: RoleView, rows: Rows) -> Tensor:
    """Hidden states (N, D) that predict each response token."""
    return view.states(rows.ids, rows.mask, rows.response_positions(), rows.packing)


def micro_batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in batches of at most ``size``, longest first, so that rows of a batch are of similar length."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[i : i + size] for i in range(0, len(order), size)]
