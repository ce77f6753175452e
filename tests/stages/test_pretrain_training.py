"""Pretraining: how documents become ids, and Muon's update."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from stages import pretrain
from stages.settings import PretrainConfig, PretrainModel
from stages.training import chunks


def test_documents_encoded_together_are_those_encoded_one_by_one():
    texts = [" ".join(f"w{(i * j) % 13}" for j in range(i % 11)) for i in range(2 * chunks.AT_ONCE + 3)]
    shape = PretrainModel(layers=1, width=16, feed_forward=16, heads=2, context=8)
    tokenizer = pretrain.train_tokenizer(texts, PretrainConfig(tokenizer="words", vocabulary=16, model=shape))
    found = list(chunks.encode(tokenizer, iter(texts)))
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert found == [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in alone]
    assert len({len(ids) for ids in found}) == 11 and tokenizer.unk_token_id in {i for ids in found for i in ids}


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_muon_orthogonalises_its_momentum_by_five_steps_of_newton_and_schulz(shape):
    """The singular vectors stay, and each singular value goes through the quintic of Jordan et al. (2024)."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    p = torch.nn.Parameter(torch.zeros(shape))
    optimizer = pretrain.Muon([p], lr=0.5, momentum=0.9)
    p.grad = gradient.clone()
    optimizer.step()
    u, s, vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / s.norm()  # a first momentum is a multiple of the gradient
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    expected = -0.5 * max(1.0, shape[0] / shape[1]) ** 0.5 * (u * s) @ vh
    assert_close(p.detach().double(), expected, atol=1e-5, rtol=1e-4)
