"""KL divergence of a role from the reference on the role's own samples: by the samples alone, and exact per step.

Sums over a response's tokens, in nats. Both estimate the same sequence KL without bias; the exact one sums
KL(p(. | prefix) || q(. | prefix)) over the whole vocabulary at every step and so varies far less (Rao-Blackwell).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.backbone.logprobs import CHUNK, make_rows
from models.backbone.oom_retry import OOMRetry
from models.roles.shared_base import SharedBase
from stages.ppo.rollout import micro_batches, response_states


@torch.no_grad()
def kl_to_reference(
    base: SharedBase,
    role: str,
    queries: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    pad_id: int,
    temperature: float = 1.0,
    batch: int = 64,
    reference: str = "reference",
    memory: OOMRetry | None = None,
) -> tuple[list[float], list[float]]:
    """``(sampled, exact)``, one sum a response each, of KL(role || reference) at this temperature."""
    sampled, exact = [0.0] * len(responses), [0.0] * len(responses)

    def add_rows(index: Sequence[int]) -> None:
        rows = make_rows([queries[i] for i in index], [responses[i] for i in index], pad_id, base.device)
        states = {}
        for name in (role, reference):
            with base.role(name) as view:
                states[name] = response_states(view, rows)
        targets, parts = rows.targets(), []
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            p, q = (_log_softmax(base, name, states[name][part], temperature) for name in (role, reference))
            ratio = p - q
            exact_step = torch.where(p.isneginf(), 0.0, p.exp() * ratio).sum(1)
            parts.append(torch.stack([ratio.gather(1, targets[part, None])[:, 0], exact_step]))
        if not parts:
            return
        lengths = rows.response_lengths.tolist()
        for i, row in zip(index, torch.cat(parts, dim=1).split(lengths, dim=1), strict=True):
            sampled[i], exact[i] = row.sum(1).tolist()

    memory = memory or OOMRetry("rows at once for the KL")
    for index in micro_batches([len(r) for r in responses], batch):
        memory.each(index, batch, add_rows)
    return sampled, exact


def _log_softmax(base: SharedBase, role: str, hidden: Tensor, temperature: float) -> Tensor:
    with base.role(role) as view:
        logits = view.logits(hidden)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim=-1)
