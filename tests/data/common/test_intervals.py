"""Intervals of means: finite, within the range, monotone, whatever the order, and of no wild width."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from data.common.intervals import FEW, MINIMUM, UNBOUNDED, Bounds, mean_interval, proportion_interval
from data.common.paired_tests import paired_difference

UNIT: Bounds = (0.0, 1.0)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


WORLDS = {
    "normal": lambda r, n: r.normal(size=n),
    "sparse": lambda r, n: np.where(np.arange(n) < r.integers(0, 4), r.uniform(0.1, 0.9, size=n), 0.0),
    "sparse away from zero": lambda r, n: np.where(np.arange(n) < r.integers(0, 4), 5.0, 2.5),
    "one outlier": lambda r, n: np.where(np.arange(n) == 0, 1e6, r.normal(size=n)),
    "nearly constant": lambda r, n: 1.0 + 1e-12 * r.normal(size=n),
    "constant": lambda r, n: np.full(n, 0.1) * 3,
    "Cauchy": lambda r, n: r.standard_cauchy(size=n),
    "huge": lambda r, n: 1e150 * r.normal(size=n),
    "tiny": lambda r, n: 1e-150 * r.normal(size=n),
    "outcomes": lambda r, n: r.choice([0.0, 0.5, 1.0], size=n),
    "log-normal": lambda r, n: r.lognormal(0, 2, size=n),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("n", [MINIMUM, 24, 60])
@pytest.mark.parametrize("clustered", [False, True])
def test_what_holds_of_every_interval(world: str, n: int, clustered: bool) -> None:
    for seed in range(4):
        x = np.asarray(WORLDS[world](rng(seed), n * (2 if clustered else 1)), dtype=float)
        labels = [i // 2 for i in range(len(x))] if clustered else None
        found = {level: mean_interval(x, labels, level, resamples=400) for level in (0.5, 0.8, 0.95, 0.99)}
        for interval in found.values():
            assert interval.low is not None and interval.high is not None
            assert math.isfinite(interval.low) and math.isfinite(interval.high)
            assert interval.low <= interval.estimate <= interval.high
        ordered = [found[level] for level in (0.5, 0.8, 0.95, 0.99)]
        for inner, outer in pairwise(ordered):
            assert outer.low <= inner.low and inner.high <= outer.high  # type: ignore[operator]
        # No wider than the values themselves lie apart, twice on either side.
        assert found[0.99].high - found[0.99].low <= 4 * np.ptp(x) + 1e-300  # type: ignore[operator]
        order = rng(seed + 100).permutation(len(x))
        again = mean_interval(x[order], None if labels is None else [labels[i] for i in order], resamples=400)
        scale = float(np.abs(x).max())
        assert again.ci is not None
        assert np.divide(again.ci, scale) == pytest.approx(np.divide(found[0.95].ci, scale), abs=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [24, 64, 256])
@pytest.mark.parametrize("nonzero", [0, 1, 2, 3, 9, 10, 11])
def test_a_sparse_metric_stays_within_its_range(n: int, nonzero: int) -> None:
    """Beside an interval for the same share of 0-1 outcomes: never wider than that, which is the widest."""
    for seed in range(10):
        x = np.zeros(n)
        x[:nonzero] = rng(seed).uniform(0.05, 1.0, size=nonzero)
        found = mean_interval(x, resamples=400, bounds=UNIT)
        widest = proportion_interval(np.append(np.ones(nonzero), np.zeros(n - nonzero)))
        assert found.low is not None and found.high is not None and widest.high is not None
        assert 0 <= found.low <= x.mean() <= found.high <= 1
        assert found.high <= widest.high + 0.05 and found.high - x.mean() > 1 / n


def test_the_example_by_hand() -> None:
    """22 zeros, 0.3 and 0.5 in [0, 1]: Wilson's interval on the effective n, computed step by step."""
    x = np.array([0.0] * 22 + [0.3, 0.5])
    q = 1 - x.mean()  # Wilson's interval mirrors, so the larger side is computed
    pair = (x.sum() + 1) / 26
    squares = ((x - pair) ** 2).sum() + (1 - pair) ** 2 + pair**2
    n = 24 / (squares / 26 / (pair * (1 - pair)))
    z = 1.959963984540054
    centre = (q + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(q * (1 - q) / n + z * z / (4 * n * n))
    found = mean_interval(x, bounds=UNIT)
    assert found.method == "wilson on the range"
    assert found.ci == pytest.approx([1 - centre - half, 1 - centre + half], abs=1e-9)
    assert 0 <= found.ci[0] < x.mean() < found.ci[1] < 0.25  # type: ignore[index]
    free = mean_interval(x)  # no range is known: that of the values
    assert free.ci is not None and 0 <= free.ci[0] < x.mean() < free.ci[1] < 0.2


def test_a_constant_metric_is_not_certain_where_its_range_is_known() -> None:
    zero = mean_interval(np.zeros(24), bounds=UNIT)
    assert zero.low == 0 and zero.high == pytest.approx(1.96**2 / (24 + 1.96**2), abs=0.02)
    inside = mean_interval(np.full(24, 0.4), bounds=UNIT)
    hundred = mean_interval(np.full(24, 40.0), bounds=(0.0, 100.0))
    assert inside.ci is not None and hundred.ci is not None and 0.2 < inside.ci[0] < 0.4 < inside.ci[1] < 0.6
    assert hundred.ci == pytest.approx([100 * e for e in inside.ci])
    unknown = mean_interval(np.full(24, 7.0))
    assert unknown.ci == [7, 7] and "equal" in unknown.note


def test_one_outlier_does_not_make_the_interval_explode() -> None:
    x = np.append(rng(0).normal(size=23), 1000.0)
    found = mean_interval(x)
    assert found.low is not None and found.high is not None
    error = x.std(ddof=1) / math.sqrt(24)
    assert x.mean() - 5 * error < found.low < x.mean() < found.high < x.mean() + 5 * error


def test_few_values_apart_are_what_makes_sparse() -> None:
    at, below = (np.append(np.zeros(40), np.linspace(0.2, 0.4, apart)) for apart in (FEW, FEW - 1))
    assert mean_interval(at).method == "studentised bootstrap" and mean_interval(below).method == "wilson on the range"
    a, b = mean_interval(at, bounds=UNIT).ci, mean_interval(below, bounds=UNIT).ci
    assert a is not None and b is not None and a[1] - a[0] < 2 * (b[1] - b[0]) < 5 * (a[1] - a[0])


@pytest.mark.parametrize("bounds", [UNBOUNDED, UNIT])
def test_paired_differences_of_a_metric_mirror_and_stay_in_range(bounds: Bounds) -> None:
    for differing in (0, 1, 2, 5, 30):
        b = rng(differing).beta(2, 5, size=40)
        a = np.where(np.arange(40) < differing, rng(differing + 1).beta(5, 2, size=40), b)
        ab = paired_difference(a, b, resamples=400, bounds=bounds)
        ba = paired_difference(b, a, resamples=400, bounds=bounds)
        assert ab.ci is not None and ba.ci is not None and ab.ci == pytest.approx([-ba.ci[1], -ba.ci[0]], abs=1e-12)
        assert -1 <= ab.ci[0] <= ab.estimate <= ab.ci[1] <= 1


def test_a_ratio_of_lengths_is_not_negative() -> None:
    top = np.zeros(30)
    top[:2] = 50
    found = paired_difference(top, np.full(30, 10.0), kind="ratio")
    assert found.low is not None and found.high is not None and 0 <= found.low <= found.estimate <= found.high < 5
