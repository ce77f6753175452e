"""Bad signs are told once, at the update where they can be believed, and never in a healthy run."""

from __future__ import annotations

import pytest

from stages.ppo.warning_signs import LONG, PATIENCE, STILL, Watch

HEALTHY = {
    "objective/kl": 1.0, "objective/entropy": 2.0, "objective/scores_std": 1.0, "ppo/value/explained_variance": 0.3,
    "rollout/truncated_fraction": 0.2, "rollout/length": 20.0, "ppo/skipped_steps": 0.0,
}  # fmt: skip


def feed(changes: list[dict[str, float]], critic_warmup: int = 0) -> list[tuple[int, str]]:
    watch = Watch(critic_warmup=critic_warmup)
    out = [(step, text) for step, change in enumerate(changes, 1) for text in watch.record(step, HEALTHY | change)]
    assert [(w.step, w.text) for w in watch.given] == out
    return out


def test_a_healthy_run_says_nothing():
    assert feed([{"objective/kl": 0.1 * i, "rollout/length": 20 + 0.1 * i} for i in range(60)]) == []


@pytest.mark.parametrize(
    ("name", "values", "step", "words"),
    [
        ("objective/kl", [-0.5] * 9, PATIENCE, "negative"),
        ("objective/kl", [1.0, 30.0, 31.0, 35.0, 50.0], 4, "growing"),
        ("objective/entropy", [2.0, 0.3, 0.3, 0.3, 0.3], 4, "entropy"),
        ("ppo/value/explained_variance", [-0.2] * (LONG + 5), LONG, "critic"),
        ("objective/scores_std", [1.0, 0.01, 0.01, 0.01, 0.01], 4, "hardly differ"),
        ("objective/scores_std", [0.0] * 5, PATIENCE, "hardly differ"),
        ("rollout/truncated_fraction", [1.0] * 5, PATIENCE, "max_new_tokens"),
        ("rollout/scored_cut_fraction", [0.06] * 5, PATIENCE, "reward.max_tokens"),
        ("rollout/scored_unknown_fraction", [0.06] * 5, PATIENCE, "reward.base"),
        ("rollout/length", [10.0] * 9 + [20.0] * 9, 12, "length"),
        ("ppo/skipped_steps", [0.0, 1.0, 1.0], 2, "not finite"),
    ],
)
def test_each_sign_once_with_its_remedy(name, values, step, words):
    told = feed([{name: v} for v in values])
    assert len(told) == 1 and told[0][0] == step and words in told[0][1]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("objective/kl", [-0.5, 0.5, -0.5, 0.5] * 5),
        ("objective/kl", [0.4, -0.2, 0.5, 0.3, -0.12, -0.3, -0.11, 0.4]),  # three in a row, by chance
        ("objective/kl", [-0.11, -1.9, -0.12]),
        ("objective/kl", [40.0, 35.0, 30.0, 28.0]),
        ("ppo/value/explained_variance", [-0.5] * (LONG - 1) + [0.1]),
        ("objective/entropy", [2.0, 0.3, 0.3, 1.0, 0.3, 0.3]),
        ("rollout/scored_cut_fraction", [0.06, 0.04] * 5),
        ("rollout/scored_unknown_fraction", [0.05] * 5),
    ],
)
def test_what_passes_is_not_told(name, values):
    assert feed([{name: v} for v in values]) == []


MOVES = {"ppo/policy/clipfrac": 0.004, "objective/scores": 0.3}


@pytest.mark.parametrize("warmup", [0, 4])
def test_small_steps_without_gain_are_told_after_ten_of_them(warmup: int) -> None:
    """The first one is larger, by Adam; while the critic alone is trained the policy has none."""
    warm, first = MOVES | {"ppo/policy/clipfrac": 0.0}, MOVES | {"ppo/policy/clipfrac": 0.2}
    told = feed([*[warm] * warmup, first, *[MOVES] * 25], critic_warmup=warmup)
    assert [step for step, _ in told] == [warmup + 1 + STILL] and "Raise ppo.learning_rate" in told[0][1]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"ppo/policy/clipfrac": 0.01 if i == 7 else 0.004} for i in range(30)], False),  # one that is not small
        ([{"ppo/policy/clipfrac": 0.05 if i < 9 else 0.001} for i in range(40)], False),  # rates that fall
        ([{"objective/scores": 0.3 + 0.01 * i + 0.02 * (-1) ** i} for i in range(30)], False),  # scores rise
        ([{"objective/scores": 0.3 + 0.04 * (-1) ** i} for i in range(30)], True),
        ([{"objective/scores": 0.3 - 0.01 * i} for i in range(30)], True),
    ],
)
def test_steps_that_are_large_once_or_bring_something_are_no_sign(rows: list[dict[str, float]], told: bool) -> None:
    assert len(feed([MOVES | row for row in rows])) == told


def test_metrics_that_are_missing_are_no_sign():
    watch = Watch()
    assert all(watch.record(i, {}) == [] for i in range(40))


@pytest.mark.parametrize(("last", "words"), [(7.9, "the reward is met"), (-0.5, "nothing to learn from")])
def test_scores_that_are_alike_are_a_fault_or_the_end(last: float, words: str) -> None:
    """Alike since all are far better than the first ones', or alike as they were."""
    rows = [{"objective/scores_std": 1.0, "objective/scores": -1.0}]
    rows += [{"objective/scores_std": 0.01, "objective/scores": last}] * 5
    told = feed(rows)
    assert len(told) == 1 and words in told[0][1]


def test_a_long_run_keeps_no_more_than_the_signs_need():
    """And they still show: the first values are remembered, however long ago they were."""
    watch = Watch()
    for step in range(1, 2_001):
        assert watch.record(step, HEALTHY) == [] and len(watch.history.rows) <= LONG
    longer = HEALTHY | {"rollout/length": 40.0, "objective/entropy": 0.3, "objective/scores_std": 0.01}
    told = [text for step in range(2_001, 2_004) for text in watch.record(step, longer)]
    assert len(told) == 3 and len(watch.history.rows) == LONG
