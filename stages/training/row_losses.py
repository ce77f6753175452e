"""Losses of single rows of an entered role, without a gradient: what held-out losses are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from models.roles.role_view import RoleView


@torch.no_grad()
def supervised_logprobs(view: RoleView, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of the supervised tokens, row by row, and where they are: (B, L - 1), True at each.

    Args:
        view: the role.
        ids, mask, labels: (B, L), right-padded; labels are negative where nothing is supervised.
    """
    chosen = labels[:, 1:] >= 0
    where = torch.nn.functional.pad(chosen, (0, 1)).flatten().nonzero().squeeze(1)
    logprobs, _ = view.logprobs(view.states(ids, mask, where), labels[:, 1:][chosen])
    return logprobs, chosen


def row_nll(view: RoleView, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Nats and number of the supervised tokens of each row, both (B,) in float64 on the CPU."""
    logprobs, chosen = supervised_logprobs(view, ids, mask, labels)
    rows, wide = chosen.nonzero()[:, 0].cpu(), torch.zeros(len(ids), dtype=torch.float64)
    return wide.index_add(0, rows, -logprobs.cpu().double()), chosen.sum(1).cpu().double()
