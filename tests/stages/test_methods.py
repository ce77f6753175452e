"""Every method in every stage that trains a role: what is named is trained, in fp32, and nothing else."""

from __future__ import annotations

import pytest
import torch

from models.backbone.settings import METHODS, RESIDUAL, AdapterConfig
from models.roles.export import save_role
from tests.support.trained_roles import STAGES, base_of, context_of

ROLES = {"sft": ("sft",), "reward": ("reward",), "ppo": ("policy", "value")}


def settings(method):
    return AdapterConfig(method=method, **({"rank": 4, "alpha": 8} if "rank" in METHODS[method].settings else {}))


def kept(base):
    """Everything in memory, by where it lies."""
    models = [base.lm, *base.copies.values()]
    return {p.data_ptr(): p.detach().clone() for lm in models for p in lm.parameters()}


def halves(name, tensor):
    """Of a residual adapter: what is trained, and what it began with."""
    return tensor.detach().chunk(2, dim=0 if ".lora_A." in name else 1)


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [*((stage, torch.bfloat16) for stage in STAGES), ("sft", torch.float32)],
    ids=[*STAGES, "sft in fp32"],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_stage_trains_what_the_method_names(tmp_path, method, stage, dtype):
    base = base_of(dtype)
    base.add_role("bystander", settings(method))
    before = kept(base)
    assert tuple(STAGES[stage](context_of(base, tmp_path, settings(method)))) == ROLES[stage]
    assert base.base_fingerprint() == base.fingerprint
    for place, first in before.items():
        now = next(
            (p for lm in [base.lm, *base.copies.values()] for p in lm.parameters() if p.data_ptr() == place), None
        )
        assert now is not None and torch.equal(now, first)
    for role in ROLES[stage]:
        trained = {n: p for n, p in base.parameters_of(role).items() if ".head." not in n}
        assert trained and {p.dtype for p in trained.values()} == {torch.float32}
        begins, taken = base.parameters_of("bystander"), 0
        for name, p in trained.items():
            first = begins[name.replace(f".{role}", ".bystander").replace(f"{role}.", "bystander.", 1)].float()
            if method in RESIDUAL:
                (own, stays), (was, then) = halves(name, p), halves(name, first)
                assert torch.equal(stays, then) and not torch.equal(own, was), name
            elif ".lora_E." in name and not p.any():
                taken += 1  # all ranks of a matrix, which others were given
            elif "lm_head" not in name or role in ("sft", "policy"):  # a scalar head passes the output layer by
                assert not torch.equal(p, first), name
        lambdas = [p for n, p in trained.items() if ".lora_E." in n]
        assert taken < len(lambdas) or not lambdas
        assert sum(int((p != 0).sum()) for p in lambdas) == 4 * len(lambdas)  # AdaLoRA's mean rank


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_stage_is_read_back_as_it_was(tmp_path, method):
    base = base_of(torch.bfloat16)
    STAGES["sft"](context_of(base, tmp_path / "run", settings(method)))
    save_role(base, "sft", tmp_path / "sft")
    again = base_of(torch.bfloat16)
    again.add_role("sft", tmp_path / "sft")
    if METHODS[method].virtual:  # of an encoder what it makes
        made, read = base.adapter_state("sft"), again.adapter_state("sft")
        assert made.keys() == read.keys() == {"prompt_embeddings"}
        torch.testing.assert_close(read["prompt_embeddings"], made["prompt_embeddings"], atol=1e-6, rtol=1e-6)
        return
    there = again.parameters_of("sft")
    assert len(there) >= len(base.parameters_of("sft"))
    for name, p in base.parameters_of("sft").items():
        assert torch.equal(there[name].float(), p), name
