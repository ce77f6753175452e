"""Layers below the lowest adapter once a rollout: the same states and gradients, found by tokens, valid or unused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from models.backbone.forward import set_gradient_checkpointing
from models.backbone.logprobs import make_rows
from models.backbone.settings import AdapterConfig
from models.fast import hidden_states as fast_body
from models.fast.prefix_cache import best_depth, make_prefix_cache, prefix_states_of
from models.sampling.fast import FastEngine
from models.sampling.generate import sampling_noise
from stages.ppo import shared_layers as lower_layers
from stages.ppo import state as ppo_state
from stages.ppo.shared_layers import keep_prefix_states
from tests.conftest import make_base, randomise
from tests.support.fast import sampled
from tests.support.ppo import everything, facts, make_ppo

UPPER = AdapterConfig(rank=4, alpha=8, layers=(2, 3))
QUERIES = [[5, 9], [7, 8, 9, 10, 11], [12, 13, 2, 14], [20], [5, 9]]
RESPONSES = [[21, 2], [0, 23, 24, 25, 26, 27], [28], [29, 30, 31, 2], [21, 2]]
ROWS = [[*q, *r] for q, r in zip(QUERIES, RESPONSES, strict=True)]


def world_size(adapter: AdapterConfig = UPPER):
    base = make_base(num_hidden_layers=4, initializer_range=0.2)
    base.add_role("policy", adapter, head=True, trainable=True)
    randomise(base, "policy", seed=1, scale=0.1)
    return base


def make_upper(tmp_path, layers=(2, 3), **settings):
    """A PPO whose roles have adapters in these layers of four."""
    return make_ppo(
        tmp_path, base=make_base(num_hidden_layers=4), adapter=UPPER.model_copy(update={"layers": layers}), **settings
    )


def run_layers(monkeypatch) -> list[int]:
    """Indices of the layers whose forward runs by ``fast_body``."""
    seen: list[int] = []
    real = fast_body.forward

    def noting(run, index, *rest, **named):
        seen.append(index)
        return real(run, index, *rest, **named)

    monkeypatch.setattr(fast_body, "forward", noting)
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_states_and_gradients_are_those_without_a_trunk(depth, checkpointing, monkeypatch):
    base, found = world_size(), []
    seen = run_layers(monkeypatch)
    for kept in (False, True):
        if kept:
            with base.role("policy") as view:
                base.prefix_cache = make_prefix_cache(view.decoder(), ROWS, depth)
            assert base.prefix_cache.states.shape == (
                sum(map(len, ROWS[:4])),
                32,
            )  # the row that comes twice is there once
            seen.clear()
        rows = make_rows([QUERIES[i] for i in (3, 1, 4)], [RESPONSES[i] for i in (3, 1, 4)], 0, "cpu")
        set_gradient_checkpointing(base.lm, checkpointing)
        with base.training("policy") as tensors, base.role("policy") as view:
            states = view.states(rows.ids, rows.mask, rows.response_positions())
            (states * torch.linspace(-1, 1, states.numel()).view(states.shape)).sum().backward()
            found.append((states.detach(), {n: p.grad.clone() for n, p in tensors.items() if p.grad is not None}))
        set_gradient_checkpointing(base.lm, False)
    assert seen == list(range(depth, 4))
    (plain, gradients), (fast, others) = found
    assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == others.keys() and len(gradients) == 2 * 7 * 2
    for name, g in gradients.items():
        assert ((others[name] - g).norm() / g.norm()).item() < 1e-5, name


def test_a_trunk_is_used_only_for_its_rows_its_base_and_adapters_above_it(monkeypatch):
    base = world_size()
    base.add_role("everywhere", AdapterConfig(rank=4, alpha=8), head=True)
    randomise(base, "everywhere", seed=2, scale=0.1)
    rows, other = make_rows(QUERIES, RESPONSES, 0, "cpu"), make_rows([[5, 9]], [[21, 3]], 0, "cpu")
    seen = run_layers(monkeypatch)

    def states(role, which=rows, of=base):
        seen.clear()
        with of.role(role) as view, torch.no_grad():
            return view.states(which.ids, which.mask, which.response_positions()), seen[0]

    before = {role: states(role)[0] for role in ("policy", "everywhere")}
    apart = states("policy", other)[0]
    with base.role("policy") as view:
        prefix_cache = base.prefix_cache = make_prefix_cache(view.decoder(), ROWS, 2)
    assert (states("policy")[1], states("everywhere")[1], states("policy", other)[1]) == (2, 0, 0)
    assert torch.equal(states("everywhere")[0], before["everywhere"])
    assert torch.equal(states("policy", other)[0], apart)
    assert_close(states("policy")[0], before["policy"], atol=1e-5, rtol=1e-5)
    second = world_size()
    second.prefix_cache = prefix_cache
    assert states("policy", of=second)[1] == 0
    with base.role("everywhere") as view, pytest.raises(ValueError, match="layer 0"):
        make_prefix_cache(view.decoder(), ROWS, 2)


def test_the_depth_is_the_one_that_saves_most():
    assert best_depth([]) == 0 == best_depth([(0, 5), (0, 5)])
    assert best_depth([(4, 5), (4, 5), (4, 1)]) == 4
    assert best_depth([(8, 5), (4, 5)]) in (4, 8)  # 8 layers by 5 passes or 4 by 10: the same
    assert best_depth([(8, 5), (3, 5)]) == 8 and best_depth([(8, 5), (5, 5)]) == 5
    assert best_depth([(8, 5), (0, 5)]) == 8


def test_ppo_computes_lower_layers_once_and_learns_the_same(tmp_path, monkeypatch):
    """Scores, values, both log-probabilities and every gradient; afterwards nothing is kept."""
    whole = make_upper(tmp_path / "a", share_prefix_layers=False, updates=2)
    rows = list(whole.train())
    shared = make_upper(tmp_path / "b", updates=2)
    seen = run_layers(monkeypatch)
    metrics = list(shared.train())
    assert seen and min(seen) == 2
    for a, b in zip(rows, metrics, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if not name.startswith(("time/", "memory/")):
                assert b[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    for name, p in whole.policy_parameters.items():
        assert_close(shared.policy_parameters[name], p, atol=1e-4, rtol=1e-3)
    assert shared.base.prefix_cache is None


@pytest.mark.parametrize("batch", [3, 99])
def test_the_sampler_keeps_what_a_plain_pass_gives(batch):
    """For every token, that which ends a row included; tokens and log-probabilities are what they are without it."""
    base = world_size()
    prompts = [*QUERIES, QUERIES[1], QUERIES[3]] * 3
    noise = sampling_noise(len(prompts), 12, torch.Generator().manual_seed(3))
    plain = sampled(base, FastEngine(with_logprobs=True), prompts, noise, batch=batch)
    kept = sampled(base, FastEngine(with_logprobs=True, depth=2), prompts, noise, batch=batch)
    assert kept == plain and plain.prefix_states is None and len({len(r) for r in plain.ids}) > 3
    assert_close(kept.logprobs, plain.logprobs, atol=1e-5, rtol=1e-5)
    rows = [[*q, *r] for q, r in zip(prompts, kept.ids, strict=True)]
    with base.role("policy") as view:
        expected = prefix_states_of(view.decoder(), rows, 2)
    assert [len(x) for x in kept.prefix_states] == [len(row) for row in rows]
    assert_close(torch.cat(list(kept.prefix_states)), expected, atol=1e-5, rtol=1e-5)
    assert sampled(base, FastEngine(depth=3), prompts, noise).prefix_states is None  # an adapter lies below
    base.fast = False
    assert sampled(base, FastEngine(depth=2), prompts, noise).prefix_states is None


def test_ppo_takes_the_samplers_states_and_not_those_far_from_a_plain_pass(tmp_path, monkeypatch):
    """Where the sampler's are wrong, the run says so and ends as one that computes them itself."""
    told: list[str] = []

    def end(name, spoil=None, engine=None):
        ppo = make_upper(tmp_path / name, updates=2, engine=engine)
        ppo.context = replace(ppo.context, warn=told.append)
        computed = []
        real = lower_layers.make_prefix_cache

        def noting(decoder, rows, depth, states=None):
            computed.append(states is None)
            return real(decoder, rows, depth, states)

        monkeypatch.setattr(lower_layers, "make_prefix_cache", noting)
        if spoil is not None:
            run = ppo.engine
            ppo.engine = lambda *a, **k: replace(
                made := run(*a, **k), prefix_states=[spoil(x) for x in made.prefix_states]
            )
        metrics = list(ppo.train())
        monkeypatch.setattr(lower_layers, "make_prefix_cache", real)
        return facts(metrics), computed

    own, computed = end("own", engine=FastEngine(with_logprobs=True))
    assert computed == [True, True] and told == []
    taken, computed = end("taken")
    assert computed == [False, False] and told == []
    for a, b in zip(own, taken, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    for number, spoil in enumerate((lambda x: x * 1.001, lambda x: x.roll(1, 0), lambda x: x / 0.0)):
        found, computed = end(f"spoilt{number}", spoil)
        assert computed == [True, True] and found == own
        assert len(told) == 2 and all("sampler's states" in t for t in told)
        told.clear()


def test_depths_of_roles_that_differ_and_heads_on_the_trunk(tmp_path):
    for settings, expected in (
        ({}, 2),
        ({"layers": (3,)}, 3),
        ({"layers": "all"}, 0),
        ({"share_prefix_layers": False}, 0),
        ({"value": {"init": "policy_trunk"}}, 2),
    ):
        ppo = make_upper(tmp_path, updates=1, **settings)
        with ppo.base.training("policy", "value"):
            rollout, _ = ppo.rollout()
        assert keep_prefix_states(ppo.base, rollout, ppo.config) == expected
        assert (ppo.base.prefix_cache is None) == (expected == 0)
        ppo.base.fast = False
        assert keep_prefix_states(ppo.base, rollout, ppo.config) == 0 and ppo.base.prefix_cache is None


def test_an_interrupted_update_goes_on_to_the_same_bits(tmp_path):
    settings = {"minibatches": 2, "learning_rate": 1e-2, "micro_batch": 3}
    whole, kept = make_upper(tmp_path / "whole", **settings), []
    whole.safe_point = lambda: kept.append(ppo_state.snapshot(whole)) if whole.position == 7 else None
    real = ppo_state.training_tensors
    try:
        ppo_state.training_tensors = lambda *a: {n: t.detach().clone() for n, t in real(*a).items()}
        rows = list(whole.train())
    finally:
        ppo_state.training_tensors = real
    assert "lower" in kept[0].own  # the sampler's states, of which another pass would give other bits
    again = make_upper(tmp_path / "again", **settings)
    ppo_state.restore(again, kept[0])
    assert facts(list(again.train())) == facts(rows[1:])
    found, expected = everything(again), everything(whole)
    assert [n for n in found if not torch.equal(found[n], expected[n])] == []
