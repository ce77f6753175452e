"""Losses over rankings of k answers: pure functions of scores and ranks.

Shapes: B rankings, K answers (padded; ``mask`` True = an answer). Rank 0 is best; equal ranks are ties, and tied
answers are not compared with each other in either loss.

Sources: Bradley & Terry 1952; Plackett 1975, Luce 1959; Ouyang et al. 2022 (arXiv 2203.02155, eq. 1: all pairs of a
prompt in one element, averaged); Touvron et al. 2023 (arXiv 2307.09288, eq. 2: margins).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def better_pairs(ranks: Tensor, mask: Tensor) -> Tensor:
    """(B, K, K) True at [b, i, j] where answer i is strictly better than answer j."""
    return (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def pairs_loss(
    scores: Tensor, ranks: Tensor, mask: Tensor, margins: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """All-pairs logistic loss (B,): the mean over a ranking's pairs of ``-log sigmoid(s_i - s_j - margin)``.

    Args:
        scores: (B, K).
        ranks: (B, K) integers.
        mask: (B, K).
        margins: (B, K, K) demanded difference of i over j, or None.
        label_smoothing: share of labels assumed to be the wrong way round.
    """
    pairs = better_pairs(ranks, mask)
    scores = torch.where(mask, scores, torch.zeros_like(scores))
    difference = scores[:, :, None] - scores[:, None, :]
    if margins is not None:
        difference = difference - margins
    loss = -(1 - label_smoothing) * F.logsigmoid(difference) - label_smoothing * F.logsigmoid(-difference)
    loss = torch.where(pairs, loss, torch.zeros_like(loss))
    return loss.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def plackett_luce_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Plackett-Luce negative log-likelihood (B,), averaged over the choices that a ranking makes.

    Each answer with somebody below it is a choice: its score against those of all strictly worse answers. With K = 2
    this is the logistic loss of one pair.
    """
    pairs = better_pairs(ranks, mask)
    scores = torch.where(mask, scores, torch.zeros_like(scores))
    itself = torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)[None]
    field = scores[:, None, :].expand_as(pairs).masked_fill(~(pairs | itself), float("-inf"))
    loss = torch.logsumexp(field, dim=2) - scores
    chooses = pairs.any(2)
    loss = torch.where(chooses, loss, torch.zeros_like(loss))
    return loss.sum(1) / chooses.sum(1).clamp(min=1)


LOSSES: dict[str, Callable[..., Tensor]] = {"pairs": pairs_loss, "plackett_luce": plackett_luce_loss}


def ranking_loss(
    scores: Tensor,
    ranks: Tensor,
    mask: Tensor | None = None,
    *,
    kind: str = "pairs",
    margins: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The named loss (B,), one number a ranking; rankings without an ordered pair give 0.

    Raises:
        ValueError: an unknown kind, or margins or smoothing asked of Plackett-Luce.
    """
    if kind not in LOSSES:
        raise ValueError(f"unknown ranking loss '{kind}': one of {', '.join(LOSSES)}")
    mask = torch.ones_like(ranks, dtype=torch.bool) if mask is None else mask
    if kind == "pairs":
        return pairs_loss(scores, ranks, mask, margins, label_smoothing)
    if margins is not None or label_smoothing:
        raise ValueError("margins and label smoothing belong to the 'pairs' loss")
    return plackett_luce_loss(scores, ranks, mask)


def pair_counts(scores: Tensor, ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``(right, pairs)`` per ranking, both (B,): equal scores count one half; tied labels are no pairs."""
    pairs = better_pairs(ranks, mask)
    difference = scores[:, :, None] - scores[:, None, :]
    right = (difference > 0).double() + 0.5 * (difference == 0).double()
    return torch.where(pairs, right, torch.zeros_like(right)).sum((1, 2)), pairs.sum((1, 2)).double()
