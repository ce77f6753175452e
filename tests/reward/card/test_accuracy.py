"""Pair accuracy by hand, its units, its interval's coverage, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from reward.card.accuracy import pair_accuracy, pair_outcomes


def test_pair_accuracy_by_hand():
    """M9: a > b right, a > c a tie of scores, b > c wrong; tied labels, no pair; right."""
    scores, ranks = [[2, 1, 2], [5, 1], [0, 3]], [[0, 1, 2], [0, 0], [1, 0]]
    outcomes, owners = pair_outcomes(scores, ranks)
    assert outcomes.tolist() == [1, 0.5, 0, 1] and owners.tolist() == [0, 0, 0, 2]
    found = pair_accuracy(scores, ranks)
    assert found.estimate == pytest.approx(2.5 / 4)
    assert found.n == 2 and found.ci is None  # two rankings have pairs: too few for an interval


def test_all_right_is_no_certainty():
    found = pair_accuracy([[2.0, 1.0]] * 30, [[0, 1]] * 30)
    assert found.estimate == 1 and found.low is not None and found.low < 0.95


def test_the_interval_takes_rankings_as_units():
    """M9: six pairs that are right or wrong together say no more than one does."""
    up, down, ranks = [3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [0, 1, 2, 3]
    whole = pair_accuracy([up] * 70 + [down] * 30, [ranks] * 100)
    single = pair_accuracy([up[:2]] * 70 + [down[:2]] * 30, [ranks[:2]] * 100)
    assert whole.estimate == single.estimate == pytest.approx(0.7) and whole.n == 100
    assert whole.low is not None and whole.high is not None and single.low is not None and single.high is not None
    assert whole.high - whole.low == pytest.approx(single.high - single.low, rel=0.05)


def test_the_interval_covers_the_accuracy_of_simulated_reward_models():
    """1,000 reward models on 60 rankings of 2 to 5 answers; the truth from a million pairs of the same kind."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 6, size=60)

    def drawn(k: int) -> tuple[list[float], list[int]]:
        quality = rng.normal(size=k)
        return (quality + rng.normal(size=k)).tolist(), np.argsort(np.argsort(-quality)).tolist()

    a, b = rng.normal(size=(2, 1_000_000))
    truth = float(np.mean((a > b) == (a + rng.normal(size=a.size) > b + rng.normal(size=a.size))))
    inside = 0
    for _ in range(1000):
        rows = [drawn(int(k)) for k in sizes]
        found = pair_accuracy([s for s, _ in rows], [r for _, r in rows])
        assert found.low is not None and found.high is not None
        inside += found.low <= truth <= found.high
    assert 930 <= inside <= 970


def test_what_does_not_match_is_refused():
    with pytest.raises(ValueError, match="ranking 0"):
        pair_accuracy([[1.0]], [[0, 1]])
    with pytest.raises(ValueError, match="2 rankings"):
        pair_accuracy([[1.0, 2.0]], [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match="different ranks"):
        pair_accuracy([[1.0, 2.0]], [[0, 0]])
