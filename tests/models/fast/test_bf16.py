"""bf16 bases on the fast path: no further from float64 than the model's own modules, by either kind of product."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.backbone.logprobs import make_rows
from models.backbone.settings import AdapterConfig
from models.fast import products
from models.fast.prefix_cache import make_prefix_cache
from models.fast.weights import Projection
from models.sampling.fast import FastEngine
from models.sampling.generate import sampling_noise
from tests.conftest import ADAPTER, in_float64, make_base, randomise
from tests.support.fast import KINDS, sampled

SEEDS = range(5)
QUERIES = [[5 + i, 9, 3 + i] * (1 + i % 3) for i in range(12)]
RESPONSES = [[(7 * i + 3 * j) % 37 + 3 for j in range(4 + i % 5)] for i in range(12)]
UNITS = pytest.mark.parametrize("units", [True, False], ids=["bf16 products", "fp32 products"])


@pytest.fixture
def with_units(monkeypatch):
    """Say whether this processor multiplies bf16 faster; either way must be right on any."""
    return lambda units: monkeypatch.setattr(products, "has_bf16_units", lambda: units)


def bf16_base(kind: str, seed: int = 0):
    """Weights in bf16, adapter and head in fp32, with norms and biases that say something."""
    family, changes = KINDS[kind]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    base = make_base(family, seed=seed, **(sizes | {"initializer_range": 0.15} | changes))
    with torch.no_grad():
        for name, p in base.lm.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name) + seed)))
    base.lm.to(torch.bfloat16)
    base.add_role("policy", ADAPTER, head=True, trainable=True)
    randomise(base, "policy", seed=seed, scale=0.05)
    return base


def evaluation(base, fast: bool, alone: bool = False) -> dict[str, torch.Tensor]:
    """Log-probabilities, scores, and the gradients of both by every trained tensor; ``alone``: each row in a pass."""
    base.fast = fast
    count = sum(map(len, RESPONSES))
    weights, logprobs, scores = torch.linspace(-1, 2, count, dtype=torch.float64), [], []
    with base.training("policy") as tensors, base.role("policy") as view:
        assert (view.decoder() is not None) == fast
        for group in [[i] for i in range(len(QUERIES))] if alone else [range(len(QUERIES))]:
            rows = make_rows([QUERIES[i] for i in group], [RESPONSES[i] for i in group], 0, "cpu")
            states = view.states(rows.ids, rows.mask, rows.response_positions())
            logprobs.append(view.logprobs(states, rows.targets(), 0.7)[0])
            scores.append(view.head(states))
        ours, theirs = torch.cat(logprobs), torch.cat(scores)
        ((ours * weights.to(ours.dtype)).sum() + (theirs * weights.flip(0).to(theirs.dtype)).sum()).backward()
        gradients = {name: p.grad.double().clone() for name, p in tensors.items()}
        for p in tensors.values():
            p.grad = None
    return {"logprobs": ours.detach().double(), "scores": theirs.detach().double(), **gradients}


def exact(kind: str, seed: int) -> dict[str, torch.Tensor]:
    base = bf16_base(kind, seed)
    in_float64(base.lm)
    base.heads.double()
    return evaluation(base, fast=False, alone=True)


@UNITS
@pytest.mark.parametrize("kind", KINDS)
def test_no_further_from_float64_than_the_modules(kind, units, with_units):
    with_units(units)
    found: dict[str, list[list[torch.Tensor]]] = {"logprobs": [], "scores": [], "gradients": []}
    for seed in SEEDS:
        right, base = exact(kind, seed), bf16_base(kind, seed)
        plain, fast = evaluation(base, False), evaluation(base, True)
        for what in ("logprobs", "scores"):
            found[what].append([(values[what] - right[what]).abs() for values in (plain, fast)])
        names = [n for n in right if n not in ("logprobs", "scores")]
        errors = [[(values[n] - right[n]).norm() / right[n].norm() for n in names] for values in (plain, fast)]
        found["gradients"].append([torch.stack(e) for e in errors])
    for what, pairs in found.items():
        plain, fast = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        assert fast.mean() <= plain.mean() and fast.max() <= 1.25 * plain.max(), what


def test_products_in_fp32_are_those_of_a_widened_base(with_units):
    """bf16 -> fp32 is exact, so a base that was widened beforehand says the same, and samples the same tokens."""
    with_units(False)
    for kind in ("llama with biases", "qwen3"):
        base, wide = bf16_base(kind), bf16_base(kind)
        wide.lm.float()
        found, expected = evaluation(base, True), evaluation(wide, True)
        for name, right in expected.items():
            assert_close(found[name], right, atol=1e-6, rtol=1e-5, msg=name)
        noise = sampling_noise(len(QUERIES), 12, torch.Generator().manual_seed(3))
        made, right = (sampled(b, FastEngine(True), QUERIES, noise=noise) for b in (base, wide))
        assert made.ids == right.ids and len({tuple(row) for row in made.ids}) > 6
        assert_close(made.logprobs, right.logprobs, atol=1e-5, rtol=1e-5)


@UNITS
def test_sampled_tokens_have_the_log_probabilities_of_the_training_forward(units, with_units):
    with_units(units)
    base = bf16_base("llama")
    noise = sampling_noise(len(QUERIES), 12, torch.Generator().manual_seed(3))
    made = sampled(base, FastEngine(True), QUERIES, noise=noise, temperature=0.7)
    rows = make_rows(QUERIES, made.ids, 0, "cpu")
    with base.role("policy") as view, torch.no_grad():
        states = view.states(rows.ids, rows.mask, rows.response_positions())
        again = view.logprobs(states, rows.targets(), 0.7)[0]
    off = (torch.cat([row[: len(r)] for row, r in zip(made.logprobs, made.ids, strict=True)]) - again).abs()
    assert off.max() < (0.25 if units else 1e-4) and off.mean() < (0.05 if units else 1e-5)


def test_a_small_adapter_is_not_lost_in_the_sum(with_units):
    """An adapter smaller than the last place of the bf16 weights has the effect that it has in fp32."""
    effects = []
    for units, wide in ((False, True), (True, False)):
        with_units(units)
        base = bf16_base("llama")
        if wide:
            base.lm.float()
        randomise(base, "policy", seed=1, scale=0.01)
        with_adapter, bare = (_states(base, role) for role in ("policy", "base"))
        effects.append(with_adapter - bare)
    right, found = (e.flatten() for e in effects)
    assert torch.cosine_similarity(right, found, dim=0) > 0.5 and 0.5 < found.norm() / right.norm() < 2.0


@pytest.mark.parametrize("keep", [None, 16], ids=["a pass", "a loop"])
@pytest.mark.parametrize("size", [3e-5, 3e-4])
def test_what_an_adapter_adds_is_rounded_with_the_sum(size, keep):
    """Added to a rounded product, a tenth or three quarters of so small an adapter would be left."""
    g = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 256, generator=g).bfloat16() for n in (192, 512))
    a, b = torch.randn(16, 256, generator=g) * 0.03, torch.randn(192, 16, generator=g).sign() * size
    weight *= 0.04
    group = (Projection(weight=weight, bias=None, a=a, b=b, scale=2.0),)
    right = 2.0 * (x.double() @ a.double().T) @ b.double().T
    made = products.UnfoldedProducts(torch.bfloat16, keep)(0, "output", group, x)
    found = made.double() - x.double() @ weight.double().T
    assert 0.9 < float((found * right).sum() / right.square().sum()) < 1.1


@pytest.mark.parametrize("size", [3e-5, 3e-4])
def test_what_an_adapter_adds_to_a_gradient_is_rounded_with_the_sum(size):
    g = torch.Generator().manual_seed(0)
    weights = [(torch.randn(n, 256, generator=g) * 0.04).bfloat16() for n in (128, 64)]
    gradient = torch.randn(512, 192, generator=g).bfloat16()
    a, b = torch.randn(16, 256, generator=g).sign() * size, torch.randn(128, 16, generator=g) * 0.03
    group = (
        Projection(weight=weights[0], bias=None, a=a, b=b, scale=2.0),
        Projection(weight=weights[1], bias=None),
    )
    right = 2.0 * (gradient[:, :128].double() @ b.double()) @ a.double()
    made = products.UnfoldedProducts(torch.bfloat16).transposed(0, "gated", group, gradient)
    found = made.double() - gradient.double() @ torch.cat(weights).double()
    assert 0.9 < float((found * right).sum() / right.square().sum()) < 1.1


def test_layers_that_are_kept_leave_a_small_adapter_its_effect(with_units):
    """A kept product of the frozen weights would be rounded before the adapter's part is added."""
    with_units(True)
    base = make_base(num_hidden_layers=3)
    base.lm.bfloat16()
    base.add_role("policy", AdapterConfig(rank=4, alpha=8, layers=(1, 2)))
    randomise(base, "policy", 0, scale=1e-3)
    plain = _states(base, "policy")
    with base.role("policy") as view:
        decoder = view.decoder()
        rows = [[*q, *r] for q, r in zip(QUERIES, RESPONSES, strict=True)]
        base.prefix_cache = make_prefix_cache(decoder, rows, 1)
    assert base.prefix_cache.product is None and base.prefix_cache.states.abs().max() > 0
    assert torch.equal(_states(base, "policy"), plain)


