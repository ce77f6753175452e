"""Honest numbers for held-out comparisons: intervals, paired tests, and the words that may be said about them.

Pure numpy and scipy. This module knows nothing of models, prompts, files or reports. Rows that belong together (several
samples of one prompt) share a cluster label; clusters are then the unit of resampling and of every count of "prompts".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

MINIMUM = 20  # below this many prompts no interval is given: coverage is tested from here upwards
BCA_LIMIT = 2_000  # the jackknife of BCa is quadratic in n; beyond this the plain percentile interval is as good
POWER = 0.8

Floats = NDArray[np.float64]
Labels = Sequence[Hashable] | NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its interval; ``low`` and ``high`` are None where there is too little data, as ``note`` says."""

    estimate: float
    low: float | None
    high: float | None
    n: int
    method: str
    note: str = ""

    @property
    def ci(self) -> list[float] | None:
        """``[low, high]``, or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]


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
    """What may be said: ``word`` is "better", "worse" or "not shown"; ``text`` is the sentence."""

    word: Literal["better", "worse", "not shown"]
    text: str


def mean_interval(
    values: ArrayLike,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of ``values`` (n,) with a bootstrap interval: BCa, or percentile where BCa cannot be computed.

    The nominal level is widened as by a t instead of a normal distribution (Hesterberg 2015, "expanded" intervals):
    without it bootstrap intervals are too narrow at n = 20. With ``clusters`` (n labels), whole clusters are drawn.

    Raises:
        ValueError: no values, values that are not finite, or labels of another length.
    """
    x, labels = _checked(values, clusters)
    sums, sizes = _by_cluster(x, labels)
    mean, n = float(sums.sum() / sizes.sum()), len(sums)
    if n < MINIMUM:
        return _too_few(mean, n)
    if np.all(x == x[0]):
        return Interval(estimate=float(x[0]), low=float(x[0]), high=float(x[0]), n=n, method="constant",
                        note="all values are equal")  # fmt: skip
    low, high, method = _bootstrap((sums, sizes), confidence, resamples, seed)
    return Interval(estimate=mean, low=low, high=high, n=n, method=method)


def proportion_interval(values: ArrayLike, clusters: Labels | None = None, confidence: float = 0.95) -> Interval:
    """Mean of ``values`` (n,) in [0, 1] - outcomes such as 0, 1/2, 1 - with a Wilson interval on the effective n.

    The effective n is n divided by the variance relative to a 0-1 outcome of the same mean: below 1 with ties, above 1
    for rows that go together within clusters. One imagined win and one imagined loss enter the variance (not the
    mean), so that neither all wins nor all ties yields an interval of no width. ``values -> 1 - values`` mirrors it.

    Raises:
        ValueError: no values, values outside [0, 1], or labels of another length.
    """
    x, labels = _checked(values, clusters)
    if x.min() < 0 or x.max() > 1:
        raise ValueError("proportions lie in [0, 1]")
    sums, sizes = _by_cluster(x, labels)
    p, n = float(x.sum() / len(x)), len(sums)
    if n < MINIMUM:
        return _too_few(p, n)
    if p < 0.5:  # one orientation is computed and the other mirrored: intervals of (a, b) and (b, a) then agree exactly
        flipped = proportion_interval(1 - x, labels, confidence)
        assert flipped.low is not None and flipped.high is not None
        return Interval(estimate=1 - flipped.estimate, low=1 - flipped.high, high=1 - flipped.low, n=n, method="wilson")
    effective = n / _dispersion(x, sums, sizes)
    z = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) if n < len(x) else float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * np.sqrt(p * (1 - p) / effective + z * z / (4 * effective**2))
    low, high = float(max(0.0, centre - half)), float(1.0 if p == 1 else min(1.0, centre + half))
    if p == 0.5:
        low, high = 0.5 - float(half), 0.5 + float(half)
    low = 1 - (1 - low)  # onto the grid on which 1 - x is exact, so that mirrored intervals are equal to the last bit
    return Interval(estimate=p, low=low, high=high, n=n, method="wilson")


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
    rows it is a sign-flip test of whole clusters (``resamples`` draws from ``seed``), the interval widens likewise, and
    the plain counts of wins, ties and losses still count rows.

    Raises:
        ValueError: lengths that differ, no rows, or scores that are not finite.
    """
    difference, labels = _difference(a, b, clusters)
    signs = np.sign(difference)
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    sums, _ = _by_cluster(signs, labels)
    outcomes = (signs + 1) / 2
    interval = proportion_interval(outcomes, labels)
    # Spread of one prompt's outcome, for power: in units of the win rate, with the same imagined win and loss.
    oriented = outcomes if wins >= losses else 1 - outcomes
    spread = float(np.sqrt(_dispersion(oriented, *_by_cluster(oriented, labels)) / 4))
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
        minimum_detectable=min(0.5, reach * spread / float(np.sqrt(len(sums)))),
        n=len(sums),
        needed=int(np.ceil((reach * spread / effect) ** 2)) if effect > 0 else None,
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
) -> Interval:
    """``mean(a) - mean(b)`` or ``mean(a) / mean(b)`` of paired rows (n,), with a bootstrap interval over pairs.

    Raises:
        ValueError: lengths that differ, no rows, values that are not finite, or a ratio to a mean that is not positive.
    """
    difference, labels = _difference(a, b, clusters)
    if kind == "difference":
        flip = difference.sum() < 0  # see proportion_interval: (a, b) and (b, a) mirror exactly
        found = mean_interval(-difference if flip else difference, labels, confidence, resamples, seed)
        if not flip:
            return found
        low, high = (None, None) if found.low is None or found.high is None else (-found.high, -found.low)
        return Interval(estimate=-found.estimate, low=low, high=high, n=found.n, method=found.method, note=found.note)
    top, _ = _by_cluster(np.asarray(a, dtype=np.float64), labels)
    bottom, _ = _by_cluster(np.asarray(b, dtype=np.float64), labels)
    if bottom.sum() <= 0:
        raise ValueError("a ratio needs a positive mean below the line")
    ratio, n = float(top.sum() / bottom.sum()), len(top)
    if n < MINIMUM:
        return _too_few(ratio, n)
    if np.allclose(top, ratio * bottom, rtol=1e-12, atol=0):
        return Interval(estimate=ratio, low=ratio, high=ratio, n=n, method="constant", note="all ratios are equal")
    lo, hi, method = _bootstrap((top, bottom), confidence, resamples, seed)
    return Interval(estimate=ratio, low=lo, high=hi, n=n, method=method)


def verdict(comparison: Comparison, level: float = 0.05) -> Verdict:
    """Say "better" or "worse" only where test and interval both show it; otherwise "not shown", and what would."""
    c = comparison
    if c.ci95 is not None and c.p_value < level:
        if c.ci95[0] > 0.5:
            return Verdict(word="better", text=f"better: wins {_percent(c)} of {c.n} prompts")
        if c.ci95[1] < 0.5:
            return Verdict(word="worse", text=f"worse: wins {_percent(c)} of {c.n} prompts")
    if c.needed is None:
        return Verdict(word="not shown", text=f"not shown with {c.n} prompts; no difference was seen at all")
    needed = max(c.needed, c.n + 1, MINIMUM)
    return Verdict(word="not shown", text=f"not shown with {c.n} prompts; about {_rounded(needed):,} would be needed")


def _percent(c: Comparison) -> str:
    assert c.ci95 is not None
    return f"{100 * c.win_rate:.0f} % [{100 * c.ci95[0]:.0f}, {100 * c.ci95[1]:.0f}]"


def _rounded(n: int) -> int:
    """Up to two significant digits: more would claim to know too much."""
    step = 10 ** max(0, len(str(n)) - 2)
    return -(-n // step) * step


def _checked(values: ArrayLike, clusters: Labels | None) -> tuple[Floats, NDArray[np.int64]]:
    """Values as floats (n,), and cluster indices (n,) counted from 0 in order of first appearance."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"expected one number a row and at least one row, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("values must be finite")
    if clusters is None:
        return x, np.arange(len(x))
    if len(clusters) != len(x):
        raise ValueError(f"{len(clusters)} cluster labels for {len(x)} values")
    index: dict[Hashable, int] = {}
    return x, np.array([index.setdefault(label, len(index)) for label in clusters])


