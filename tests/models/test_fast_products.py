"""Products by oneDNN beside torch's own: what they give, what they are used for, and tokens that do not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from models import fast_products
from models.fast_engine import FastEngine
from models.fast_head import block_logits, block_logprobs
from models.fast_products import has_kernels, linear, pack
from models.generation import CachedEngine, uniforms_for
from models.logprobs import make_rows, token_logprobs
from tests.models.test_fast_path import QUERIES, gradients, sampled, world

pytestmark = pytest.mark.skipif(not has_kernels(), reason="this build of torch has no oneDNN products")


@pytest.fixture
def small(monkeypatch):
    """Tiny weights take oneDNN's way too; how often it is taken."""
    monkeypatch.setattr(fast_products, "LEAST", 1)
    calls = []
    real = fast_products.product

    def counted(x, weight, bias):
        calls.append(weight.is_mkldnn)
        return real(x, weight, bias)

    monkeypatch.setattr(fast_products, "product", counted)
    return calls


@pytest.mark.parametrize("rows", [1, 3, 32, 150])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_product_is_that_of_torch(rows, bias, packed):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 130, generator=g), torch.randn(200, 130, generator=g)
    b = torch.randn(200, generator=g) if bias else None
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double()).float()
    w = pack(weight, 32) if packed else weight
    assert w.is_mkldnn == packed
    assert_close(linear(x, w, b), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(linear(x, w, b), linear(x, w, b))
    assert_close(linear(expected, weight.T), F.linear(expected, weight.T), atol=2e-2, rtol=1e-4)  # backward's views
    assert_close(linear(x[:, :], weight[3:170]), F.linear(x, weight[3:170]), atol=1e-4, rtol=1e-4)


def test_what_is_small_empty_or_in_float64_is_left_to_torch(small, monkeypatch):
    x, weight = torch.randn(4, 130), torch.randn(200, 130)
    linear(x, weight)
    assert small == [False]
    assert linear(x[:0], weight).shape == (0, 200)
    linear(x.double(), weight.double())
    assert small == [False] and pack(weight.double(), 4).dtype == torch.float64
    monkeypatch.setattr(fast_products, "LEAST", 128)
    assert linear(x[:, :100], weight[:, :100]).shape == (4, 200)
    assert small == [False] and not pack(weight[:100], 4).is_mkldnn


@pytest.mark.parametrize("kind", ["llama with biases", "qwen3"])
def test_states_and_gradients_by_onednn_are_those_of_the_modules(kind, small):
    base = world(kind)
    plain = gradients(base, False)
    assert not small
    for name, found in gradients(base, True).items():
        apart = ((found - plain[name]).norm() / plain[name].norm()).item()
        assert apart < 1e-5, f"{name}: {apart:.2g}"
    assert len(small) == 2 * (8 + 7) + 2 and not any(small)  # two layers twice, the output layer once


@pytest.mark.parametrize("kind", ["llama", "llama with biases", "qwen2"])
def test_tokens_by_packed_weights_are_those_of_the_plain_engine(kind, small):
    """Rows leave at different steps, so the packed weights serve every number of rows; twice the same bytes."""
    base = world(kind)
    prompts = [*QUERIES, QUERIES[1], QUERIES[3], QUERIES[1]] * 3
    draws = uniforms_for(len(prompts), 12, torch.Generator().manual_seed(3))
    plain = sampled(base, CachedEngine(measure=True), prompts, draws)
    fast = sampled(base, FastEngine(measure=True), prompts, draws)
    assert fast == plain and sum(small) > 40
    again = sampled(base, FastEngine(measure=True), prompts, draws)
    assert torch.equal(again.logprobs, fast.logprobs) and again == fast


def test_log_probabilities_by_onednn(small):
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(600, 16, generator=g).requires_grad_(), torch.randn(2500, 16, generator=g)
    targets = torch.randint(0, 2500, (600,), generator=g)
    expected, spread = token_logprobs(hidden, targets, lambda h: h @ weight.T)
    found, entropy = block_logprobs(hidden, targets, weight, 1.0)
    assert len(small) == 2 * 2 * 3
    assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert_close(entropy, spread.detach(), atol=1e-4, rtol=1e-5)
    pull = torch.randn(600, generator=g)
    ours, theirs = (torch.autograd.grad((x * pull).sum(), hidden)[0] for x in (found, expected))
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert_close(block_logits(hidden, weight), hidden @ weight.T, atol=1e-4, rtol=1e-4)


def test_the_samplers_own_numbers_are_those_of_the_training_forward():
    """Log-probabilities and entropies of every token, by both engines; zero after a row's end."""
    base = world()
    prompts = [*QUERIES, *QUERIES]
    draws = uniforms_for(len(prompts), 12, torch.Generator().manual_seed(3))
    for engine in (FastEngine(measure=True), CachedEngine(measure=True)):
        made = sampled(base, engine, prompts, draws, batch=3)
        rows = make_rows(prompts, made.ids, 0, "cpu")
        with base.role("policy") as view, torch.no_grad():
            states = view.states(rows.ids, rows.mask, rows.response_positions())
            logprobs, entropy = view.logprobs(states, rows.targets(), 0.9)
        inside = torch.arange(12)[None] < rows.response_lengths[:, None]
        assert inside.any() and not inside.all()
        assert_close(made.logprobs[inside], logprobs, atol=1e-5, rtol=1e-5)
        assert_close(made.entropy[inside], entropy, atol=1e-5, rtol=1e-5)
        assert not made.logprobs[~inside].any() and not made.entropy[~inside].any()
    assert sampled(base, FastEngine(), prompts, draws).logprobs is None
    greedy = sampled(base, FastEngine(measure=True), prompts)
    assert greedy == sampled(base, CachedEngine(), prompts) and (greedy.logprobs <= 0).all()
