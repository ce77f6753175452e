"""Intervals that cover: means by a studentised bootstrap; proportions and sparse values by Wilson's; with clusters.

Pure numpy and scipy. ``benchmarks/coverage.py`` simulates coverage (docs/measurements/statistics.md).
This module knows nothing of systems, prompts or files.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

MINIMUM = 20  # below this many prompts no interval is given: coverage is tested from here upwards
BLOCK = 4_000_000  # bootstrap counts that exist at one time
FEW = 10  # clusters unlike all others: with fewer, resamples without any are common and know nothing of the variance
FLOOR = 4.0  # a resample's standard error is at least that of the data over this
Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)

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


def mean_interval(
    values: ArrayLike,
    clusters: Labels | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: Bounds = UNBOUNDED,
) -> Interval:
    """Mean of ``values`` (n,) with a studentised bootstrap interval (see ``ratio_interval``), whatever their order.

    With ``clusters`` (n labels), whole clusters are resampled. Outcomes (0, 1/2 and 1 alone) get
    ``proportion_interval``, since resamples of a rare outcome often hold none of it; values of which all but a few are
    equal get ``sparse_interval``. ``bounds`` is the range that the values can have, finite or not; the interval stays
    within.

    Raises:
        ValueError: no values, values that are not finite, or labels of another length.
    """
    x, labels = checked(values, clusters)
    sums, sizes = by_cluster(x, labels)
    mean, n = math.fsum(x) / len(x), len(sums)
    if n < MINIMUM:
        return too_few(mean, n)
    bounds = min(bounds[0], float(x.min())), max(bounds[1], float(x.max()))  # a metric's own rounding
    if bounds in (UNBOUNDED, (0.0, 1.0)) and np.isin(x, (0.0, 0.5, 1.0)).all() and not np.all(x == x[0]):
        return proportion_interval(x, clusters, confidence)
    if is_sparse(sums / sizes):
        return sparse_interval(x, clusters, confidence, bounds)
    low, high, method = ratio_interval(sums, sizes, confidence, resamples, seed)
    return Interval(estimate=mean, low=max(low, bounds[0]), high=min(high, bounds[1]), n=n, method=method)


def is_sparse(values: Floats) -> bool:
    """Whether fewer than ``FEW`` of the clusters' values (n,) differ from the commonest one."""
    _, counts = np.unique(values, return_counts=True)
    return len(values) - int(counts.max()) < FEW


def sparse_interval(
    values: ArrayLike, clusters: Labels | None = None, confidence: float = 0.95, bounds: Bounds = UNBOUNDED
) -> Interval:
    """Mean of values (n,) that are nearly all equal: ``proportion_interval`` on their range.

    The range is ``bounds`` where they are finite, else the values' own; values that are all equal and have no range
    get an interval of no width, with a note.

    Raises:
        ValueError: as ``proportion_interval``.
    """
    x, labels = checked(values, clusters)
    low = bounds[0] if math.isfinite(bounds[0]) else float(x.min())
    high = bounds[1] if math.isfinite(bounds[1]) else float(x.max())
    n, mean = int(labels.max()) + 1, math.fsum(x) / len(x)
    if low == high:
        return Interval(
            estimate=low,
            low=low,
            high=low,
            n=n,
            method="constant",
            note="all values are equal, and nothing says how far others may lie",
        )
    found = proportion_interval(np.clip((x - low) / (high - low), 0.0, 1.0), labels, confidence)
    if found.low is None or found.high is None:
        return too_few(mean, n)
    ends = [low + end * (high - low) for end in (found.low, found.high)]
    return Interval(estimate=mean, low=min(ends[0], mean), high=max(ends[1], mean), n=n, method="wilson on the range")


def proportion_interval(values: ArrayLike, clusters: Labels | None = None, confidence: float = 0.95) -> Interval:
    """Mean of ``values`` (n,) in [0, 1] - outcomes such as 0, 1/2, 1 - with a Wilson interval on the effective n.

    The effective n is n divided by the variance relative to a 0-1 outcome of the same mean: below 1 with ties, above 1
    for rows that go together within clusters. One imagined win and one imagined loss enter the variance (not the
    mean), so that neither all wins nor all ties yields an interval of no width; with clusters they weigh less the more
    variance was seen. ``values -> 1 - values`` mirrors it.

    Raises:
        ValueError: no values, values outside [0, 1], or labels of another length.
    """
    x, labels = checked(values, clusters)
    if x.min() < 0 or x.max() > 1:
        raise ValueError("proportions lie in [0, 1]")
    sums, sizes = by_cluster(x, labels)
    p, n = float(x.sum() / len(x)), len(sums)
    if n < MINIMUM:
        return too_few(p, n)
    if p < 0.5:  # one orientation is computed and the other mirrored: intervals of (a, b) and (b, a) then agree exactly
        flipped = proportion_interval(1 - x, labels, confidence)
        assert flipped.low is not None and flipped.high is not None
        return Interval(estimate=1 - flipped.estimate, low=1 - flipped.high, high=1 - flipped.low, n=n, method="wilson")
    effective = n / dispersion(x, sums, sizes)
    z = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) if n < len(x) else float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z / (1 + z * z / effective) * np.sqrt(p * (1 - p) / effective + z * z / (4 * effective**2))
    low, high = float(max(0.0, centre - half)), float(1.0 if p == 1 else min(1.0, centre + half))
    if p == 0.5:
        low, high = 0.5 - float(half), 0.5 + float(half)
    low = 1 - (1 - low)  # onto the grid on which 1 - x is exact, so that mirrored intervals are equal to the last bit
    return Interval(estimate=p, low=low, high=high, n=n, method="wilson")


