"""The maths against hand-worked numbers, naive float64 loops and properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from stages import ppo_math as pm
from stages.ppo.kl_controller import AdaptiveKL, FixedKL

T = torch.tensor


def ragged(seed=0, rows=7, width=9):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, width + 1, (rows,), generator=g)
    lengths[0], lengths[1], lengths[2] = 1, width, 0
    mask = pm.response_mask(lengths, width)
    return g, mask, lambda: torch.randn(rows, width, generator=g, dtype=torch.float64)


def poison(x, mask):
    """NaN, infinity and huge numbers wherever nothing real is."""
    bad = T([math.nan, math.inf, -math.inf, 1e30], dtype=x.dtype).repeat(x.numel() // 4 + 1)[: x.numel()].view_as(x)
    return torch.where(mask, x, bad)


# -- means and whitening -----------------------------------------------------------------------------------------


def test_masked_mean_by_hand_and_its_gradient():
    """L6."""
    x = T([[1.0, 100.0], [1.0, -50.0]], requires_grad=True)
    mask = T([[True, False], [True, False]])
    value = pm.masked_mean(x, mask)
    value.backward()
    assert value.item() == 1.0
    assert x.grad.tolist() == [[0.5, 0.0], [0.5, 0.0]]


def test_token_mean_is_not_a_mean_of_means():
    """C1, O7: rows of 1 and 9 tokens with losses 1 and 0 give 0.1; five tokens in two micro-batches give 0.32."""
    x = torch.zeros(2, 9)
    x[0, 0] = 1.0
    assert_close(pm.masked_mean(x, pm.response_mask(T([1, 9]), 9)), T(0.1))
    parts = [T([[0.8]]), T([[0.2, 0.2, 0.2, 0.2]])]
    total = sum(pm.masked_mean(p, torch.ones_like(p, dtype=torch.bool), 5.0) for p in parts)
    assert_close(total, T(0.32))


def test_whitening_by_hand():
    """W11, A5: ragged [[1, 2, 3], [4]]: mean 2.5, unbiased variance 1.6667."""
    x, mask = T([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]]), pm.response_mask(T([3, 1]), 3)
    white = pm.whiten(x, mask)
    assert_close(white, T([[-1.16190, -0.38730, 0.38730], [1.16190, 0.0, 0.0]]), atol=1e-5, rtol=0)
    assert_close(pm.whiten(x, mask, shift_mean=False)[mask], white[mask] + 2.5)


def test_whitening_does_not_depend_on_the_scale_and_two_tokens_are_enough():
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert_close(pm.whiten(T([[1.0, 3.0]]), mask), T([[-0.707107, 0.707107]]), atol=1e-5, rtol=0)
    _, mask, draw = ragged(8)
    x = draw()
    assert_close(pm.whiten(x * 1e-3, mask), pm.whiten(x, mask))
    assert_close(pm.explained_variance(x * 1e-3 + 1e-4, x * 1e-3, mask), torch.ones((), dtype=torch.float64))


def test_whitened_values_have_mean_0_and_variance_1_whatever_the_padding():
    _g, mask, draw = ragged(1)
    x = 5 + 3 * draw()
    white = pm.whiten(x, mask)
    assert abs(white[mask].mean()) < 1e-12 and abs(white[mask].var() - 1) < 1e-9
    wide = torch.cat([poison(x, mask), torch.full((x.shape[0], 10), math.nan, dtype=x.dtype)], 1)
    wide_mask = torch.cat([mask, torch.zeros(x.shape[0], 10, dtype=torch.bool)], 1)
    assert torch.equal(pm.whiten(wide, wide_mask)[:, : x.shape[1]], white)


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_whitening_too_few_or_equal_tokens_gives_finite_zeros(tokens):
    """A7."""
    x = torch.full((1, 3), 4.0)
    assert torch.equal(pm.whiten(x, pm.response_mask(T([tokens]), 3)), torch.zeros(1, 3))


def test_whitening_over_two_processes_equals_one():
    """D2: statistics from global sums, a process without tokens included."""
    _g, mask, draw = ragged(2)
    x = draw()
    half = [(x[:3], mask[:3]), (x[3:], mask[3:])]
    log = []

    def collect(t):
        log.append(t)
        return t

    for part in half:  # first pass: find each process's own sums
        pm.whiten(*part, reduce=collect)
    first = log[0] + log[2]
    results = []
    mean = first[1] / first[0]
    squares = sum(((p - mean)[m] ** 2).sum() for p, m in half)
    for part in half:
        answers = iter([first, squares])
        results.append(pm.whiten(*part, reduce=lambda _, a=answers: next(a)))
    assert_close(torch.cat(results), pm.whiten(x, mask))


# -- KL and rewards ----------------------------------------------------------------------------------------------


def test_kl_estimators_by_hand():
    """W2."""
    p, q = T([-1.0]), T([-1.5])
    for name, there, back in (("k1", 0.5, -0.5), ("k2", 0.125, 0.125), ("k3", 0.1065306597, 0.1487212707)):
        assert_close(pm.kl_penalty(p, q, name), T([there]))
        assert_close(pm.kl_penalty(q, p, name), T([back]))
    with pytest.raises(ValueError, match="k4"):
        pm.kl_penalty(p, q, "k4")


def test_kl_estimators_are_unbiased():
    """W3: the mean over samples of k1 and of k3 is the exact KL within four standard errors."""
    g = torch.Generator().manual_seed(0)
    p, q = (torch.softmax(torch.randn(6, generator=g, dtype=torch.float64), 0) for _ in range(2))
    exact = (p * (p / q).log()).sum()
    ids = torch.multinomial(p, 400_000, replacement=True, generator=g)
    for name in ("k1", "k3"):
        sample = pm.kl_penalty(p.log()[ids], q.log()[ids], name)
        assert abs(sample.mean() - exact) < 4 * sample.std() / len(ids) ** 0.5


def test_the_score_lands_on_the_last_real_token():
    """W1, W15: one number a row, on the stop token or the last sampled one; an empty row gets nothing."""
    mask = pm.response_mask(T([3, 1, 4, 0]), 4)
    kl = torch.full((4, 4), 2.0)
    rewards = pm.token_rewards(T([10.0, 20.0, 30.0, 40.0]), poison(kl, mask), mask, 0.1)
    expected = T([[-0.2, -0.2, 9.8, 0.0], [19.8, 0.0, 0.0, 0.0], [-0.2, -0.2, -0.2, 29.8], [0.0] * 4])
    assert_close(rewards, expected)


def test_token_rewards_add_up_to_score_minus_penalty():
    _, mask, draw = ragged(3)
    kl, scores = draw(), torch.arange(7, dtype=torch.float64)
    rewards = pm.token_rewards(scores, kl, mask, 0.3)
    expected = torch.where(mask.any(1), scores, 0) - 0.3 * (kl * mask).sum(1)
    assert_close(rewards.sum(1), expected)


def test_wrong_shapes_are_refused():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="shapes"):
        pm.token_rewards(torch.zeros(2, 1), torch.zeros(2, 3), mask, 0.1)


# -- advantages --------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    """A1: then two columns of padding with values of 9, which change nothing."""
    mask = pm.response_mask(T([4]), 6)
    rewards, values = T([[-0.1, 0.0, 0.05, 1.0, 0.0, 0.0]]), T([[0.5, 0.4, 0.3, 0.2, 9.0, 9.0]])
    advantages, returns = pm.gae(rewards, values, mask, 0.9, 0.8)
    assert_close(advantages, T([[-0.0712896, 0.23432, 0.506, 0.8, 0.0, 0.0]]))
    assert_close(returns, T([[0.4287104, 0.63432, 0.806, 1.0, 0.0, 0.0]]))


def test_the_stop_token_gets_undiscounted_credit():
    """W1: values .1 .2 .3 and a score of 2 on the stop token."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    rewards = pm.token_rewards(T([2.0]), torch.zeros(1, 3), mask, 0.0)
    advantages, _ = pm.gae(rewards, T([[0.1, 0.2, 0.3]]), mask, 1.0, 0.95)
    assert_close(advantages, T([[1.72925, 1.715, 1.7]]))


