"""Whatever is trained has fp32 weights and moments, in every stage and method, on a bf16 base as on an fp32 one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from models.backbone.forward import precision
from models.backbone.settings import AdapterConfig
from models.roles.export import save_role
from stages import sft
from stages.ppo.state import restore, snapshot
from stages.training import hf_trainer as trainers
from tests.support.trained_roles import STAGES, base_of, by_sft, context_of, make_ppo

FULL = AdapterConfig(method="full")
LORA = AdapterConfig(rank=4, alpha=8)


def changes(dtype, stage, out, adapter=FULL):
    """Start and change of every trained weight, by role and name."""
    base = base_of(dtype)
    start = {n: p.detach().float().clone() for n, p in base.lm.named_parameters()}
    roles = STAGES[stage](context_of(base, out, adapter))
    assert base.base_fingerprint() == base.fingerprint
    out = {}
    for role in roles:
        for name, p in base.parameters_of(role).items():
            assert p.dtype == torch.float32, name
            plain = name.removeprefix(f"{role}.")
            if plain in start:
                out[role, plain] = p.detach() - start[plain]
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_full_training_on_a_bf16_base_moves_what_it_moves_on_an_fp32_base(tmp_path, stage):
    half = changes(torch.bfloat16, stage, tmp_path / "half")
    whole = changes(torch.float32, stage, tmp_path / "whole")
    assert half.keys() == whole.keys()
    for role in {role for role, _ in whole}:
        a, b = (torch.cat([d.flatten() for (r, _), d in x.items() if r == role]) for x in (half, whole))
        moved, expected = ((x != 0).double().mean() for x in (a, b))
        assert abs(moved - expected) < 0.02 and moved > 0.5
        assert torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0) > 0.95
        assert 0.95 < a.norm() / b.norm() < 1.05
        for (r, name), change in half.items():
            if r == role and "norm" in name:
                assert (change != 0).double().mean() > 0.9, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", [FULL, LORA], ids=["full", "lora"])
def test_weights_and_moments_are_fp32(tmp_path, dtype, adapter):
    ppo = make_ppo(context_of(base_of(dtype), tmp_path, adapter), updates=1)
    list(ppo.train())
    trained = ppo.policy_parameters | ppo.value_parameters
    assert {p.dtype for p in trained.values()} == {torch.float32}
    moments = [v for state in ppo.optimizer.state.values() for v in state.values()]
    assert moments and {v.dtype for v in moments} == {torch.float32}
    assert all(p.isfinite().all() for p in trained.values())


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_the_trainers_moments_are_fp32(tmp_path, stage, monkeypatch):
    seen = []
    fit = trainers.fit

    def spied(trainer):
        out = fit(trainer)
        seen.extend(v for state in trainer.optimizer.state.values() for v in state.values())
        return out

    monkeypatch.setattr(sft, "fit", spied)
    monkeypatch.setattr(trainers, "fit", spied)
    STAGES[stage](context_of(base_of(torch.bfloat16), tmp_path, FULL))
    assert seen and {v.dtype for v in seen} == {torch.float32}


def logits(base, role):
    ids = torch.arange(3, 12)[None]
    with base.role(role) as view, torch.no_grad():
        return view.logits(view.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))


def test_a_full_result_is_saved_exactly_and_is_the_reference_and_the_policys_start(tmp_path):
    context = context_of(base_of(torch.bfloat16), tmp_path / "sft", FULL)
    by_sft(context)
    trained = dict(context.base.copies["sft"].named_parameters())
    assert any(not torch.equal(p, p.bfloat16().float()) for p in trained.values())  # bf16 would lose something
    stored = load_file(tmp_path / "sft" / "model" / "model.safetensors")
    assert all(torch.equal(stored[n], p) for n, p in trained.items() if n in stored) and len(stored) > 20
    fresh = base_of(torch.bfloat16)
    fresh.load_role("reference", tmp_path / "sft")
    fresh.add_role("policy", FULL, copy_of="reference")
    for role in ("reference", "policy"):
        assert all(torch.equal(p, trained[n]) for n, p in fresh.copies[role].named_parameters())
        assert torch.equal(logits(fresh, role), logits(context.base, "sft"))
    save_role(fresh, "policy", tmp_path / "again")
    assert (tmp_path / "again/model/model.safetensors").read_bytes() == (
        tmp_path / "sft/model/model.safetensors"
    ).read_bytes()


def test_ppo_resumes_exactly(tmp_path):
    whole = make_ppo(context_of(base_of(torch.bfloat16), tmp_path / "a", FULL), updates=2)
    list(whole.train())
    first = make_ppo(context_of(base_of(torch.bfloat16), tmp_path / "b", FULL), updates=2)
    with first.base.training("policy", "value"):
        first.step()
    state = snapshot(first)
    second = make_ppo(context_of(base_of(torch.bfloat16), tmp_path / "c", FULL), updates=2)
    restore(second, state)
    list(second.train())
    for name, p in (whole.policy_parameters | whole.value_parameters).items():
        assert torch.equal(p, (second.policy_parameters | second.value_parameters)[name]), name


def test_the_first_kl_of_a_full_policy_is_0(tmp_path):
    """Reference and policy are the same numbers, computed in the same precision."""
    ppo = make_ppo(context_of(base_of(torch.bfloat16), tmp_path, FULL), updates=1)
    with ppo.base.training("policy", "value"):
        rollout, _ = ppo.rollout()
    assert torch.equal(rollout.logprobs, rollout.ref_logprobs)


@pytest.mark.parametrize(
    ("dtype", "computed"), [(torch.bfloat16, torch.bfloat16), (torch.float16, None), (torch.float32, None)]
)
def test_a_copy_computes_in_bf16_where_the_base_does(dtype, computed):
    base = base_of(dtype)
    base.add_role("sft", FULL)
    lm = base.copies["sft"]
    assert lm.compute_dtype is computed and not torch.is_autocast_enabled("cpu")
    with precision(lm):
        product = lm.get_output_embeddings()(torch.ones(1, 32))
    assert product.dtype == (computed or torch.float32)
    with base.role("sft") as view:
        assert (view.decoder() is None) == (computed is not None)  # the fast path knows one precision at a time
    if computed is not None:
        close = logits(base, "base").float()
        torch.testing.assert_close(logits(base, "sft").float(), close, atol=0.05 * close.abs().max().item(), rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_the_optimizer_is_seen_by_the_next_pass_and_gradients_are_fp32(checkpointing):
    """Autocast keeps casts of weights until it is left, which must not outlive a pass."""
    from models.backbone.forward import set_gradient_checkpointing

    base = base_of(torch.bfloat16)
    base.add_role("sft", FULL)
    ids = torch.arange(3, 12)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    with base.training("sft") as trained, base.role("sft") as view:
        set_gradient_checkpointing(view.lm, checkpointing)
        before = view.logits(view.hidden(ids, mask))
        before.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained.values())
        with torch.no_grad():
            for p in trained.values():
                p.add_(0.05)
        after = view.logits(view.hidden(ids, mask))
    assert (after - before).abs().max() > 0.1
