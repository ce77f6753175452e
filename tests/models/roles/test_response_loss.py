"""The response-only loss equals the plain one: padded rows, full logits, float64-free autograd through everything."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from data.batching import length_bucketed, right_pad, token_batches
from models.backbone.settings import AdapterConfig
from models.roles import response_loss
from models.roles.response_loss import response_nll
from tests.conftest import FAMILIES, make_base, randomise

ROWS = [list(range(5, 5 + n)) for n in (3, 17, 4, 9, 30, 5, 12)]


def batch():
    ids, mask = right_pad(ROWS, 0)
    labels = torch.where(mask, ids, -100)
    for i, row in enumerate(ROWS):
        labels[i, : len(row) // 2] = -100
    return ids, mask.long(), labels


def plain(lm, ids, mask, labels):
    logits = lm(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="sum"), logits


@pytest.mark.parametrize("cells", [1, 10**9, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_accuracy_and_gradients_equal_the_plain_path(family, cells, monkeypatch):
    """Cut by length or not, in chunks of 5 positions, or by the fast path where there is one; LoRA on all layers."""
    monkeypatch.setattr(response_loss, "cells_worth_a_pass", lambda lm: cells or 1)
    base = make_base(family)
    base.add_role("sft", AdapterConfig(rank=4, alpha=8))
    randomise(base, "sft", 0, 0.1)
    ids, mask, labels = batch()
    found = []
    with base.training("sft") as trainable, base.role("sft"):
        expected, logits = plain(base.lm, ids, mask, labels)
        (expected / 7).backward()
        found.append({n: p.grad.clone() for n, p in trainable.items()})
        for p in trainable.values():
            p.grad = None
        total, right, count = response_nll(base.lm, ids, mask, labels, chunk=5, fast=cells is None)
        (total / 7).backward()
        assert_close(total, expected, rtol=1e-5, atol=1e-4)
        chosen = labels[:, 1:] >= 0
        assert count == chosen.sum()
        assert right == (logits.argmax(-1)[chosen] == labels[:, 1:][chosen]).sum()
        for name, p in trainable.items():
            assert_close(p.grad, found[0][name], rtol=1e-4, atol=1e-5 * max(1.0, found[0][name].abs().max().item()))


def test_an_output_layer_that_is_trained_gets_its_gradient():
    """Full fine-tuning: tied embeddings and output layer."""
    lm = make_base().lm.requires_grad_(True)
    ids, mask, labels = batch()
    expected, _ = plain(lm, ids, mask, labels)
    expected.backward()
    before = {n: p.grad.clone() for n, p in lm.named_parameters()}
    lm.zero_grad()
    total, _, _ = response_nll(lm, ids, mask, labels, chunk=5)
    total.backward()
    for name, p in lm.named_parameters():
        assert_close(p.grad, before[name], rtol=1e-3, atol=1e-4)


def test_nothing_supervised_is_a_zero_that_can_be_differentiated():
    base = make_base()
    base.add_role("sft", AdapterConfig(rank=4, alpha=8))
    ids, mask, labels = batch()
    with base.training("sft") as trainable, base.role("sft"):
        total, right, count = response_nll(base.lm, ids, mask, torch.full_like(labels, -100))
        total.backward()
        assert total == 0 and right == 0 and count == 0
        assert all(p.grad is None or (p.grad == 0).all() for p in trainable.values())


def test_rows_of_like_length_go_together_where_it_saves_enough():
    """By hand: 10 and 9 together (2 rows of 1 saved cell at most), the short ones apart."""
    assert length_bucketed([2, 10, 3, 9], 5) == [[1, 3], [2, 0]]
    assert length_bucketed([2, 10, 3, 9], 10**6) == [[1, 3, 2, 0]]
    assert length_bucketed([2, 10, 3, 9], 1) == [[1], [3], [2], [0]]
    assert length_bucketed([4, 4], 1) == [[0, 1]] and length_bucketed([], 1) == []


def test_a_token_budget_holds_and_loses_no_row():
    assert token_batches([2, 10, 3, 9], 20) == [[1, 3], [2, 0]]
    assert token_batches([50, 1], 20) == [[0], [1]]
    assert token_batches([], 20) == []