def _difference(a: ArrayLike, b: ArrayLike, clusters: Labels | None) -> tuple[Floats, NDArray[np.int64]]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"paired rows needed, got {x.shape} and {y.shape}")
    return _checked(x - y, clusters)


def _by_cluster(x: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Sum and number of rows of every cluster, each (clusters,)."""
    return np.bincount(labels, weights=x).astype(np.float64), np.bincount(labels).astype(np.float64)


def _too_few(estimate: float, n: int) -> Interval:
    note = f"{n} prompts are too few for an honest interval; it takes {MINIMUM}"
    return Interval(estimate=estimate, low=None, high=None, n=n, method="none", note=note)


def _dispersion(x: Floats, sums: Floats, sizes: Floats) -> float:
    """Variance of the mean times the number of clusters, relative to a 0-1 outcome: see ``proportion_interval``."""
    rows, n = len(x), len(sums)
    size = rows / n
    p = (x.sum() + size) / (rows + 2 * size)
    # The imagined win and loss are two more clusters of average size.
    squares = ((sums - p * sizes) ** 2).sum() + (size * (1 - p)) ** 2 + (size * p) ** 2
    variance = squares / (n + 2) / size**2
    if n < rows:
        variance *= (n + 2) / (n + 1)  # between clusters the mean is estimated; rows of their own are 0-1 outcomes
    return float(variance / (p * (1 - p)))


def _bootstrap(parts: tuple[Floats, Floats], confidence: float, resamples: int, seed: int) -> tuple[float, float, str]:
    """Interval of sum(parts[0]) / sum(parts[1]) over resampled clusters, and the method that gave it."""
    n = len(parts[0])
    t = float(stats.t.ppf(0.5 + confidence / 2, n - 1))
    level = float(1 - 2 * stats.norm.cdf(-np.sqrt(n / (n - 1)) * t))

    def ratio(top: Floats, bottom: Floats, axis: int = -1) -> Floats:
        return np.sum(top, axis=axis) / np.sum(bottom, axis=axis)

    for method in ("BCa", "percentile") if n <= BCA_LIMIT else ("percentile",):
        with np.errstate(all="ignore"):
            found = stats.bootstrap(
                parts, ratio, paired=True, vectorized=True, n_resamples=resamples, confidence_level=level,
                method=method, batch=max(1, 2_000_000 // n), rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high), method


def _sign_flip(sums: Floats, resamples: int, seed: int) -> float:
    """Two-sided p-value of sum(sums) when the sign of every cluster's sum is a coin's."""
    rng, seen = np.random.default_rng(seed), abs(sums.sum()) - 1e-9
    beyond, batch = 0, max(1, 2_000_000 // len(sums))
    for start in range(0, resamples, batch):
        coins = rng.integers(0, 2, size=(min(batch, resamples - start), len(sums))) * 2 - 1
        beyond += int((np.abs(coins @ sums) >= seen).sum())
    return (beyond + 1) / (resamples + 1)
