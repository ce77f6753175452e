"""Every architecture through the roles of a whole run, twice in one process, from its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from data.common.errors import UserError
from models.backbone.architecture import (
    check_architecture,
    linear_layers,
    other_senses,
    out_of_reach,
    passed_over,
    reach_sentence,
    without_weights,
)
from models.backbone.settings import AdapterConfig
from models.roles.export import save_role
from models.roles.shared_base import SharedBase
from models.sampling.generate import CachedEngine, SamplingParams
from tests.conftest import ADAPTER, make_base, randomise, tiny_lm, word_tokenizer
from tests.support.architectures import ARCHITECTURES, MORE, SMALL, config_of

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def base_of(kind: str) -> SharedBase:
    torch.manual_seed(0)
    return SharedBase(AutoModelForCausalLM.from_config(config_of(kind)), word_tokenizer(), name=kind)


def states(base: SharedBase, role: str) -> torch.Tensor:
    with base.role(role) as view:
        return view.hidden(IDS, MASK).detach()


def one_run(base: SharedBase, folder: Path) -> None:
    """SFT writes an adapter; the reward stage starts from it; PPO's four roles come from files and train."""
    base.drop_roles()
    base.add_role("sft", ADAPTER)
    randomise(base, "sft", 0, 0.1)
    trained = states(base, "sft")
    assert not torch.equal(trained, states(base, "base"))
    save_role(base, "sft", folder / "sft")
    base.drop_roles()
    base.load_role("sft", folder / "sft")
    torch.testing.assert_close(states(base, "sft"), trained)
    base.add_role("reward", ADAPTER, copy_of="sft", head=True)
    save_role(base, "reward", folder / "reward")
    base.drop_roles()
    base.load_role("reference", folder / "sft")
    base.load_role("reward", folder / "reward", head=True)
    base.add_role("policy", ADAPTER, copy_of="reference")
    base.add_role("value", ADAPTER, copy_of="reward", head=True)
    with base.training("policy", "value") as trainable:
        for role in ("policy", "value"):
            with base.role(role) as view:
                hidden = view.hidden(IDS, MASK)
                head: Any = view.head
                out = view.logits(hidden).float().log_softmax(-1)[..., 3] if role == "policy" else head(hidden)
                out.sum().backward()
        assert [n for n, p in trainable.items() if p.grad is None] == []
        with torch.no_grad():
            for p in trainable.values():
                p.sub_(0.1 * p.grad)  # type: ignore[operator]
    torch.testing.assert_close(states(base, "reference"), trained)
    assert not torch.equal(states(base, "policy"), trained)


def by_plain_peft(kind: str, folder: Path) -> torch.Tensor:
    """What PEFT alone makes of an adapter that was saved here."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config_of(kind)).eval()
    with torch.no_grad():
        return PeftModel.from_pretrained(lm, folder / "adapter")(input_ids=IDS).logits


def check(kind: str, folder: Path) -> None:
    base = base_of(kind)
    names, bare = [n for n, _ in base.lm.named_parameters()], states(base, "base")
    for run in ("first", "second"):
        one_run(base, folder / run)
    base.load_role("again", folder / "first" / "sft")
    with base.role("again") as view, torch.no_grad():
        ours = view.logits(view.hidden(IDS, MASK))
    torch.testing.assert_close(by_plain_peft(kind, folder / "first" / "sft"), ours, atol=1e-5, rtol=1e-4)
    base.drop_roles()
    assert base.base_fingerprint() == base.fingerprint
    assert [n for n, _ in base.lm.named_parameters()] == names  # no wrapper stays
    assert torch.equal(states(base, "base"), bare)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_run_and_another_in_one_process(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE)
def test_a_run_and_another_in_one_process_of_more_kinds(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path)


WITH_STATES = ["falcon_h1", "lfm2", "qwen3_5_text"]


@pytest.mark.parametrize("kind", WITH_STATES)
def test_rows_that_leave_a_batch_early_change_no_others(kind: str) -> None:
    """Layers with a state of fixed size, beside those with a key-value cache: the finished rows' states go as well."""
    base = base_of(kind)
    base.lm.double()
    prompts = [[3 + (7 * i + j) % 30 for j in range(n)] for i, n in enumerate((1, 3, 9, 5))]
    noise = torch.rand((4, 10), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    params = SamplingParams(max_new_tokens=10, stop_ids=tuple(range(16, 30)))
    with base.role("base") as view:
        found = CachedEngine()(view, prompts, params=params, noise=noise)
        for i, prompt in enumerate(prompts):
            alone = CachedEngine()(view, [prompt], params=params, noise=noise[i : i + 1])
            assert alone.ids[0] == found.ids[i]
    assert len({len(ids) for ids in found.ids}) > 2  # so rows left


def test_a_cache_of_a_models_own_is_refused_by_name() -> None:
    settings = {"num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model("minimax", **SMALL | settings, block_size=8))
    with pytest.raises(UserError, match=r"base b: 'minimax' models take a key-value cache of their own .*MiniMaxCache"):
        SharedBase(lm, word_tokenizer(), name="b")


def test_layers_whose_adapters_peft_does_not_read_back_are_refused_by_name() -> None:
    """Transformers renames `weight_proj` as it loads, and PEFT drops what it has no place for without a word."""
    more = {"layer_types": ["full_attention", "sliding_attention"], "head_dim": 8, "pad_token_id": 0}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model("inkling2_text", **SMALL | more))
    base = SharedBase(lm, word_tokenizer(), name="b")
    with pytest.raises(UserError, match=r"base b: PEFT does not read .*weight_proj.*: name other layers"):
        base.add_role("sft", ADAPTER)
    one = SharedBase(AutoModelForCausalLM.from_config(lm.config), word_tokenizer(), name="b")
    one.add_role("sft", AdapterConfig(rank=4, alpha=8, targets=("q_proj", "v_proj")))


def test_layers_that_are_numbered_are_no_targets() -> None:
    """`altup_projections.0` is a linear layer, and "0" would be the first block to PEFT."""
    lm = AutoModelForCausalLM.from_config(config_of("gemma3n_text"))
    names = linear_layers(lm)
    assert "q_proj" in names and not any(name.isdigit() for name in names)
    assert out_of_reach(lm, names)["0"] == lm.model.altup_projections[0].weight.numel() * 2  # and its counterpart


def test_layers_past_which_the_model_goes_are_no_targets() -> None:
    """Jamba multiplies by `dt_proj.weight` itself: an adapter on the layer would get no gradient and change nothing."""
    base = base_of("jamba")
    assert "dt_proj" not in base.linear_names and "in_proj" in base.linear_names
    assert passed_over(base.lm) == {"dt_proj"} and passed_over(tiny_lm("llama")) == set()
    assert "out_proj" in passed_over(AutoModelForCausalLM.from_config(config_of("falcon_h1")))
    with pytest.raises(UserError, match=r"adapter.targets: the code of 'jamba' takes the weight of dt_proj"):
        base.add_role("sft", AdapterConfig(rank=2, alpha=4, targets=("in_proj", "dt_proj")))


@pytest.mark.parametrize("kind", ["rwkv", "mamba"])
def test_recurrent_models_are_refused_by_name(kind: str) -> None:
    small = {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 40}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small))
    with pytest.raises(UserError, match=rf"base b: '{kind}' models have no .*cache"):
        SharedBase(lm, word_tokenizer(), name="b")


