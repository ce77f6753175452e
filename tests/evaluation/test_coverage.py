"""Coverage and false calls by simulation (the long table: benchmarks/coverage.py), Holm, length control."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from data.common.paired_tests import holm
from evaluation.metrics.length_control import length_controlled_win_rate
from evaluation.results import assemble
from tests.support.answers import responses_of

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
SPEC = importlib.util.spec_from_file_location("coverage_table", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(table)
SIMULATIONS = 600
SLACK = 2.5 * np.sqrt(0.95 * 0.05 / SIMULATIONS)  # what so few simulations can tell


UNSEEN = {
    "mean, log-normal (sigma 1)": 0.89,
    "mean, very heavy tail (Pareto 3)": 0.90,
    "mean of no known range, all but 5 % are 0": 0.55,
}
WIDE = [w for w in table.WORLDS if "in [0, 1]" in w or "in [-1, 1]" in w]  # a range and few values: more than asked


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table, "RESAMPLES", 400)


@pytest.mark.parametrize("world", list(table.WORLDS))
def test_intervals_cover_at_the_smallest_n(world: str):
    found = table.coverage(table.WORLDS[world], table.SMALLEST[world], SIMULATIONS)
    if world in UNSEEN:  # what was not drawn has no known size: docs/measurements/statistics.md says so
        assert UNSEEN[world] - SLACK < found, found
    elif world in WIDE:
        assert found > 0.93 - SLACK, found
    else:
        assert 0.93 - SLACK < found < 0.97 + SLACK, found


@pytest.mark.parametrize("how", ["one sample a prompt", "with ties", "mean of a metric"])
def test_a_system_is_not_called_better_than_itself(how: str):
    assert max(table.SELVES[how](40, 1000)) <= table.allowed(1000)


@pytest.mark.parametrize("n", [20, 21, 50, 101, 200])
def test_the_exact_rate_of_such_calls_is_below_the_nominal_one(n: int):
    """Every number of wins, weighed by its probability: no simulation, no luck."""
    assert 0.001 < table.exact_rate(n) <= 0.025


def test_ties_leave_it_below_as_well():
    """Given how many pairs differ, the test is exact: of any number of them at most 2.5 % are called better."""
    for differing in (*range(1, 40), 199):
        wins = np.arange(differing + 1)
        p = np.array([stats.binomtest(int(w), differing, 0.5).pvalue for w in wins])
        called = (p < 0.05) & (wins > differing / 2)
        assert stats.binom.pmf(wins, differing, 0.5)[called].sum() <= 0.025


def test_holm_by_hand():
    # sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 (kept at 0.06), 0.5
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_many_systems_are_corrected():
    rng = np.random.default_rng(0)
    base = rng.normal(size=60)
    hint = base + np.where(np.arange(60) < 39, 1.0, -1.0)  # 39 of 60: p = 0.027
    one = assemble([responses_of("sft", gold=base), responses_of("a", gold=hint)], judge="gold", resamples=200)
    names = "abcdefgh"
    many = [responses_of(n, gold=hint if n == "a" else base + rng.normal(size=60)) for n in names]
    eight = assemble([responses_of("sft", gold=base), *many], judge="gold", resamples=200)
    assert one["comparisons"][0]["verdict"] == "better"
    first = eight["comparisons"][0]
    assert first["p_value"] < 0.05 < first["p_value_holm"] and first["verdict"] == "not shown"
    assert "once all comparisons count" in first["verdict_text"]


def test_a_win_by_length_alone_is_none_at_equal_length():
    rng = np.random.default_rng(0)
    difference = rng.normal(0.7, 1, size=2000)
    y = (rng.random(2000) < 1 / (1 + np.exp(-2 * np.tanh(difference / np.sqrt(1.49))))) * 1.0
    found = length_controlled_win_rate(y, difference)
    assert y.mean() > 0.6 and found.low is not None and found.high is not None
    assert found.low < 0.5 < found.high and abs(found.estimate - 0.5) < 0.04


def test_length_control_mirrors_and_knows_its_limits():
    rng = np.random.default_rng(1)
    y, d = rng.choice([0, 0.5, 1], size=60), rng.normal(size=60)
    ab, ba = length_controlled_win_rate(y, d), length_controlled_win_rate(1 - y, -d)
    assert ab.estimate + ba.estimate == pytest.approx(1, abs=1e-12)
    assert ab.ci is not None and ba.ci is not None and ab.ci == pytest.approx([1 - ba.ci[1], 1 - ba.ci[0]], abs=1e-9)
    assert length_controlled_win_rate(y, np.zeros(60)).estimate == pytest.approx((y.sum() + 0.5) / 61)
    assert "longer to every prompt" in length_controlled_win_rate(y, np.abs(d) + 1).note
    assert length_controlled_win_rate(y[:10], d[:10]).ci is None
    all_won = length_controlled_win_rate(np.ones(30), d[:30]).ci
    assert all_won is not None and 0.6 < all_won[0] < all_won[1] < 1