def _states(base, role: str) -> torch.Tensor:
    rows = make_rows(QUERIES, RESPONSES, 0, "cpu")
    with base.role(role) as view, torch.no_grad():
        return view.states(rows.ids, rows.mask, rows.response_positions()).double()


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ({"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}, 40_960),
        ({"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}, 73_212),
    ],
    ids=["width of 0.5B", "width of 1.5B"],
)
def test_bytes_that_a_layer_keeps_for_backward(sizes, most, with_units):
    """A token and layer keeps half of what Transformers' modules with PEFT keep (81,920 and 146,424 bytes)."""
    with_units(True)
    base = make_base("qwen2", num_hidden_layers=2, **sizes)
    base.lm.to(torch.bfloat16)
    base.add_role("policy", ADAPTER.model_copy(update={"rank": 16}), trainable=True)
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, torch.nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    rows = make_rows([[5, 9, 3, 4]] * 2, [[7, 8, 9, 10] * 7] * 2, 0, "cpu")
    with base.training("policy"), base.role("policy") as view:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            states = view.states(rows.ids, rows.mask, rows.response_positions())
        for saved in states.grad_fn.saved_layers:
            for t in (saved.x, saved.qkv, *(saved.grids or ()), saved.mixed, saved.middle, saved.gu):
                if t is not None:
                    kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    tokens = rows.ids.numel()
    states_alone = 4 * sizes["hidden_size"] * tokens  # of the last norm, which is no layer's
    each = (sum(kept.values()) - states_alone) / tokens / 2
    assert most / 3 < each <= most
