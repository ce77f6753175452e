"""Gradients of micro-batches add up to one result, whatever their order and whichever step was given up before."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from models.backbone.processes import Processes
from stages.training import gradient_sums
from stages.training.gradient_sums import GradientSums, OrderedSums

MICRO_BATCHES = [1e8, 1.0, -1e8, 3.0]
"""Gradients whose sum in fp32 is 0, 1, 3 or 4 by the order; it is 4."""


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1), False)]


def summed(order: tuple[float, ...], given_up: bool = False) -> list[torch.Tensor | None]:
    """The first parameter sees all micro-batches, the second none."""
    chosen = parameters()
    sums = GradientSums(chosen, Processes("cpu"))
    if given_up:
        sums.begin(len(order))
        chosen[0].grad = torch.full((2,), 7.0)
        sums.add()
    sums.begin(len(order))
    for value in order:
        gradient = torch.full((2,), value)
        chosen[0].grad = gradient if chosen[0].grad is None else chosen[0].grad + gradient  # as autograd adds
        sums.add()
    sums.finish()
    return [p.grad for p in chosen]


@pytest.mark.parametrize("given_up", [False, True])
def test_every_order_gives_the_exact_sum(given_up: bool):
    for order in itertools.permutations(MICRO_BATCHES):
        found = summed(order, given_up)
        assert found[0] is not None and found[0].dtype == torch.float32
        assert found[0].tolist() == [4.0, 4.0] and found[1:] == [None, None]


def test_one_micro_batch_and_very_many_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    first = summed((0.1,))[0]
    assert first is not None and torch.equal(first, torch.full((2,), 0.1))
    monkeypatch.setattr(gradient_sums, "LARGEST", 4)
    whole = summed((1e8, 1.0, -1e8, 3.0))[0]
    assert whole is not None and whole.tolist() == [3.0, 3.0]  # fp32, in this order


@pytest.mark.parametrize("kind", [GradientSums, OrderedSums])
def test_tensors_that_no_step_has_a_gradient_of_are_named(kind: type[GradientSums | OrderedSums]) -> None:
    used, late, never = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    named = {"used": used, "late": late, "never": never}
    sums = kind(named.values(), Processes("cpu"))
    assert sums.reached.warning(named) == ""  # nothing was to be learnt yet
    for step in range(3):
        sums.begin(2)
        for micro_batch in range(2):
            used.grad = torch.zeros(2)  # nothing to learn this time, and not left out
            late.grad = torch.ones(2) if step == micro_batch == 1 else None
            sums.add()
        sums.finish()
        assert never.grad is None and (late.grad is not None) == (step == 1)
        late.grad = None
    assert sums.reached.warning(named).startswith("1 of 3 trained tensors had no gradient in 3 steps")
    assert sums.reached.warning(named).endswith("(first: never)")
    never.grad = torch.ones(2)
    sums.reached.note()
    assert sums.reached.warning(named) == ""
