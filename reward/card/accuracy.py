"""How often scores order responses as the labels do, with an interval: over all pairs, never a mean of batch means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.common.paired_tests import Interval, proportion_interval


def pair_outcomes(scores: Sequence[Sequence[float]], ranks: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Outcome of every strictly ordered pair of every ranking, and the number of its ranking; both (pairs,).

    1 where the better response (the lower rank) has the higher score, 1/2 where the scores are equal, else 0. Responses
    whose labels tie are no pair.

    Raises:
        ValueError: scores that do not match the ranks.
    """
    if len(scores) != len(ranks):
        raise ValueError(f"{len(scores)} lists of scores for {len(ranks)} rankings")
    outcomes, owners = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    for i, (row, order) in enumerate(zip(scores, ranks, strict=True)):
        if len(row) != len(order):
            raise ValueError(f"ranking {i}: {len(row)} scores for {len(order)} responses")
        s, r = np.asarray(row, dtype=np.float64), np.asarray(order)
        better, worse = np.nonzero(r[:, None] < r[None, :])
        outcomes.append(0.5 + 0.5 * np.sign(s[better] - s[worse]))
        owners.append(np.full(len(better), i))
    return np.concatenate(outcomes), np.concatenate(owners)


def pair_accuracy(scores: Sequence[Sequence[float]], ranks: Sequence[Sequence[int]]) -> Interval:
    """Share of strictly ordered pairs that ``scores`` (one list a ranking) order alike, over all pairs.

    The interval takes rankings as the units, since the pairs of one ranking go together; ``n`` counts the rankings
    with a pair. There is none (``ci`` None) below 20 of them.

    Raises:
        ValueError: scores that do not match the ranks, or no ordered pair at all.
    """
    outcomes, owners = pair_outcomes(scores, ranks)
    if not len(outcomes):
        raise ValueError("no pair of responses has different ranks")
    return proportion_interval(outcomes, owners.tolist())