def test_weights_that_adapters_do_not_reach_are_counted_and_said() -> None:
    config = config_of("mixtral")
    lm = AutoModelForCausalLM.from_config(config)
    # two layers of 4 experts: gate and up (2 x 64 x 32), down (32 x 64); a router (4 x 32) is a matrix as well
    left = out_of_reach(lm, linear_layers(lm))
    assert left["gate_up_proj"] == 2 * 4 * 2 * 64 * 32 and left["down_proj"] == 2 * 4 * 32 * 64
    assert sum(left.values()) - left["gate_up_proj"] - left["down_proj"] == 2 * 4 * 32
    said = reach_sentence(lm, linear_layers(lm))
    whole = sum(p.numel() for p in lm.model.parameters())
    assert f"gate_up_proj ({left['gate_up_proj'] / whole:.0%})" in said and "stay as they are" in said
    assert reach_sentence(without_weights(config), linear_layers(without_weights(config))) == said
    dense = tiny_lm("llama")
    assert out_of_reach(dense, linear_layers(dense)) == {} and reach_sentence(dense, linear_layers(dense)) == ""


def test_what_peft_takes_for_experts_is_left_out_or_refused() -> None:
    """On deepseek_v3 PEFT would place an adapter on `gate_proj` of a dense layer at the experts' tensors instead."""
    base = base_of("deepseek_v3")
    assert not {"gate_proj", "up_proj", "down_proj"} & set(base.linear_names)
    with pytest.raises(UserError, match=r"adapter.targets: on 'deepseek_v3' PEFT takes gate_proj for experts"):
        base.add_role("sft", AdapterConfig(rank=2, alpha=4, targets=("q_a_proj", "gate_proj")))


def test_a_part_that_sees_carries_no_adapter() -> None:
    base = base_of("gemma3")
    base.add_role("sft", ADAPTER)
    names = list(base.parameters_of("sft"))
    assert names and all("language_model" in n for n in names)
    assert other_senses(tiny_lm("llama")) is None


def test_a_target_that_is_not_there_is_named_with_the_nearest() -> None:
    base = make_base()
    with pytest.raises(UserError, match=r"adapter.targets: the base has no module 'q_prj'.*q_proj"):
        base.add_role("sft", AdapterConfig(rank=2, alpha=4, targets=("q_prj",)))


def test_full_copies_stand_beside_adapters() -> None:
    """A reward adapter and fully fine-tuned roles on one base: a value role that starts as the reward model has its
    adapter merged in, the policy is the bare base."""
    base, full = make_base(), AdapterConfig(method="full")
    base.add_role("reward", ADAPTER, head=True)
    randomise(base, "reward", 1)
    base.add_role("policy", full)
    base.add_role("value", full, copy_of="reward", head=True)
    torch.testing.assert_close(states(base, "value"), states(base, "reward"))
    assert torch.equal(states(base, "policy"), states(base, "base"))
    assert not torch.allclose(states(base, "value"), states(base, "base"), atol=1e-2)
    assert not any("lora_" in n for n in base.parameters_of("value"))
    with pytest.raises(ValueError, match="no role 'nonsense' to start 'other' from"):
        base.add_role("other", full, copy_of="nonsense")


def test_a_model_that_reads_several_tokens_as_one_is_refused():
    """DeepSeek V4: behind padding on the left its compressed tokens are others, and so are its logits."""
    config = AutoConfig.for_model("deepseek_v4", num_hidden_layers=2, hidden_size=64, vocab_size=64)
    with pytest.raises(UserError, match=r"base v4: 'deepseek_v4' models read several tokens as one"):
        check_architecture(without_weights(config), "v4")
