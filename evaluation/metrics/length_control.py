"""Length-controlled win rate: how often a would win if its responses were as long as b's.

After Dubois et al. 2024 ("Length-Controlled AlpacaEval"): a logistic model of the outcome on the difference of
lengths, read off where that is zero. Pure numpy; knows nothing of models or files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from data.common.intervals import Floats, Interval, Labels, by_cluster, checked, too_few

LENGTH_MINIMUM = 30  # prompts: with fewer, coverage depends on the effect of length (docs/measurements/statistics.md)
STEPS = 50
PRIOR = 0.5  # weight of one imagined win and one imagined loss: no separation, no certainty
RIDGE = 0.1  # on the coefficient of length


def length_controlled_win_rate(
    outcomes: ArrayLike, length_difference: ArrayLike, clusters: Labels | None = None, confidence: float = 0.95
) -> Interval:
    """Win rate at equal length, with a cluster-robust interval on the logit scale.

    Args:
        outcomes: (n,) 1 for a win of a, 1/2 for a tie, 0 for a loss.
        length_difference: (n,) length of a's response minus that of b's.
        clusters: n labels of what belongs together, usually the prompt.

    Swapping a and b (``1 - outcomes``, ``-length_difference``) gives one minus the result.

    Raises:
        ValueError: lengths that differ, values that are not finite, or outcomes outside [0, 1].
    """
    y, labels = checked(outcomes, clusters)
    difference, _ = checked(length_difference, clusters)
    if len(difference) != len(y) or y.min() < 0 or y.max() > 1:
        raise ValueError("one outcome in [0, 1] and one length difference a row")
    scale = np.sqrt(np.mean(difference**2))
    x = np.tanh(difference / scale) if scale > 0 else np.zeros_like(y)
    design = np.stack([np.ones_like(y), x], axis=1)
    beta, bread = _fit(y, design)
    estimate = float(1 / (1 + np.exp(-beta[0])))
    n = int(labels.max()) + 1
    if n < LENGTH_MINIMUM:
        return too_few(estimate, n, LENGTH_MINIMUM)
    if scale > 0 and (np.all(difference > 0) or np.all(difference < 0)):
        note = "one system's responses are longer to every prompt: equal lengths would be a guess"
        return Interval(estimate=estimate, low=None, high=None, n=n, method="none", note=note)
    residual = y - 1 / (1 + np.exp(-design @ beta))
    scores = np.stack([by_cluster(residual * c, labels)[0] for c in design.T], axis=1)
    # the imagined outcomes are part of the variance as they are of the fit: all wins are no certainty
    p = 1 / (1 + np.exp(-beta[0]))
    meat = scores.T @ scores * n / (n - 1) + np.diag([PRIOR * (p**2 + (1 - p) ** 2), 0.0])
    error = float(np.sqrt((bread @ meat @ bread)[0, 0]))
    # rows of their own are 0-1 outcomes, whose variance is known from their mean; between clusters it is estimated
    quantile = stats.t.ppf(0.5 + confidence / 2, n - 1) if n < len(y) else stats.norm.ppf(0.5 + confidence / 2)
    reach = float(quantile) * error
    low, high = (float(1 / (1 + np.exp(-(beta[0] + sign * reach)))) for sign in (-1, 1))
    return Interval(estimate=estimate, low=low, high=high, n=n, method="logistic, cluster-robust")


def _fit(y: Floats, design: Floats) -> tuple[Floats, Floats]:
    """Coefficients (2,) and the inverse of the information (2, 2), by Newton's method."""
    beta: Floats = np.zeros(2)
    bread: Floats = np.eye(2)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-design @ beta))
        centre = 1 / (1 + np.exp(-beta[0]))
        gradient = design.T @ (y - p) + [PRIOR * (1 - 2 * centre), -RIDGE * beta[1]]
        information = (design * (p * (1 - p))[:, None]).T @ design
        bread = np.linalg.inv(information + np.diag([2 * PRIOR * centre * (1 - centre), RIDGE])).astype(np.float64)
        step = bread @ gradient
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-12:
            break
    return beta, bread
