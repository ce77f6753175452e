"""Ranking losses against hand-worked values, naive loops and properties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from reward.losses import pair_counts, pairs_loss, ranking_loss, ranking_losses

T = torch.tensor


@pytest.mark.parametrize("kind", ["pairs", "plackett_luce"])
def test_one_pair_by_hand(kind):
    """M3: scores 1.2 and 0.2; with a margin of 0.5."""
    scores, ranks = T([[1.2, 0.2]]), T([[0, 1]])
    assert ranking_loss(scores, ranks, kind=kind).item() == pytest.approx(0.3132617, abs=1e-6)
    assert ranking_loss(scores, ranks.flip(1), kind=kind).item() == pytest.approx(1.3132617, abs=1e-6)


def test_margin_by_hand():
    margins = T([[[0.0, 0.5], [0.0, 0.0]]])
    assert ranking_loss(T([[1.2, 0.2]]), T([[0, 1]]), margins=margins).item() == pytest.approx(0.4740770, abs=1e-6)


def test_no_smoothing_unless_asked():
    one = torch.ones(1, 2, dtype=torch.bool)
    assert_close(pairs_loss(T([[1.2, 0.2]]), T([[0, 1]]), one)[0], ranking_loss(T([[1.2, 0.2]]), T([[0, 1]])))


def naive_pairs(scores, ranks, smoothing):
    losses = []
    for i, j in itertools.permutations(range(len(scores)), 2):
        if ranks[i] < ranks[j]:
            right = -math.log(1 / (1 + math.exp(-(scores[i] - scores[j]))))
            wrong = -math.log(1 / (1 + math.exp(scores[i] - scores[j])))
            losses.append((1 - smoothing) * right + smoothing * wrong)
    return sum(losses) / len(losses) if losses else 0.0


def naive_plackett_luce(scores, ranks):
    """Whole rankings, Efron's approximation: loops over groups of equal rank, best first."""
    if len(set(ranks)) < 2:
        return 0.0
    total = 0.0
    for rank in sorted(set(ranks)):
        tied = [s for s, r in zip(scores, ranks, strict=True) if r == rank]
        left = sum(math.exp(s) for s, r in zip(scores, ranks, strict=True) if r >= rank)
        for chosen, s in enumerate(tied):
            total += math.log(left - chosen / len(tied) * sum(map(math.exp, tied))) - s
    return total


def test_plackett_luce_by_hand():
    """Scores log 4, log 2, log 1. In order: 4/7 x 2/3. The first two tied: 4/7 x 2/(7 - 6/2). The last two tied:
    4/7, then 2/3 x 1/(3 - 3/2)."""
    scores = T([[4.0, 2.0, 1.0]]).log()
    for ranks, likelihood in (
        ([0, 1, 2], 4 / 7 * 2 / 3),
        ([0, 0, 1], 4 / 7 * 2 / 4),
        ([0, 1, 1], 4 / 7 * 2 / 3 * 1 / 1.5),
    ):
        found = ranking_loss(scores, T([ranks]), "plackett_luce")
        assert found.shape == () and found.item() == pytest.approx(-math.log(likelihood), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_against_naive_loops_with_ties_and_ragged_rankings(smoothing):
    """M4: the batch gives each ranking what it gets alone; padding changes nothing, NaN included."""
    g = torch.Generator().manual_seed(0)
    sizes = [2, 3, 5, 9, 4, 2]
    scores = torch.full((len(sizes), 9), math.nan, dtype=torch.float64)
    ranks, mask = torch.zeros(len(sizes), 9, dtype=torch.long), torch.zeros(len(sizes), 9, dtype=torch.bool)
    rows = []
    for b, k in enumerate(sizes):
        s, r = torch.randn(k, generator=g, dtype=torch.float64), torch.randint(0, 4, (k,), generator=g)
        scores[b, :k], ranks[b, :k], mask[b, :k] = s, r, True
        rows.append((s.tolist(), r.tolist()))
    rows[-1] = (rows[-1][0], [1, 1])
    ranks[-1, :2] = 1
    scores.requires_grad_()
    found = ranking_losses(scores, ranks, mask=mask, label_smoothing=smoothing)
    assert_close(found.tolist(), [naive_pairs(s, r, smoothing) for s, r in rows])
    pl = ranking_losses(scores, ranks, "plackett_luce", mask=mask)
    assert_close(pl.tolist(), [naive_plackett_luce(s, r) for s, r in rows])
    (found.sum() + pl.sum()).backward()
    assert torch.isfinite(scores.grad).all() and (scores.grad[~mask] == 0).all()
    assert found[-1].item() == 0.0 and pl[-1].item() == 0.0  # all tied: nothing to say


@pytest.mark.parametrize("kind", ["pairs", "plackett_luce"])
def test_the_loss_is_the_mean_over_rankings_and_one_without_a_pair_counts_as_0(kind):
    scores = T([[1.2, 0.2, 9.0], [3.0, 1.0, 2.0]], requires_grad=True)
    ranks, mask = T([[0, 1, 0], [2, 2, 2]]), T([[True, True, False], [True, True, True]])
    loss = ranking_loss(scores, ranks, kind, mask=mask)
    assert loss.shape == () and loss.item() == pytest.approx(0.3132617 / 2, abs=1e-6)
    loss.backward()
    assert torch.isfinite(scores.grad).all() and (scores.grad[1] == 0).all() and scores.grad[0, 2] == 0
    assert scores.grad[0, 0].item() == pytest.approx(-0.2689414 / 2, abs=1e-6)
    nothing = ranking_loss(scores, ranks, kind, mask=torch.zeros_like(mask))
    assert nothing.item() == 0.0 and torch.isfinite(torch.autograd.grad(nothing, scores)[0]).all()


def test_losses_only_see_differences_and_order_of_answers_does_not_matter():
    scores, ranks = T([[0.3, -1.0, 2.0, 0.7]], dtype=torch.float64), T([[1, 3, 0, 1]])
    order = T([2, 0, 3, 1])
    for kind in ("pairs", "plackett_luce"):
        value = ranking_loss(scores, ranks, kind=kind)
        assert_close(ranking_loss(scores + 5.0, ranks, kind=kind), value)
        assert_close(ranking_loss(scores[:, order], ranks[:, order], kind=kind), value)


def test_plackett_luce_normalises_over_all_orders():
    """The probabilities of all 4! orders add up to 1."""
    scores = T([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
    total = sum(
        torch.exp(-ranking_loss(scores[None], T([list(order)]), kind="plackett_luce")).item()
        for order in itertools.permutations(range(4))
    )
    assert total == pytest.approx(1.0)


def test_unknown_kind_and_misplaced_options():
    with pytest.raises(ValueError, match="hinge"):
        ranking_loss(torch.zeros(1, 2), T([[0, 1]]), kind="hinge")
    with pytest.raises(ValueError, match="smoothing"):
        ranking_loss(torch.zeros(1, 2), T([[0, 1]]), kind="plackett_luce", label_smoothing=0.1)


def test_pair_counts_take_ties_as_half_and_tied_labels_as_no_pair():
    """M9."""
    right, pairs = pair_counts(T([[1.0, 1.0, 0.0]]), T([[0, 1, 1]]), torch.ones(1, 3, dtype=torch.bool))
    assert right.tolist() == [1.5] and pairs.tolist() == [2.0]
    right, pairs = pair_counts(T([[1.0, 1.0, 0.0, 2.0]]), T([[0, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool))
    assert right.tolist() == [2.5] and pairs.tolist() == [6.0]  # one equal, two right, three wrong
