"""The fast path beside the plain one: states, log-probabilities, gradients and tokens; and when it steps aside."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from models.backbone.forward import set_gradient_checkpointing
from models.backbone.logprobs import make_rows, token_logprobs
from models.backbone.settings import AdapterConfig
from models.fast.logprobs import block_logits, block_logprobs, block_nll, output_weight, token_statistics
from models.sampling import decoding as fast_engine
from models.sampling import device_steps
from models.sampling.fast import FastEngine
from models.sampling.generate import CachedEngine, sampling_noise
from tests.conftest import ADAPTER, make_base, randomise, tiny_lm
from tests.support.fast import KINDS, QUERIES, sampled, world_size

RESPONSES = [[21, 2], [0, 23, 24, 25, 26, 27], [28], [29, 30, 31, 2]]


def passes(base, fast: bool, positions="response", role="policy"):
    base.fast = fast
    rows = make_rows(QUERIES, RESPONSES, 0, "cpu")
    with base.role(role) as view:
        assert (view.decoder() is not None) == fast
        where = rows.response_positions() if positions == "response" else positions
        return view.states(rows.ids, rows.mask, where), rows, view


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_modules(kind):
    base = world_size(kind)
    with torch.no_grad():
        plain, fast = passes(base, False)[0], passes(base, True)[0]
        assert_close(fast, plain, atol=1e-5, rtol=1e-5)
        bare = passes(base, True, role="base")[0]
    assert (bare - fast).abs().max() > 0.01, "the adapter has to show"


def gradients(base, fast: bool, checkpointing: bool = False):
    set_gradient_checkpointing(base.lm, checkpointing)
    with base.training("policy") as tensors:
        states, rows, view = passes(base, fast)
        logprobs, _ = view.logprobs(states, rows.targets(), 0.7)
        weights = torch.linspace(-1, 1, len(logprobs), dtype=logprobs.dtype)
        (logprobs * weights).sum().backward()
        (view.head(passes(base, fast)[0]) * weights.float()).sum().backward()
        found = {name: p.grad.clone() for name, p in tensors.items()}
    set_gradient_checkpointing(base.lm, False)
    return found


@pytest.mark.parametrize(
    ("kind", "checkpointing"), [*((kind, False) for kind in KINDS), ("llama", True), ("qwen3", True)]
)
def test_gradients_are_those_of_the_modules(kind, checkpointing):
    base = world_size(kind)
    plain, fast = gradients(base, False), gradients(base, True, checkpointing)
    assert plain.keys() == fast.keys() and all(g.abs().max() > 0 for g in plain.values())
    for name, expected in plain.items():
        apart = ((fast[name] - expected).norm() / expected.norm()).item()
        assert apart < 1e-5, f"{name}: {apart:.2g}"


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": "upper_half"},
        {"targets": ("q_proj", "v_proj", "down_proj")},
        {"targets": ("up_proj",), "rslora": True},
    ],
    ids=["upper half", "some targets", "one target, rslora"],
)
def test_gradients_where_some_layers_have_no_adapter(changes):
    base = world_size(adapter=ADAPTER.model_copy(update=changes))
    plain, fast = gradients(base, False), gradients(base, True)
    for name, expected in plain.items():
        apart = ((fast[name] - expected).norm() / expected.norm()).item()
        assert apart < 1e-5, f"{name}: {apart:.2g}"


def test_rows_do_not_leak_into_each_other():
    """A row's states are the same bits of arithmetic whatever its neighbours say."""
    base = world_size(dtype=torch.float64)
    alike = make_rows([[5, 9, 3], [7, 8, 9], [10, 11, 12]], [[21, 2], [22, 23], [24, 2]], 0, "cpu")
    with base.role("policy") as view, torch.no_grad():  # rows of one length, without padding
        for i, state in enumerate(view.states(alike.ids, alike.mask, alike.response_positions()).split(2)):
            one = make_rows([alike.ids[i, :3].tolist()], [alike.ids[i, 3:].tolist()], 0, "cpu")
            assert_close(view.states(one.ids, one.mask, one.response_positions()), state, atol=1e-12, rtol=0)
    rows = make_rows(QUERIES, RESPONSES, 0, "cpu")
    with base.role("policy") as view, torch.no_grad():
        together = view.states(rows.ids, rows.mask, rows.response_positions()).split([len(r) for r in RESPONSES])
        for i, (query, response) in enumerate(zip(QUERIES, RESPONSES, strict=True)):
            one = make_rows([query], [response], 0, "cpu")
            assert_close(view.states(one.ids, one.mask, one.response_positions()), together[i], atol=1e-12, rtol=0)
    with base.training("policy"), base.role("policy") as view:
        table = base.lm.get_input_embeddings().weight.detach()
        changed = rows.ids.clone()
        changed[1, :4] = 33  # another row's beginning
        a = view.states(rows.ids, rows.mask, rows.response_positions()).split([len(r) for r in RESPONSES])
        b = view.states(changed, rows.mask, rows.response_positions()).split([len(r) for r in RESPONSES])
        assert len(table) == 40 and (a[1] - b[1]).abs().max() > 1e-3
        assert all(torch.equal(a[i], b[i]) for i in (0, 2, 3))


