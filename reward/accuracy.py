"""Pair accuracy on held-out rankings with an interval: counts over all pairs, never a mean of batch means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reward.losses import pair_counts


def pairs_right(scores: Sequence[Sequence[float]], ranks: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """``(right, pairs)`` per ranking; equal scores count one half, tied labels are no pairs."""
    right, pairs = np.zeros(len(scores)), np.zeros(len(scores))
    for i, (s, r) in enumerate(zip(scores, ranks, strict=True)):
        values, order = torch.tensor([s], dtype=torch.float64), torch.tensor([r])
        a, b = pair_counts(values, order, torch.ones_like(order, dtype=torch.bool))
        right[i], pairs[i] = a.item(), b.item()
    return right, pairs


def accuracy(
    right: np.ndarray, pairs: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, tuple[float, float]] | None:
    """Share of pairs and its 95 % percentile-bootstrap interval over *rankings*; pairs of one ranking are not
    independent. None without pairs."""
    if pairs.sum() == 0:
        return None
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=resamples)
    totals = weights @ pairs
    shares = (weights @ right)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(right.sum() / pairs.sum()), (float(low), float(high))
