"""Honest numbers for held-out comparisons: paired tests, corrections, and the words that may be said about them.

Pure numpy and scipy. This module knows nothing of models, prompts, files or reports. Rows that belong together (several
samples of one prompt) share a cluster label; clusters are then the unit of resampling and of every count of "prompts".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from data.common.intervals import (
    MINIMUM,
    UNBOUNDED,
    Bounds,
    Floats,
    Interval,
    Labels,
    by_cluster,
    checked,
    dispersion,
    mean_interval,
    proportion_interval,
    ratio_interval,
    too_few,
)

POWER = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """System a against system b, paired by prompt.

    ``win_rate`` counts ties as half. ``p_value`` is two-sided. ``minimum_detectable`` is the distance of the win rate
    from one half that this many prompts show with 80 % power at the 5 % level. ``n`` counts prompts (clusters).
    """

    wins: int
    ties: int
    losses: int
    win_rate: float
    ci95: tuple[float, float] | None
    p_value: float
    minimum_detectable: float
    n: int
    needed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self)
        plain["ci95"] = None if self.ci95 is None else list(self.ci95)
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What may be said: ``word`` is "better", "worse" or "not shown"; ``text`` is the sentence.

    Of means that are not judgements (``mean_verdict``) the words are "higher" and "lower".
    """

    word: Literal["better", "worse", "higher", "lower", "not shown"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanComparison:
    """Mean of a minus mean of b, paired by prompt.

    ``p_value`` is two-sided, by flipping whole prompts' signs at random; ``needed`` is how many prompts would show the
    difference, were it as large as here, in four of five cases.
    """

    difference: Interval
    p_value: float
    needed: int | None = None


def paired_comparison(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: Labels | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare scores ``a`` with ``b``, both (n,) and paired by row; higher is better.

    Without clusters the p-value is the exact two-sided sign test on the pairs that differ. With clusters of several
    rows it is a sign-flip test of whole clusters (``resamples`` of them, from ``seed``), the interval widens likewise,
    and the plain counts of wins, ties and losses still count rows.

    Raises:
        ValueError: lengths that differ, no rows, or scores that are not finite.
    """
    difference, labels = _difference(a, b, clusters)
    signs = np.sign(difference)
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    sums, _ = by_cluster(signs, labels)
    outcomes = (signs + 1) / 2
    interval = proportion_interval(outcomes, labels)
    # std of one prompt's outcome, for power: in units of the win rate, with the same imagined win and loss.
    oriented = outcomes if wins >= losses else 1 - outcomes
    std = float(np.sqrt(dispersion(oriented, *by_cluster(oriented, labels)) / 4))
    reach = float(stats.norm.ppf(0.975) + stats.norm.ppf(POWER))
    effect = abs(interval.estimate - 0.5)
    if len(sums) < len(signs):
        p_value = _sign_flip(sums, resamples, seed)
    else:
        p_value = float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
    return Comparison(
        wins=wins,
        ties=len(signs) - wins - losses,
        losses=losses,
        win_rate=interval.estimate,
        ci95=None if interval.low is None or interval.high is None else (interval.low, interval.high),
        p_value=p_value,
        minimum_detectable=min(0.5, reach * std / float(np.sqrt(len(sums)))),
        n=len(sums),
        needed=int(np.ceil((reach * std / effect) ** 2)) if effect > 0 else None,
    )


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    kind: Literal["difference", "ratio"] = "difference",
    clusters: Labels | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: Bounds = UNBOUNDED,
) -> Interval:
    """``mean(a) - mean(b)`` or ``mean(a) / mean(b)`` of paired rows (n,), with a bootstrap interval over pairs.

    ``bounds`` is the range of the values themselves, such as (0, 1): a difference then lies in [-1, 1]. A ratio of
    values that are not negative is not negative either.

    Raises:
        ValueError: lengths that differ, no rows, values that are not finite, or a ratio to a mean that is not positive.
    """
    difference, labels = _difference(a, b, clusters)
    if kind == "difference":
        reach = bounds[1] - bounds[0]
        if reach in (1.0, np.inf) and np.isin(difference, (-1.0, 0.0, 1.0)).all():  # outcomes: see mean_interval
            half = proportion_interval((difference + 1) / 2, labels, confidence)
            low, high = (None, None) if half.low is None or half.high is None else (2 * half.low - 1, 2 * half.high - 1)
            mean = 2 * half.estimate - 1
            return Interval(estimate=mean, low=low, high=high, n=half.n, method=half.method, note=half.note)
        # One orientation is computed and the other mirrored, so that (a, b) and (b, a) mirror exactly.
        straight, mirrored = (sorted(zip(*by_cluster(d, labels), strict=True)) for d in (difference, -difference))
        flip = difference.sum() < 0 or (difference.sum() == 0 and straight < mirrored)
        values = -difference if flip else difference
        found = mean_interval(values, labels, confidence, resamples, seed, (-reach, reach))
        if found.low is not None and found.high is not None and straight == mirrored:
            half_width = max(-found.low, found.high)
            found = replace(found, low=-half_width, high=half_width)
        if not flip:
            return found
        low, high = (None, None) if found.low is None or found.high is None else (-found.high, -found.low)
        return replace(found, estimate=-found.estimate, low=low, high=high)
    top, _ = by_cluster(np.asarray(a, dtype=np.float64), labels)
    bottom, _ = by_cluster(np.asarray(b, dtype=np.float64), labels)
    if bottom.sum() <= 0:
        raise ValueError("a ratio needs a positive mean below the line")
    ratio, n = float(top.sum() / bottom.sum()), len(top)
    if n < MINIMUM:
        return too_few(ratio, n)
    if np.allclose(top, ratio * bottom, rtol=1e-12, atol=0):
        return Interval(estimate=ratio, low=ratio, high=ratio, n=n, method="constant", note="all ratios are equal")
    lo, hi, method = ratio_interval(top, bottom, confidence, resamples, seed)
    return Interval(estimate=ratio, low=max(lo, 0.0) if top.min() >= 0 else lo, high=hi, n=n, method=method)


def mean_comparison(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: Labels | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: Bounds = UNBOUNDED,
) -> MeanComparison:
    """Compare the means of ``a`` and ``b``, both (n,) and paired by row: Fisher's randomisation test of pairs.

    As for metrics of translations (Riezler & Maxwell 2005), whole clusters at once; the interval is
    ``paired_difference``'s.

    Raises:
        ValueError: as ``paired_difference``.
    """
    difference, labels = _difference(a, b, clusters)
    sums, sizes = by_cluster(difference, labels)
    found = paired_difference(a, b, clusters=clusters, resamples=resamples, seed=seed, bounds=bounds)
    error = np.sqrt(((sums - found.estimate * sizes) ** 2).sum()) / sizes.sum()
    reach = float(stats.norm.ppf(0.975) + stats.norm.ppf(POWER))
    needed = int(np.ceil(len(sums) * (reach * error / found.estimate) ** 2)) if found.estimate else None
    return MeanComparison(difference=found, p_value=_sign_flip(sums, resamples, seed), needed=needed)


def mean_verdict(comparison: MeanComparison, level: float = 0.05, p_value: float | None = None) -> Verdict:
    """Say "higher" or "lower" only where test and interval both show it; ``p_value`` as for ``verdict``."""
    found, p = comparison.difference, comparison.p_value if p_value is None else p_value
    if found.low is not None and found.high is not None and p < level and not found.low <= 0 <= found.high:
        word: Literal["higher", "lower"] = "higher" if found.low > 0 else "lower"
        return Verdict(word=word, text=f"{word} by {abs(found.estimate):.3g} over {found.n} prompts")
    return Verdict(word="not shown", text=_not_shown(found.n, comparison.needed, comparison.p_value < level <= p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values by Holm 1979: below a level, they keep the rate of any false claim among them below it."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def verdict(comparison: Comparison, level: float = 0.05, p_value: float | None = None) -> Verdict:
    """Say "better" or "worse" only where test and interval both show it; otherwise "not shown", and what would.

    ``p_value`` is the comparison's own, or the adjusted one where it is one of many (``holm``).
    """
    c = comparison
    p = c.p_value if p_value is None else p_value
    if c.ci95 is not None and p < level:
        if c.ci95[0] > 0.5:
            return Verdict(word="better", text=f"better: wins {_percent(c)} of {c.n} prompts")
        if c.ci95[1] < 0.5:
            return Verdict(word="worse", text=f"worse: wins {_percent(c)} of {c.n} prompts")
    once = c.ci95 is not None and c.p_value < level <= p
    return Verdict(word="not shown", text=_not_shown(c.n, c.needed, once))


def _not_shown(n: int, needed: int | None, by_count: bool) -> str:
    """``by_count``: alone it would have been shown, but it is one of many comparisons."""
    if needed is None:
        return f"not shown with {n} prompts; no difference was seen at all"
    counted = " once all comparisons count" if by_count else ""
    return f"not shown with {n} prompts{counted}; about {_rounded(max(needed, n + 1, MINIMUM)):,} would be needed"


def _percent(c: Comparison) -> str:
    assert c.ci95 is not None
    return f"{100 * c.win_rate:.0f} % [{100 * c.ci95[0]:.0f}, {100 * c.ci95[1]:.0f}]"


def _rounded(n: int) -> int:
    """Up to two significant digits: more would claim to know too much."""
    step = 10 ** max(0, len(str(n)) - 2)
    return -(-n // step) * step


def _difference(a: ArrayLike, b: ArrayLike, clusters: Labels | None) -> tuple[Floats, NDArray[np.int64]]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"paired rows needed, got {x.shape} and {y.shape}")
    return checked(x - y, clusters)


def _sign_flip(sums: Floats, resamples: int, seed: int) -> float:
    """Two-sided p-value of sum(sums) when the sign of every cluster's sum is a coin's."""
    rng, seen = np.random.default_rng(seed), abs(sums.sum()) - 1e-9
    beyond, batch = 0, max(1, 2_000_000 // len(sums))
    for start in range(0, resamples, batch):
        coins = rng.integers(0, 2, size=(min(batch, resamples - start), len(sums))) * 2 - 1
        beyond += int((np.abs(coins @ sums) >= seen).sum())
    return (beyond + 1) / (resamples + 1)
