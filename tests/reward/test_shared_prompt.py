"""A ranking in one row gives the scores and gradients that its answers have in rows of their own."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.backbone.forward import body_of
from models.backbone.logprobs import make_rows
from models.backbone.settings import AdapterConfig
from reward.model import pooled, pooled_scores
from reward.shared_prompt import can_share, shared_states
from tests.conftest import FAMILIES, in_float64, make_base, randomise

QUERIES = [[5, 6, 7, 8]] * 3 + [[9, 10]] * 2 + [[11, 12, 13], [11, 12, 14], [11, 12, 13]]
ANSWERS = [[20, 2], [20, 21, 22, 2], [23] * 9, [24], [25, 26, 2], [27, 2], [28, 29], [30] * 5]
COUNTS = [3, 2, 3]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["last", "mean", "learned"])
def test_scores_and_gradients_equal_those_of_plain_rows(family, pooling):
    base = make_base(family)
    base.add_role("reward", AdapterConfig(rank=4, alpha=8), head=True)
    if pooling == "learned":
        base.heads["reward"].add_attention().attention.data.normal_(generator=torch.Generator().manual_seed(1))
    randomise(base, "reward", 0, 0.1)
    in_float64(base.lm)
    base.heads.double()
    if family in ("mistral", "gemma2"):  # a window counts neighbours
        assert not can_share(base.lm)
        return
    assert can_share(base.lm)
    rows = make_rows(QUERIES, ANSWERS, 0, "cpu")
    weights = torch.linspace(-1, 1, len(QUERIES))
    with base.training("reward") as trainable, base.role("reward") as view:
        plain = pooled_scores(view.hidden(rows.ids, rows.mask), view.head, rows, pooling)
        (plain * weights).sum().backward()
        expected = {n: p.grad.clone() for n, p in trainable.items()}
        for p in trainable.values():
            p.grad = None
        states = shared_states(view, rows, COUNTS)
        assert [len(s) for s in states] == [len(a) for a in ANSWERS]
        found = torch.stack([pooled(s, view.head, pooling) for s in states])
        (found * weights).sum().backward()
        assert_close(found, plain, atol=1e-9 * max(1.0, plain.abs().max().item()), rtol=1e-9)
        for name, p in trainable.items():
            assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-9 * max(1.0, expected[name].abs().max().item()))


def test_a_window_or_a_body_without_masks_of_four_dimensions_does_not_share(monkeypatch):
    """GPT-Neo's window has a name of its own; a body that refuses the mask is no failure of the stage."""
    lm = make_base("llama").lm
    assert can_share(lm)
    with monkeypatch.context() as patch:
        patch.setattr(lm.config, "window_size", 256, raising=False)
        assert not can_share(lm)

    def refuse(*_, **__):
        raise ValueError("attention_mask should be of shape (B, L)")

    handle = body_of(lm).register_forward_pre_hook(refuse)
    assert not can_share(lm)
    handle.remove()
    assert can_share(lm)


def test_recomputation_keeps_less_and_changes_no_gradient():
    """With gradient checkpointing the fast path keeps each layer's input alone, in the reward stage too."""
    from models.backbone.forward import set_gradient_checkpointing
    from models.fast import hidden_states as fast_body

    base = make_base("llama", num_hidden_layers=3)
    base.add_role("reward", AdapterConfig(rank=2), head=True, seed=0)
    randomise(base, "reward", seed=1)
    rows = make_rows([[5, 6, 7]] * 2, [[8, 9, 10], [11, 12]], 0, "cpu")
    found, kept = [], []
    for checkpointing in (False, True):
        set_gradient_checkpointing(base.lm, checkpointing)
        with base.training("reward") as tensors, base.role("reward") as view:
            states = shared_states(view, rows, [2])
            node = states[0].grad_fn
            while node is not None and not hasattr(node, "saved_layers"):
                node = node.next_functions[-1][0] or node.next_functions[0][0]
            assert isinstance(node.saved_layers[0], fast_body.Saved)
            kept.append([saved.gu is not None for saved in node.saved_layers[:-1]])
            sum(x.square().sum() for x in states).backward()
            found.append({n: p.grad.clone() for n, p in tensors.items() if p.grad is not None})
        set_gradient_checkpointing(base.lm, False)
    assert kept == [[True] * 3, [False] * 3] and found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
