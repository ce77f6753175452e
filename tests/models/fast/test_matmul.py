"""Products by oneDNN beside torch's own: what they give, what they are used for, and tokens that do not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from models.backbone.logprobs import make_rows, token_logprobs
from models.fast import logprobs as fast_head
from models.fast import matmul as fast_products
from models.fast.logprobs import block_logits, block_logprobs
from models.fast.matmul import SIZES, has_kernels, linear, pack, product
from models.sampling.fast import FastEngine
from models.sampling.generate import CachedEngine, sampling_noise
from tests.conftest import ADAPTER, make_base
from tests.support.fast import QUERIES, sampled, world_size

pytestmark = pytest.mark.skipif(not has_kernels(), reason="this build of torch has no oneDNN products")


@pytest.fixture
def small(monkeypatch):
    """Tiny weights take oneDNN's way too; the rows of each product, and whether its weight is packed."""
    monkeypatch.setattr(fast_products, "MIN_SIZE", 1)
    calls = []
    real = fast_products.product

    def counted(x, weight, bias=None):
        calls.append((len(x), weight.is_mkldnn))
        return real(x, weight, bias)

    monkeypatch.setattr(fast_products, "product", counted)
    monkeypatch.setattr(fast_head, "product", counted)
    return calls


@pytest.mark.parametrize("rows", [1, 3, 32, 150, 256, 600])
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_that_of_torch(rows, bias, small):
    """Filled up to one of few numbers of rows, for each of which there is a kernel to be kept."""
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 130, generator=g), torch.randn(200, 130, generator=g)
    b = torch.randn(200, generator=g) if bias else None
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double()).float()
    packed = pack(weight, 32)
    assert packed.is_mkldnn
    assert_close(linear(x, packed, b), expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(linear(x, packed, b), linear(x, packed, b))
    assert {n for n, _ in small} <= set(SIZES)
    assert_close(product(x, weight, b), expected, atol=1e-4, rtol=1e-5)
    assert_close(product(expected, weight.T), F.linear(expected, weight.T), atol=2e-2, rtol=1e-4)  # backward's views


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 products here")
@pytest.mark.parametrize("rows", [1, 32, 300])
def test_a_packed_bf16_weight_gives_what_the_weight_gives(rows, small):
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 130, generator=g).bfloat16() for n in (rows, 200))
    bias = torch.randn(200, generator=g).bfloat16()
    packed = pack(weight, rows)
    assert packed.is_mkldnn and packed.dtype == torch.bfloat16
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert_close(linear(x, packed, bias).double(), exact, atol=1e-2, rtol=2**-7)  # one rounding of the sum
    assert {n for n, _ in small} <= set(SIZES) and all(packed for _, packed in small)
    logits = block_logits(x.float(), pack(weight, rows))
    assert logits.dtype == torch.float32
    assert_close(logits.double(), x.double() @ weight.double().T, atol=1e-2, rtol=2**-7)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 products here")
def test_sampling_in_bf16_reads_packed_weights_the_output_layer_among_them(small, monkeypatch):
    monkeypatch.setattr("models.fast.products.has_bf16_units", lambda: True)
    base = make_base("llama")
    base.lm.to(torch.bfloat16)
    base.add_role("policy", ADAPTER)
    noise = sampling_noise(len(QUERIES), 6, torch.Generator().manual_seed(1))
    made = sampled(base, FastEngine(True), QUERIES, noise=noise, steps=6, temperature=0.9)
    layers, groups = base.lm.config.num_hidden_layers, 4
    assert all(packed for _, packed in small)
    # each token is chosen by one product with the output layer; prompts and tokens are read by one a group and layer
    steps = max(map(len, made.ids))
    assert len(small) >= steps + groups * layers * steps
    rows = make_rows(QUERIES, made.ids, 0, "cpu")
    with base.role("policy") as view, torch.no_grad():
        again = view.logprobs(view.states(rows.ids, rows.mask, rows.response_positions()), rows.targets(), 0.9)[0]
    found = torch.cat([row[: len(r)] for row, r in zip(made.logprobs, made.ids, strict=True)])
    assert (found - again).abs().max() < 0.1