def naive_gae(rewards, values, mask, gamma, lam):
    advantages = torch.zeros_like(values)
    for b in range(values.shape[0]):
        real = [t for t in range(values.shape[1]) if mask[b, t]]
        for i, t in enumerate(real):
            total = 0.0
            for j in range(i, len(real)):
                after = values[b, real[j + 1]].item() if j + 1 < len(real) else 0.0
                delta = rewards[b, real[j]].item() + gamma * after - values[b, real[j]].item()
                total += (gamma * lam) ** (j - i) * delta
            advantages[b, t] = total
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_equals_the_definition_on_ragged_rows_with_holes(gamma, lam):
    """A1, A2, A8."""
    g, mask, draw = ragged(4)
    mask = mask & (torch.rand(mask.shape, generator=g) > 0.2)
    rewards, values = draw(), draw()
    advantages, returns = pm.gae(poison(rewards, mask), poison(values, mask), mask, gamma, lam)
    assert_close(advantages, naive_gae(rewards, values, mask, gamma, lam))
    assert_close(returns, (advantages + values) * mask)
    if gamma == lam == 1.0:
        to_go = torch.flip(torch.cumsum(torch.flip(rewards * mask, [1]), 1), [1]) * mask
        assert_close(returns, to_go)


# -- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss"),
    [
        (1, 0.5, -0.5),
        (1, 0.9, -0.9),
        (1, 1.1, -1.1),
        (1, 1.5, -1.2),
        (-1, 0.5, 0.8),
        (-1, 0.9, 0.9),
        (-1, 1.1, 1.1),
        (-1, 1.5, 1.5),
    ],
)
def test_policy_loss_clips_on_the_right_side(advantage, ratio, loss):
    """O1: value, and a gradient of exactly 0 where the clip holds, -A r elsewhere."""
    new = T([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    value, metrics = pm.policy_loss(new, torch.zeros(1, 1).double(), T([[float(advantage)]]).double(), T([[True]]), 0.2)
    value.backward()
    assert value.item() == pytest.approx(loss)
    clipped = (advantage, ratio) in {(1, 1.5), (-1, 0.5)}
    assert new.grad.item() == pytest.approx(0.0 if clipped else -advantage * ratio, abs=1e-12)
    assert metrics["clipfrac"].item() == float(clipped)
    assert metrics["ratio"].item() == pytest.approx(ratio)
    assert metrics["approxkl"].item() == pytest.approx(0.5 * math.log(ratio) ** 2)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"), [(1.0, 0.5, 2.0, 0.845), (0.6, 0.5, 2.0, 0.98), (1.0, 0.5, 0.6, 0.08)]
)
def test_value_loss_clips_around_the_old_value(value, old, target, loss):
    """O3."""
    found, _ = pm.value_loss(T([[value]]), T([[old]]), T([[target]]), T([[True]]), 0.2)
    assert found.item() == pytest.approx(loss)


def test_value_loss_without_clip_is_half_the_squared_error():
    found, metrics = pm.value_loss(T([[1.0]]), T([[0.0]]), T([[3.0]]), T([[True]]), None)
    assert found.item() == pytest.approx(2.0) and metrics["clipfrac"].item() == 0.0


def test_masked_slots_change_neither_losses_nor_gradients():
    """L4, L5: bit for bit, with NaN, infinities and 1e30 there; and with ten more columns."""
    _, mask, draw = ragged(5)
    old, advantages, old_values, returns = draw(), draw(), draw(), draw()

    def run(fix, pad):
        wide = torch.cat([mask, torch.zeros(mask.shape[0], pad, dtype=torch.bool)], 1)

        def widen(x):
            return fix(torch.cat([x, torch.zeros(x.shape[0], pad, dtype=x.dtype)], 1), wide)

        g = torch.Generator().manual_seed(9)
        x = torch.randn(mask.shape, generator=g, dtype=torch.float64)
        new, values = widen(x).requires_grad_(), widen(x * 2).requires_grad_()
        policy, metrics = pm.policy_loss(new, widen(old), widen(advantages), wide, 0.2)
        value, _ = pm.value_loss(values, widen(old_values), widen(returns), wide, 0.2)
        (policy + value).backward()
        width = mask.shape[1]
        return [policy, value, *metrics.values(), new.grad[:, :width], values.grad[:, :width]]

    clean = run(lambda x, m: x, 0)
    for a, b in zip(clean, run(poison, 0), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(clean, run(poison, 10), strict=True):  # a longer sum may round differently
        assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_huge_ratio_stays_finite():
    """O8."""
    new = T([[100.0, -200.0]], requires_grad=True)
    loss, _ = pm.policy_loss(new, torch.zeros(1, 2), T([[-1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool), 0.2)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(new.grad).all()


def test_explained_variance():
    """E7."""
    _, mask, draw = ragged(6)
    returns = draw()
    assert pm.explained_variance(poison(returns, mask), returns, mask).item() == pytest.approx(1.0)
    assert pm.explained_variance(torch.full_like(returns, 3.0), returns, mask).item() == pytest.approx(0.0, abs=1e-9)
    assert pm.explained_variance(returns, torch.ones_like(returns), mask).item() == 0.0


def test_every_row_is_in_exactly_one_minibatch():
    """C3."""
    g = torch.Generator().manual_seed(0)
    first, second = pm.minibatches(12, 3, g), pm.minibatches(12, 3, g)
    for parts in (first, second):
        assert sorted(torch.cat(list(parts)).tolist()) == list(range(12)) and [len(p) for p in parts] == [4, 4, 4]
    assert torch.cat(list(first)).tolist() != torch.cat(list(second)).tolist()
    with pytest.raises(ValueError, match="12 rows"):
        pm.minibatches(12, 5, g)


def test_kl_controllers():
    """W13: Ziegler's numbers."""
    up, down = (AdaptiveKL(0.2, 6.0, 1e4) for _ in range(2))
    up.update(9.0, 256)
    down.update(3.0, 256)
    assert up.coef == pytest.approx(0.201024) and down.coef == pytest.approx(0.198976)
    fixed = FixedKL(0.05)
    fixed.update(100.0, 256)
    assert fixed.coef == 0.05