def checked(values: ArrayLike, clusters: Labels | None) -> tuple[Floats, NDArray[np.int64]]:
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


def by_cluster(x: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Sum and number of rows of every cluster, each (clusters,)."""
    return np.bincount(labels, weights=x).astype(np.float64), np.bincount(labels).astype(np.float64)


def too_few(estimate: float, n: int, minimum: int = MINIMUM) -> Interval:
    note = f"{n} prompts are too few for an honest interval; it takes {minimum}"
    return Interval(estimate=estimate, low=None, high=None, n=n, method="none", note=note)


def dispersion(x: Floats, sums: Floats, sizes: Floats) -> float:
    """Variance of the mean times the number of clusters, relative to a 0-1 outcome: see ``proportion_interval``."""
    rows, n = len(x), len(sums)
    size, p = rows / n, float(x.mean())
    # The imagined win and loss are two more clusters of average size. Between clusters the mean is estimated and the
    # interval is a t's, so there the pair counts less the more the data say: its weight falls with the fourth power of
    # the number of clusters whose worth of a 0-1 outcome's variance was seen (docs/measurements/statistics.md).
    weight = 1.0
    if n < rows and 0 < p < 1:
        weight = 1 / (1 + (((sums - p * sizes) ** 2).sum() / size**2 / (p * (1 - p))) ** 4)
    p = (x.sum() + weight * size) / (rows + 2 * weight * size)
    squares = ((sums - p * sizes) ** 2).sum() / size**2 + weight * ((1 - p) ** 2 + p**2)
    variance = squares / (n + 2 * weight - (n < rows))  # rows of their own are 0-1 outcomes
    return float(variance / (p * (1 - p)))


def ratio_interval(
    top: Floats, bottom: Floats, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, str]:
    """Low, high and method for sum(top) / sum(bottom) over n independent clusters, each (n,).

    A studentised bootstrap (Efron & Tibshirani 1993, chapter 12) with the linearised standard error of a ratio. The
    equal-tailed interval is best for skewed values and the symmetric one for heavy tails; their average covers in
    both (docs/measurements/statistics.md). A resample's standard error is at least that of the data over ``FLOOR``,
    since one without the outliers would otherwise divide by next to nothing. Clusters are sorted first, so that their
    order does not matter. Where a resample has nothing below the line, the percentile interval, widened as by a t
    instead of a normal distribution (Hesterberg 2015), takes its place.
    """
    order = np.lexsort((bottom, top))
    top, bottom = top[order], bottom[order]
    n, ratio = len(top), top.sum() / bottom.sum()
    rest = top - ratio * bottom
    error = np.sqrt(n / (n - 1) * (rest**2).sum()) / bottom.sum()
    columns = np.stack([rest, bottom, rest * rest, rest * bottom, bottom * bottom], axis=1)
    a, b, aa, ab, bb = _moments(columns, resamples, seed).T
    with np.errstate(all="ignore"):
        shift = a / b
        std = np.sqrt(n / (n - 1) * np.maximum(aa - 2 * shift * ab + shift**2 * bb, 0)) / b
        t = shift / np.maximum(std, error / FLOOR)
        tail = (1 - confidence) / 2
        lower, upper = np.quantile(t, [tail, 1 - tail], method="inverted_cdf")
        middle = np.quantile(np.abs(t), confidence, method="inverted_cdf")
    if np.isfinite([lower, upper, middle]).all():
        low, high = ratio - (upper + middle) / 2 * error, ratio - (lower - middle) / 2 * error
        return float(low), float(high), "studentised bootstrap"
    level = float(stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf(0.5 + confidence / 2, n - 1)))
    found = np.quantile(ratio + shift[np.isfinite(shift)], [level, 1 - level])
    return float(found[0]), float(found[1]), "percentile bootstrap"


@lru_cache(maxsize=2)
def _counts(n: int, resamples: int, seed: int) -> Floats:
    """How often each of n clusters occurs in each resample, (resamples, n)."""
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _moments(columns: Floats, resamples: int, seed: int) -> Floats:
    """Sums of each column (n, k) over every resample, (resamples, k)."""
    n, block = len(columns), max(1, BLOCK // len(columns))
    if block >= resamples:
        return _counts(n, resamples, seed) @ columns
    starts = range(0, resamples, block)
    parts = [_counts.__wrapped__(n, min(block, resamples - s), seed + s) @ columns for s in starts]
    return np.concatenate(parts)
