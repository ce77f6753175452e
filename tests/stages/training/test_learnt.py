"""What is said of a training: right about planted changes, silent about noise, and with advice that fits."""

from __future__ import annotations

import numpy as np
import pytest

from stages.training.learnt import accuracy_of, change, loss_of, sentence


def values(losses, tokens=None, right=None, of=None):
    losses = np.asarray(losses, dtype=float)
    rows = len(losses)
    columns = [losses, tokens or [1.0] * rows, right or [0.0] * rows, of or [0.0] * rows]
    return np.stack([np.asarray(c, dtype=float) for c in columns], axis=1)


def said(before, after, prompts=None, *, step=20, steps=20, lowest=None, key="sft", rate=2e-4):
    found = change(before, after, prompts or list(range(len(before))))
    lowest = lowest or (steps, loss_of(after))
    return found, sentence(found, before, after, step=step, steps=steps, lowest=lowest, key=key, rate=rate)


def noise(seed, rows=64):
    return np.random.default_rng(seed).normal(0, 0.1, rows)


def test_losses_are_means_over_tokens_and_accuracies_over_pairs():
    rows = values([6.0, 1.0], [2.0, 8.0], [1.0, 2.5], [1.0, 4.0])
    assert loss_of(rows) == pytest.approx(7 / 10) and accuracy_of(rows) == pytest.approx(3.5 / 5)
    assert accuracy_of(values([1.0])) is None


def test_a_fall_beyond_doubt_is_learnt():
    base = 3.2 + noise(0)
    found, text = said(values(base), values(base - 0.3 + noise(1) / 2))
    assert found.learnt is True and found.loss == pytest.approx(-0.3, abs=0.02)
    assert found.ci95[0] < found.loss < found.ci95[1] < 0 and "nothing was learnt" not in text
    assert text.startswith("held-out loss 3.2")


def test_a_fall_that_noise_explains_is_not():
    """The mean falls, and a bare comparison would call it learnt."""
    base = 3.2 + noise(0)
    shift = noise(2)
    after = base + shift - shift.mean() - 0.002
    found, text = said(values(base), values(after))
    assert found.loss < 0 and found.learnt is False and not found.rose
    assert "nothing was learnt" not in text and "within chance for 64 prompts (a difference of -0.002, 95 % [" in text
    assert text.endswith("more held-out rows would tell, or try sft.learning_rate=1.0e-03, or more sft.epochs")
    _, text = said(values(base), values(base))
    assert text.endswith("nothing was learnt; try sft.learning_rate=1.0e-03, or more sft.epochs")


def test_pairs_show_what_the_spread_of_rows_would_hide():
    base = 3.2 + 20 * noise(0)
    assert said(values(base), values(base - 0.1 + noise(1) / 10))[0].learnt is True


def test_a_loss_that_rises_asks_for_smaller_steps():
    base = 3.24 + noise(0)
    found, text = said(values(base), values(base + 0.19 + noise(1) / 2), steps=21, step=21)
    assert found.rose and "after 21 steps: nothing was learnt; try sft.learning_rate=4.0e-05" in text


def test_a_loss_that_fell_first_says_where():
    base = 3.24 + noise(0)
    _, text = said(values(base), values(base + 0.19 + noise(1) / 2), lowest=(9, 2.9))
    assert "it was 2.9 at step 9: try sft.keep=best" in text and "nothing was learnt" not in text


def test_a_loss_that_fell_first_and_ends_higher_by_chance_is_not_told_to_take_larger_steps():
    base = 0.69 + noise(0)
    found, text = said(values(base), values(base + 0.05 + 4 * noise(1)), lowest=(9, 0.6))
    assert found.learnt is False and not found.rose and found.loss > 0
    assert "nothing was learnt that is left at the end; it was 0.6 at step 9: try sft.keep=best, or a " in text
    assert "below 2.0e-04" in text and "or more sft.epochs" not in text


def test_few_prompts_tell_nothing_however_many_rows_they_have():
    base = np.full(60, 3.0)
    found, text = said(values(base), values(base - 0.5), [i % 19 for i in range(60)])
    assert found.learnt is None and "19 held-out prompts are too few to tell; it takes 20" in text


def test_rows_of_one_prompt_are_one_observation():
    """Twenty independent differences, each ten times: the interval is that of twenty, not of two hundred."""
    some = np.random.default_rng(3).normal(-0.02, 0.1, 20)
    base = np.zeros(200)
    single = change(values(base), values(np.repeat(some, 10)), list(range(200)))
    together = change(values(base), values(np.repeat(some, 10)), [i // 10 for i in range(200)])
    width = [c.ci95[1] - c.ci95[0] for c in (single, together)]
    assert width[1] > 2.5 * width[0]


@pytest.mark.parametrize(("right", "within"), [(0.55, True), (0.4, False)])
def test_a_fall_within_chance_is_none_where_most_pairs_are_wrong(right, within):
    """A loss of shrinking scores falls too."""
    rows = 64
    outcomes = [1.0 if i < right * rows else 0.0 for i in range(rows)]
    start = values(0.75 + noise(0), None, [0.5] * rows, [1.0] * rows)
    after = values(0.745 + noise(1), None, outcomes, [1.0] * rows)
    found, text = said(start, after, key="reward")
    assert found.loss < 0 and found.learnt is False
    assert found.within_chance is within is ("within chance" in text)


@pytest.mark.parametrize(("right", "shift", "expected"), [(0.8, 0.3, True), (0.5, -0.1, False), (0.5, 0.3, False)])
def test_a_reward_model_has_learnt_where_pairs_are_right(right, shift, expected):
    """Right pairs count though the loss rose (it is too sure), and a loss of shrinking scores does not."""
    before, rows = 0.75 + noise(0), 64
    outcomes = [1.0 if i < right * rows else 0.0 for i in range(rows)]
    after = values(before + shift, None, outcomes, [1.0] * rows)
    start = values(before, None, [0.5] * rows, [1.0] * rows)
    assert said(start, after, key="reward")[0].learnt is expected


def test_a_loss_that_fell_beyond_doubt_shows_nothing_of_a_coins_pairs():
    """0.7377 before and 0.7375 after, both worse than a coin's 0.693, with 52 % of the pairs right."""
    rows = 96
    before = 0.7377 + noise(0, rows)
    outcomes = [1.0 if i < 50 else 0.0 for i in range(rows)]
    after = values(before - 0.0002 + noise(1, rows) / 1000, None, outcomes, [1.0] * rows)
    found, text = said(values(before, None, [0.5] * rows, [1.0] * rows), after, key="reward")
    assert found.ci95[1] < 0 and found.learnt is False and found.within_chance
    assert "52.1% of the pairs right (95 % [" in text and "within chance for 96 prompts, since a coin has half" in text


def test_a_loss_that_is_no_number_is_nothing_learnt():
    base = values(3 + noise(0))
    found, text = said(base, values(np.full(64, np.nan)))
    assert found.learnt is False and found.rose and "nothing was learnt; try sft.learning_rate=4.0e-05" in text


def test_rate_0_and_equal_losses():
    base = values(3 + noise(0))
    found, text = said(base, base, rate=0.0)
    assert found.loss == 0 and found.ci95 == (0.0, 0.0) and "sft.learning_rate above 0" in text
