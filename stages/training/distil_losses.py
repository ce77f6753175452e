"""Losses of a student by a teacher's distributions, over supervised tokens, never all logits at once.

Shapes: B rows, L padded length, N supervised tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.roles.role_view import RoleView
from stages.distil_math import agreeing, forward_kl

CHUNK = 256  # tokens of which both models' logits exist at one time
Loss = Callable[[RoleView, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of a student, ids, mask and labels (B, L): loss (N,), whether both agree (N,) and where the tokens are (B, L - 1)."""


def positions_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flat places in (B * L) of the positions that predict supervised tokens, and where these are: (B, L - 1)."""
    chosen = labels[:, 1:] >= 0
    return torch.nn.functional.pad(chosen, (0, 1)).flatten().nonzero().squeeze(1), chosen


def by_tokens(student: RoleView, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-log p of the teacher's own tokens, and whether each is the student's most probable one."""
    where, chosen = positions_of(labels)
    targets = labels[:, 1:][chosen]
    hidden = student.states(ids, mask, where)
    logprobs, _ = student.logprobs(hidden, targets)
    with torch.no_grad():
        best = [student.logits(part).argmax(-1) for part in hidden.split(CHUNK)]
    return -logprobs, torch.cat(best) == targets if len(targets) else targets.bool(), chosen


def by_distributions(teacher: RoleView, temperature: float) -> Loss:
    """The forward KL to a teacher, which is entered on a base of its own."""

    def loss(student: RoleView, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        where, chosen = positions_of(labels)
        with torch.no_grad():
            known = teacher.states(ids, mask, where)
        hidden = student.states(ids, mask, where)
        if not len(where):
            return hidden.sum(-1).float(), where.bool(), chosen

        def part(mine: Tensor, its: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                wanted = teacher.logits(its)
            logits = student.logits(mine)
            return forward_kl(logits, wanted, temperature), agreeing(logits.detach(), wanted)

        pairs = zip(hidden.split(CHUNK), known.split(CHUNK), strict=True)
        again = torch.is_grad_enabled() and hidden.requires_grad
        parts = [checkpoint(part, a, b, use_reentrant=False) if again else part(a, b) for a, b in pairs]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), chosen

    return loss


@torch.no_grad()
def row_sums(loss: Loss, student: Any, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row the loss, how many tokens agree, and how many there are, all (B,) in float64 on the CPU."""
    values, agree, chosen = loss(student, ids, mask, labels)
    rows = chosen.nonzero()[:, 0].cpu()
    sums = [torch.zeros(len(ids), dtype=torch.float64).index_add(0, rows, x.cpu().double()) for x in (values, agree)]
    return sums[0], sums[1], chosen.sum(1).cpu().double()
