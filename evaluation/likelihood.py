"""How likely texts are to a role of a base: log-likelihoods of responses, and perplexity under the frozen base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from models.backbone.logprobs import make_rows
from models.backbone.oom_retry import OOMRetry
from models.roles.shared_base import SharedBase
from stages.ppo.rollout import micro_batches, policy_pass


@torch.no_grad()
def log_likelihoods(
    base: SharedBase,
    role: str,
    queries: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    pad_id: int,
    batch: int,
    memory: OOMRetry,
) -> list[list[float]]:
    """Log-probabilities in nats of each response's tokens, at temperature 1, behind its query."""
    found: list[list[float]] = [[] for _ in responses]

    def add_rows(index: Sequence[int]) -> None:
        rows = make_rows([queries[i] for i in index], [responses[i] for i in index], pad_id, base.device)
        with base.role(role) as view:
            values, _ = policy_pass(view, rows, 1.0)
        for i, part in zip(index, values.split(rows.response_lengths.tolist()), strict=True):
            found[i] = part.tolist()

    for index in micro_batches([len(r) for r in responses], batch):
        memory.each(index, batch, add_rows)
    return found


def under_base(logprobs: Sequence[Sequence[float]], lengths: Sequence[int]) -> dict[str, Any]:
    """The metric ``base_perplexity`` of responses by the base's log-probabilities of their tokens.

    What ended a response is left out, since a base that was never taught to stop finds it unlikely whatever stands
    before.

    Args:
        logprobs: a list a response.
        lengths: tokens of each response that stand before its stop token or string.

    Returns:
        ``base_perplexity``, exp of the nats of all tokens over their number, and ``scores`` with ``nats_under_base``,
        the nats a token of each response, None of one without tokens. Without any token there is no perplexity.
    """
    kept = [list(row[:length]) for row, length in zip(logprobs, lengths, strict=True)]
    nats, count = -math.fsum(x for row in kept for x in row), sum(map(len, kept))
    each = [-math.fsum(row) / len(row) if row else None for row in kept]
    whole = {"base_perplexity": math.exp(min(700.0, nats / count))} if count else {}
    return whole | {"scores": {"nats_under_base": each}}
