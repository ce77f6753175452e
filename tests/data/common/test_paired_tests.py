"""Coverage by simulation, exact mirrors, degenerate cases, and agreement with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from data.common.paired_tests import (
    MINIMUM,
    Comparison,
    mean_interval,
    paired_comparison,
    paired_difference,
    proportion_interval,
    verdict,
)


def _compare(wins: int, ties: int, losses: int) -> Comparison:
    a = np.array([1.0] * wins + [0.0] * ties + [-1.0] * losses)
    return paired_comparison(a, np.zeros_like(a))


def test_counts_and_sign_test_agree_with_scipy():
    c = _compare(30, 10, 15)
    assert (c.wins, c.ties, c.losses, c.n) == (30, 10, 15, 55)
    assert c.win_rate == pytest.approx((30 + 5) / 55)
    assert c.p_value == stats.binomtest(30, 45, 0.5).pvalue


def test_wilson_without_ties_equals_scipy():
    ours = proportion_interval(np.repeat([1.0, 0.0], [33, 7])).ci
    theirs = stats.binomtest(33, 40).proportion_ci(method="wilson")
    assert ours == pytest.approx([theirs.low, theirs.high], abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("per_prompt", [1, 3])
def test_comparison_mirrors_exactly(seed: int, per_prompt: int):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 60))
    clusters = [f"p{i}" for i in range(n) for _ in range(per_prompt)]
    a, b = rng.integers(0, 3, (2, n * per_prompt)).astype(float)
    ab, ba = paired_comparison(a, b, clusters=clusters), paired_comparison(b, a, clusters=clusters)
    assert ab.win_rate + ba.win_rate == 1
    assert ab.ci95 is not None and ba.ci95 is not None
    assert ab.ci95 == (1 - ba.ci95[1], 1 - ba.ci95[0])
    assert (ab.p_value, ab.minimum_detectable, ab.needed) == (ba.p_value, ba.minimum_detectable, ba.needed)
    d, e = paired_difference(a, b, clusters=clusters).ci, paired_difference(b, a, clusters=clusters).ci
    assert d is not None and e is not None and d == [-e[1], -e[0]]


def test_all_wins_and_all_ties_keep_an_interval_of_some_width():
    won, tied = _compare(40, 0, 0), _compare(0, 40, 0)
    assert won.ci95 is not None and won.ci95[1] == 1 and 0.85 < won.ci95[0] < 0.95
    assert tied.ci95 is not None and 0.40 < tied.ci95[0] < 0.5 < tied.ci95[1] < 0.60
    assert tied.p_value == 1 and verdict(tied).word == "not shown"


def test_too_few_prompts_are_said_instead_of_an_interval():
    c = _compare(MINIMUM - 1, 0, 0)
    assert c.ci95 is None and verdict(c).word == "not shown"
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.estimate == 2 and found.ci is None and "too few" in found.note
    # Many samples of few prompts are still few prompts.
    assert mean_interval(np.arange(100.0), clusters=["a", "b"] * 50).ci is None


def test_verdict_words():
    assert verdict(_compare(200, 16, 40)).word == "better"
    assert verdict(_compare(40, 16, 200)).word == "worse"
    unclear = verdict(_compare(27, 0, 23))
    assert unclear.word == "not shown"
    assert unclear.text == "not shown with 50 prompts; about 1,300 would be needed"


def test_minimum_detectable_effect_is_what_a_simulation_detects():
    n = 200
    effect = _compare(100, 0, 100).minimum_detectable
    rng = np.random.default_rng(0)
    wins = rng.binomial(n, 0.5 + effect, size=2000)
    power = np.mean([stats.binomtest(int(w), n).pvalue < 0.05 for w in wins])
    assert 0.72 < power < 0.86  # the exact test is a little weaker than the normal formula


@pytest.mark.parametrize(("n", "p"), [(20, (0.7, 0.2, 0.1)), (20, (0.5, 0.0, 0.5)), (100, (0.3, 0.4, 0.3))])
def test_coverage_of_win_rates(n: int, p: tuple[float, float, float]):
    rng = np.random.default_rng(1)
    truth, hits = p[0] + p[1] / 2, 0
    for _ in range(600):
        low, high = proportion_interval(rng.choice([1, 0.5, 0], size=n, p=p)).ci or (1, 0)
        hits += low <= truth <= high
    assert 0.925 < hits / 600 < 0.985


def test_coverage_with_clusters_which_rows_taken_alone_would_miss():
    rng = np.random.default_rng(2)
    hits, naive = 0, 0
    for _ in range(400):
        q = rng.beta(0.6, 0.3, size=40)
        x = (rng.random((40, 5)) < q[:, None]).astype(float).ravel()
        low, high = proportion_interval(x, list(np.repeat(np.arange(40), 5))).ci or (1, 0)
        hits += low <= 2 / 3 <= high
        low, high = proportion_interval(x).ci or (1, 0)
        naive += low <= 2 / 3 <= high
    assert 0.92 < hits / 400 < 0.985 and naive / 400 < 0.85


@pytest.mark.parametrize("n", [20, 60])
def test_coverage_of_means(n: int):
    rng = np.random.default_rng(3)
    hits = 0
    for i in range(300):
        low, high = mean_interval(rng.gamma(4.0, size=n), resamples=800, seed=i).ci or (1, 0)
        hits += low <= 4 <= high
    assert 0.915 < hits / 300 < 0.985


@pytest.mark.parametrize("per_prompt", [1, 4])
def test_a_system_against_itself_is_seldom_called_better(per_prompt: int):
    rng = np.random.default_rng(4)
    calls = 0
    for i in range(400):
        prompt = rng.normal(size=(40, 1)) * 0.5  # what one lucky prompt does to all its samples
        a = (rng.normal(size=(40, per_prompt)) + prompt).ravel()
        clusters = list(np.repeat(np.arange(40), per_prompt))
        c = paired_comparison(a, np.zeros_like(a), clusters=clusters, resamples=400, seed=i)
        calls += verdict(c).word != "not shown"
    assert calls / 400 <= 0.07


def test_mean_interval_is_reproducible_and_near_the_normal_one_when_n_is_large():
    x = np.random.default_rng(5).normal(3, 2, size=800)
    first, second = mean_interval(x, seed=7), mean_interval(x, seed=7)
    assert first == second and first.ci is not None
    half = 1.96 * x.std() / np.sqrt(800)
    assert first.ci == pytest.approx([x.mean() - half, x.mean() + half], abs=0.02)


def test_paired_difference_and_ratio():
    rng = np.random.default_rng(6)
    b = rng.uniform(10, 20, size=100)
    a = 1.5 * b + rng.normal(size=100)
    ratio, difference = paired_difference(a, b, kind="ratio"), paired_difference(a, b)
    assert ratio.ci is not None and ratio.ci[0] < 1.5 < ratio.ci[1] and ratio.ci[1] - ratio.ci[0] < 0.06
    assert difference.estimate == pytest.approx(a.mean() - b.mean())
    assert paired_difference(b + 3, b).ci == [3, 3]
    same = paired_difference(b, b)  # no pair of a hundred differs: so far
    assert same.estimate == 0 and same.ci == pytest.approx([-0.027, 0.027], abs=1e-3)
    with pytest.raises(ValueError, match="positive"):
        paired_difference(a, -b, kind="ratio")


@pytest.mark.parametrize("bad", [[], [np.nan], [[1.0]]])
def test_bad_values_are_refused(bad: list):
    with pytest.raises(ValueError):
        mean_interval(bad)