def test_what_is_small_or_in_float64_is_left_to_torch(small):
    x, weight = torch.randn(4, 130), torch.randn(200, 130)
    assert torch.equal(linear(x, weight), F.linear(x, weight)) and not small
    assert pack(weight.double(), 4).dtype == torch.float64
    fast_products.MIN_SIZE = 140
    assert pack(weight, 4) is weight


@pytest.mark.parametrize("kind", ["llama", "llama with biases", "qwen2"])
def test_tokens_by_packed_weights_are_those_of_the_plain_engine(kind, small):
    """Rows leave at different steps, so the packed weights serve every number of rows; twice the same bytes.

    The output layer is not packed: that would be a copy of its own.
    """
    base = world_size(kind)
    prompts = [*QUERIES, QUERIES[1], QUERIES[3], QUERIES[1]] * 3
    noise = sampling_noise(len(prompts), 12, torch.Generator().manual_seed(3))
    plain = sampled(base, CachedEngine(with_logprobs=True), prompts, noise)
    fast = sampled(base, FastEngine(with_logprobs=True), prompts, noise)
    assert fast == plain and len(small) > 40 and all(rows in SIZES for rows, _ in small)
    assert len({rows for rows, _ in small}) > 1 and {packed for _, packed in small} == {True, False}
    again = sampled(base, FastEngine(with_logprobs=True), prompts, noise)
    assert torch.equal(again.logprobs, fast.logprobs) and again == fast


def test_log_probabilities_by_onednn(small):
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(600, 16, generator=g).requires_grad_(), torch.randn(2500, 16, generator=g)
    targets = torch.randint(0, 2500, (600,), generator=g)
    expected, spread = token_logprobs(hidden, targets, lambda h: h @ weight.T)
    found, entropy = block_logprobs(hidden, targets, weight, 1.0)
    assert small == [(512, False)] * 2 * 3  # of two blocks of rows the whole one
    assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert_close(entropy, spread.detach(), atol=1e-4, rtol=1e-5)
    pull = torch.randn(600, generator=g)
    ours, theirs = (torch.autograd.grad((x * pull).sum(), hidden)[0] for x in (found, expected))
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert_close(block_logits(hidden, weight), hidden @ weight.T, atol=1e-4, rtol=1e-4)


def test_the_samplers_own_numbers_are_those_of_the_training_forward():
    """Log-probabilities and entropies of every token, by both engines; zero after a row's end."""
    base = world_size()
    prompts = [*QUERIES, *QUERIES]
    noise = sampling_noise(len(prompts), 12, torch.Generator().manual_seed(3))
    for engine in (FastEngine(with_logprobs=True), CachedEngine(with_logprobs=True)):
        made = sampled(base, engine, prompts, noise, batch=3)
        rows = make_rows(prompts, made.ids, 0, "cpu")
        with base.role("policy") as view, torch.no_grad():
            states = view.states(rows.ids, rows.mask, rows.response_positions())
            logprobs, entropy = view.logprobs(states, rows.targets(), 0.9)
        inside = torch.arange(12)[None] < rows.response_lengths[:, None]
        assert inside.any() and not inside.all()
        assert_close(made.logprobs[inside], logprobs, atol=1e-5, rtol=1e-5)
        assert_close(made.entropy[inside], entropy, atol=1e-5, rtol=1e-5)
        assert not made.logprobs[~inside].any() and not made.entropy[~inside].any()
    assert sampled(base, FastEngine(), prompts, noise).logprobs is None
    greedy = sampled(base, FastEngine(with_logprobs=True), prompts)
    assert greedy == sampled(base, CachedEngine(), prompts) and (greedy.logprobs <= 0).all()
