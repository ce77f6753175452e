"""Losses over rankings of k responses: pure functions of scores and ranks.

Shapes: B rankings, K responses (padded; ``mask`` True = a response). Rank 0 is best; equal ranks are ties.

Sources: Bradley & Terry 1952; Plackett 1975, Luce 1959; Efron 1977 (ties, JASA 72, 557-565); Ouyang et al. 2022
(arXiv 2203.02155, eq. 1: all pairs of a prompt in one element, averaged); Touvron et al. 2023 (arXiv 2307.09288,
eq. 2: margins).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone.transfers import wide
from reward.tables import LOSSES


def better_pairs(ranks: Tensor, mask: Tensor) -> Tensor:
    """(B, K, K) True at [b, i, j] where response i is strictly better than response j."""
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
    """Plackett-Luce negative log-likelihood (B,) of each whole ranking: the sum over its choices, best response first.

    Every choice is made among the responses that are left. Where d responses tie, Efron's approximation (1977) stands
    for the unknown order among them: while the l-th of them (from 0) is chosen, each counts with weight ``1 - l / d``.
    With K = 2 and no tie this is the logistic loss of one pair. A ranking without an untied pair gives 0.
    """
    worse = better_pairs(ranks, mask)
    tied = (ranks[:, :, None] == ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    before = tied.tril(diagonal=-1).sum(2)  # tied responses that stand earlier in the row: any order of them will do
    left = 1.0 - before / tied.sum(2).clamp(min=1)
    scores = torch.where(mask, scores, torch.zeros_like(scores))
    itself = torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
    weights = torch.where(tied, left[:, :, None], (worse | itself).to(left.dtype)).to(scores.dtype)
    loss = torch.logsumexp(scores[:, None, :] + weights.log(), dim=2) - scores
    counts = mask & worse.any(2).any(1)[:, None]
    return torch.where(counts, loss, torch.zeros_like(loss)).sum(1)


def ranking_losses(
    scores: Tensor,
    ranks: Tensor,
    kind: str = "pairs",
    margins: Tensor | None = None,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The named loss of each ranking (B,), for those who take the mean over a larger batch; see ``ranking_loss``."""
    if kind not in LOSSES:
        raise ValueError(f"unknown ranking loss '{kind}': one of {', '.join(LOSSES)}")
    mask = torch.ones_like(ranks, dtype=torch.bool) if mask is None else mask
    loss = LOSSES[kind]
    if loss.pairwise:
        return loss.function(scores, ranks, mask, margins, label_smoothing)
    if margins is not None or label_smoothing:
        raise ValueError(f"margins and label smoothing belong to a pairwise loss such as 'pairs', not to '{kind}'")
    return loss.function(scores, ranks, mask)


def ranking_loss(
    scores: Tensor,
    ranks: Tensor,
    kind: str = "pairs",
    margins: Tensor | None = None,
    mask: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of a batch of rankings, a scalar: the mean over all B rankings of each one's loss.

    ``pairs``: the mean over a ranking's untied pairs; ``plackett_luce``: the negative log-likelihood of the whole
    ranking, ties by Efron's approximation. A ranking without an untied pair contributes 0 with a finite gradient and
    counts in the mean.

    Args:
        scores: (B, K), higher is better.
        ranks: (B, K) integers, 0 is best, equal ranks tie.
        kind: a name in ``LOSSES``.
        margins: (B, K, K) demanded difference of i over j, or None (pairwise losses only).
        mask: (B, K), False for responses that are not there; by default all are.
        label_smoothing: share of labels assumed to be the wrong way round (pairwise losses only).

    Raises:
        ValueError: an unknown kind, or margins or smoothing asked of a loss without pairs.
    """
    return ranking_losses(scores, ranks, kind, margins, mask, label_smoothing).mean()


def pair_counts(scores: Tensor, ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``(right, pairs)`` per ranking, both (B,): equal scores count one half; tied labels are no pairs."""
    pairs = better_pairs(ranks, mask)
    difference = scores[:, :, None] - scores[:, None, :]
    right = wide(difference > 0) + 0.5 * wide(difference == 0)
    return torch.where(pairs, right, torch.zeros_like(right)).sum((1, 2)), wide(pairs.sum((1, 2)))