@pytest.mark.parametrize("words", [40, 1024, 2500])
def test_logits_by_blocks(words):
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 16, generator=g), torch.randn(words, 16, generator=g)
    assert_close(block_logits(hidden, weight), hidden @ weight.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize("words", [40, 1024, 2500])
def test_log_probabilities_by_blocks(words, temperature):
    """Against the whole softmax in float64, values and gradients; 600 rows are two blocks of rows."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 16, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(words, 16, generator=g, dtype=torch.float64)
    targets = torch.randint(0, words, (600,), generator=g)
    expected, spread = token_logprobs(hidden, targets, lambda h: h @ weight.T, temperature)
    found, entropy = block_logprobs(hidden, targets, weight, temperature)
    assert_close(found, expected.double(), atol=1e-10, rtol=0)
    assert_close(entropy, spread.detach().double(), atol=1e-10, rtol=0)
    assert not entropy.requires_grad
    best = (hidden @ weight.T).argmax(1)
    half = torch.where(torch.arange(600) % 2 == 0, best, targets)
    nll, right = block_nll(hidden, half, weight)
    assert right == (half == best).sum() and 300 <= right < 600
    logits = hidden @ weight.T
    assert_close(nll, torch.nn.functional.cross_entropy(logits, half, reduction="sum"), atol=1e-8, rtol=0)
    pull = torch.randn(600, generator=g, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x.double() * pull).sum(), hidden)[0] for x in (found, expected))
    assert_close(ours, theirs, atol=1e-10, rtol=0)
    single = token_statistics(hidden.detach().float(), targets, weight.float(), temperature, gradients=True)
    assert_close(single.logprobs.double(), expected.detach().double(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("greedy", [True, False])
def test_tokens_are_those_of_the_plain_engine(kind, greedy):
    """Under the same draws; rows stop at different steps, and some prompts come twice."""
    base = world_size(kind)
    prompts = [*QUERIES, QUERIES[1], QUERIES[3], QUERIES[1]] * 3
    noise = None if greedy else sampling_noise(len(prompts), 12, torch.Generator().manual_seed(3))
    plain = sampled(base, CachedEngine(), prompts, noise)
    fast = sampled(base, FastEngine(), prompts, noise)
    assert fast == plain
    if not greedy:
        assert len({len(r) for r in plain.ids}) > 2 and any(plain.finished) and not all(plain.finished)
        assert sampled(base, FastEngine(), prompts, noise, batch=4) == plain


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_storage_that_grows_every_few_tokens_changes_no_token(kind, monkeypatch):
    """Keys and values are laid out anew, also after rows have left."""
    base = world_size(kind)
    prompts = [*QUERIES, QUERIES[1], QUERIES[3], QUERIES[1]] * 3
    noise = sampling_noise(len(prompts), 12, torch.Generator().manual_seed(3))
    plain = sampled(base, CachedEngine(with_logprobs=True), prompts, noise)
    grown, real = [], fast_engine.Storage.as_columns
    monkeypatch.setattr(fast_engine, "MIN_GROWTH", 2)
    monkeypatch.setattr(fast_engine.Storage, "as_columns", lambda self, n: grown.append(n) or real(self, n))
    fast = sampled(base, FastEngine(with_logprobs=True), prompts, noise)
    assert fast == plain and len(grown) > 3 and grown == sorted(set(grown))
    assert_close(fast.logprobs, plain.logprobs, atol=1e-5, rtol=1e-5)


def test_columns_stay_where_rows_expect_them_and_hold_nothing_of_before():
    """A weight of 0 times NaN would be NaN."""
    base = world_size()
    with base.role("policy") as view:
        storage = fast_engine.new_storage(view.decoder(), torch.float32, rows=4, width=3, room=90)
    used = storage.both.shape[4]
    storage.memory[:, :, storage.both[0, 0].numel() :] = torch.nan
    storage.both.copy_(torch.randn(storage.both.shape))
    before = storage.both.clone()
    for column in range(3, used + 1):
        assert storage.both.shape[4] == used < 93
        storage.open_column(column, 3)
    assert used < storage.both.shape[4] < 93
    assert torch.equal(storage.both[:, :, :3, :, :used], before[:, :, :3])
    assert (storage.both[:, :, :3, :, used:] == 0).all()
    seen = (storage.hidden[:, 0, 0] == 0).sum(1).tolist()
    assert seen == [used + 1, used + 1, used + 1, 3]
    storage.both[:, :, :3, :, used] = 1.0
    storage.open_column(92, 3)
    assert storage.both[:, :, :3, :, used].eq(1.0).all()


@pytest.mark.parametrize("every", [3, 16])
def test_rows_that_are_done_may_stay_until_the_host_looks(every, monkeypatch):
    """What they write behind their stop token shows nowhere: neither in ids nor in statistics nor in other rows."""
    base = world_size()
    noise = sampling_noise(len(QUERIES), 12, torch.Generator().manual_seed(5))
    at_once = sampled(base, FastEngine(True), QUERIES, noise=noise)
    assert len({len(row) for row in at_once.ids}) > 1 and any(at_once.finished)
    monkeypatch.setattr(fast_engine, "MIN_GROWTH", 10**6)  # all columns from the beginning, as on a GPU
    monkeypatch.setattr(device_steps, "SYNC_EVERY", every)
    monkeypatch.setattr("models.sampling.fast.Decoding", device_steps.DeviceDecoding)
    late = sampled(base, FastEngine(True), QUERIES, noise=noise)
    assert late == at_once
    for found, expected in ((late.logprobs, at_once.logprobs), (late.entropy, at_once.entropy)):
        assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert all((row[len(ids) :] == 0).all() for row, ids in zip(found, late.ids, strict=True))


def test_a_changed_adapter_is_seen_at_once():
    """R15: the folded copies live no longer than one call; the base's own weights are never touched."""
    base = world_size()
    before = sampled(base, FastEngine(), QUERIES, steps=6)
    fingerprint = base.base_fingerprint()
    randomise(base, "policy", seed=9)
    after = sampled(base, FastEngine(), QUERIES, steps=6)
    assert before != after and after == sampled(base, CachedEngine(), QUERIES, steps=6)
    assert base.base_fingerprint() == fingerprint


def hooked(base):
    base.lm.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def off_loaded(base):
    base.lm.model.norm.forward = base.lm.model.norm.forward


def dropping(base):
    base.adapters["policy"].lora_dropout = 0.5
    for module in base.lm.modules():
        if isinstance(module, nn.ModuleDict) and "policy" in module and isinstance(module["policy"], nn.Identity):
            module["policy"] = nn.Dropout(0.5)
            module["policy"].train()


def merged(base):
    base.lm.model.layers[0].self_attn.q_proj.merged_adapters.append("policy")


def half(base):
    base.lm.to(torch.bfloat16)


def other_activation(base):
    base.lm.config.hidden_act = "gelu"


def chunked(base):
    base.lm.config.layer_types = ["full_attention", "chunked_attention"]


def stretched(base):
    base.lm.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    "change",
    [hooked, off_loaded, dropping, merged, half, other_activation, chunked, stretched],
    ids=lambda f: f.__name__,
)
def test_what_is_not_known_exactly_goes_the_plain_way(change):
    base = world_size()
    with base.role("policy") as view:
        assert view.decoder() is not None
        change(base)
        assert view.decoder() is None


