"""The look before the first update: silent when all is well, by name when something is not, and without a trace."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.common.errors import UserError
from data.template import Renderer
from models.backbone.artifacts import FORMAT, MANIFEST, write_json
from reward.model import RewardModel
from stages import reward_model
from stages.ppo import stage as ppo_stage
from stages.ppo.self_check import require, self_check
from stages.settings import PPOConfig, RewardConfig
from tests.conftest import FAMILIES, make_base, randomise, tiny_lm, word_tokenizer
from tests.support.ppo import make_context, make_ppo
from tests.support.training import context_for


def failed(ppo, model=None) -> list[str]:
    return [f.name for f in self_check(ppo, model) if not f.ok]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family, tmp_path):
    ppo = make_ppo(tmp_path, family=family, temperature=0.7, gradient_checkpointing=family in ("llama", "gpt2"))
    findings = self_check(ppo)
    assert [f.name for f in findings if not f.ok] == []
    assert [f.name for f in findings] == [
        "trainable set", "reference", "ratio", "batch composition", "generation", "stop tokens",
    ]  # fmt: skip
    require(findings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases_pass(tmp_path, dtype):
    from models.roles.shared_base import SharedBase

    base = SharedBase(tiny_lm("llama").to(dtype), word_tokenizer(), name="half")
    assert failed(make_ppo(tmp_path, base=base)) == []


def test_a_critic_on_the_policys_trunk_passes(tmp_path):
    assert failed(make_ppo(tmp_path, value={"init": "policy_trunk"})) == []


def test_it_leaves_weights_generators_gradients_and_flags_alone(tmp_path):
    """Training with it and without it ends in the same bytes."""
    found = []
    for check in (False, True):
        ppo = make_ppo(tmp_path, updates=2, gradient_checkpointing=True)
        flags = {n: m.training for n, m in ppo.base.lm.named_modules()}
        asking = [p.requires_grad for p in ppo.base.all_parameters()]
        if check:
            state = torch.get_rng_state()
            self_check(ppo)
            assert torch.equal(state, torch.get_rng_state())
            assert flags == {n: m.training for n, m in ppo.base.lm.named_modules()}
            assert asking == [p.requires_grad for p in ppo.base.all_parameters()]
            assert all(p.grad is None for p in ppo.base.all_parameters())
        list(ppo.train())
        found.append(torch.cat([p.detach().flatten() for p in ppo.base.all_parameters()]))
    assert torch.equal(*found)


# -- what it finds -----------------------------------------------------------------------------------------------


def test_a_policy_that_is_not_the_reference(tmp_path):
    ppo = make_ppo(tmp_path)
    randomise(ppo.base, "policy", 9)
    assert failed(ppo) == ["reference"]
    with pytest.raises(UserError, match=r"'reference' failed \(log-probabilities differ by .* SFT adapter"):
        require(self_check(ppo))


def test_dropout_that_is_on(tmp_path):
    ppo = make_ppo(tmp_path)
    for layer in ppo.base.lm.model.layers:
        layer.mlp.register_forward_hook(lambda m, a, out: torch.nn.functional.dropout(out, 0.3))
    assert "ratio" in failed(ppo)


def test_positions_that_ignore_the_mask(tmp_path, monkeypatch):
    """A sampler whose cache or positions are off, as under left padding with absolute positions."""
    ppo = make_ppo(tmp_path, family="gpt2")
    monkeypatch.setattr("models.backbone.forward.takes_positions", lambda body: False)
    assert "generation" in failed(ppo)


def test_a_base_that_ignores_the_attention_mask_of_padding(tmp_path):
    """Rows that see their neighbours: the first hidden state of the batch leaks into all."""
    ppo = make_ppo(tmp_path)
    ppo.base.lm.model.embed_tokens.register_forward_hook(lambda m, a, out: out + 0.3 * out.mean((0, 1)))
    assert "batch composition" in failed(ppo)


def test_an_optimizer_without_the_value_role(tmp_path):
    ppo = make_ppo(tmp_path)
    ppo.optimizer.param_groups.pop(1)
    assert failed(ppo) == ["trainable set"]


def test_an_optimizer_that_holds_the_reference(tmp_path):
    ppo = make_ppo(tmp_path)
    ppo.optimizer.add_param_group({"params": list(ppo.base.parameters_of("reference").values())})
    assert failed(ppo) == ["trainable set"]


def test_stop_tokens_that_cannot_be_reached(tmp_path):
    ppo = make_ppo(tmp_path)
    for stops in ((2, 99), (0,)):
        renderer = types.SimpleNamespace(stop_ids=stops, stop_strings=None, pad_id=0)
        ppo.context = replace(ppo.context, open_base=lambda renderer=renderer: (ppo.base, renderer))
        assert "stop tokens" in failed(ppo)


# -- through the stage -------------------------------------------------------------------------------------------


def trained_reward(folder: Path) -> tuple[dict, Path]:
    context = context_for(folder)
    config = RewardConfig(batch=6, micro_batch=6, learning_rate=1e-3, calibration_samples=8)
    return dict(reward_model.run(context, config).metrics), folder


def stage_world(tmp_path: Path, metrics: dict, folder: Path, spoil: bool = False):
    """What the runner hands to PPO's stage, the reward model loaded from its folder."""
    base, told = make_base(), list[str]()
    numbers = base.load_role("reward", folder, head=True)
    tmp_path.mkdir(exist_ok=True)
    context = make_context(base, tmp_path)
    base.add_role("reference", context.adapter)
    randomise(base, "reference", 1)
    if spoil:
        base.parameters_of("reward")["reward.head.bias"].data += 0.5
    write_json(folder / MANIFEST, {"format": FORMAT, "stage": "reward", "key": "k", "metrics": metrics, "files": {}})
    context = replace(context, inputs={"reward": folder}, warn=told.append)
    model = RewardModel(
        base=base,
        role="reward",
        renderer=Renderer(base.tokenizer, template="dialogue"),
        score_mean=numbers["score_mean"],
    )
    return context, model, told


def test_the_stage_checks_trains_and_writes_down_its_warnings(tmp_path):
    """P7, P8: policy and critic come back from disk; the reward model is the one that its stage recorded."""
    metrics, folder = trained_reward(tmp_path / "reward")
    context, model, told = stage_world(tmp_path / "ppo", metrics, folder)
    config = PPOConfig(rollouts=8, updates=4, epochs=1, max_new_tokens=1, learning_rate=1e-3)
    result = ppo_stage.run(context, config, model)
    kept = result.metrics["warnings"]
    assert all(set(w) == {"step", "text"} for w in kept)
    assert len(told) == len(kept)
    fresh = make_base()
    fresh.load_role("policy", context.out)
    fresh.load_role("value", context.out / "value", head=True)
    for role in ("policy", "value"):
        ours, theirs = context.base.parameters_of(role), fresh.parameters_of(role)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_a_reward_model_that_is_not_the_recorded_one_stops_the_stage(tmp_path):
    metrics, folder = trained_reward(tmp_path / "reward")
    context, model, _ = stage_world(tmp_path / "ppo", metrics, folder, spoil=True)
    config = PPOConfig(rollouts=8, updates=1, epochs=1, max_new_tokens=4)
    with pytest.raises(UserError, match=r"'reward model' failed .* Run the reward stage again"):
        ppo_stage.run(context, config, model)
    context, model, _ = stage_world(tmp_path / "off", metrics, folder, spoil=True)
    ppo_stage.run(context, config.model_copy(update={"self_check": False}), model)