@pytest.mark.parametrize("family", ["gpt2", "gemma", "opt", "gpt_neox", "phi"])
def test_other_architectures_go_the_plain_way(family):
    base = make_base(family)
    base.add_role("policy", ADAPTER)
    with base.role("policy") as view:
        assert view.decoder() is None
    noise = sampling_noise(4, 5, torch.Generator().manual_seed(0))
    expected = sampled(base, CachedEngine(), QUERIES, noise, steps=5)
    assert sampled(base, FastEngine(), QUERIES, noise, steps=5) == expected


def test_a_base_that_is_trained_itself_goes_the_plain_way():
    """Full fine-tuning: gradients of every weight, from the modules."""
    base = make_base()
    base.add_role("policy", AdapterConfig(method="full"))
    rows = make_rows(QUERIES, RESPONSES, 0, "cpu")
    with base.training("policy") as tensors, base.role("policy") as view:
        states = view.states(rows.ids, rows.mask, rows.response_positions())
        logprobs, _ = view.logprobs(states, rows.targets())
        logprobs.sum().backward()
        assert all(p.grad is not None for p in tensors.values())


def test_the_negative_log_likelihood_without_gradients_is_that_with_them():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 16, generator=g), torch.randn(40, 16, generator=g)
    targets = torch.randint(0, 40, (9,), generator=g)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert_close(block_nll(hidden, targets, weight)[0], expected, atol=1e-4, rtol=1e-5)
    with torch.no_grad():  # states of a trained body, only measured
        asked = hidden.clone().requires_grad_()
        loss, right = block_nll(asked, targets, weight)
    assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    assert right == ((hidden @ weight.T).argmax(1) == targets).sum() and not loss.requires_grad


@pytest.mark.parametrize("change", ["bias", "hook", "trained", "half", "cap", "other"])
def test_an_output_layer_that_is_more_than_a_product_is_left_to_the_modules(change):
    lm = tiny_lm("llama").requires_grad_(False)
    assert output_weight(lm) is not None
    if change == "bias":
        lm.lm_head.bias = torch.nn.Parameter(torch.zeros(lm.config.vocab_size), requires_grad=False)
    elif change == "hook":
        lm.lm_head.register_forward_hook(lambda *_: None)
    elif change == "trained":
        lm.lm_head.weight.requires_grad_()
    elif change == "half":
        lm.lm_head.half()
    elif change == "cap":
        lm.config.final_logit_softcapping = 5.0
    else:
        lm.lm_head = type("Other", (torch.nn.Linear,), {})(32, 40).requires_grad_(False)
        lm.lm_head.bias = None
    assert output_weight(lm) is None
