"""A role's files are read without a base, and say all that a base needs to take them in."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data.common.errors import UserError
from models.backbone.settings import AdapterConfig
from models.roles.export import save_role, write_model
from models.roles.files import HEAD, read_role
from models.roles.shared_base import SharedBase
from tests.conftest import ADAPTER, make_base, randomise, tiny_lm, word_tokenizer


def test_what_was_written_is_read_without_a_base(tmp_path):
    base = make_base()
    base.add_role("reward", AdapterConfig(rank=2), head=True)
    save_role(base, "reward", tmp_path, {"centre": 0.25})
    found = read_role(tmp_path, head=True)
    assert found.adapter is not None and found.head is not None and found.model is None
    own = base.adapter_state("reward")
    assert set(found.adapter.tensors) == set(own)
    assert all(torch.equal(found.adapter.tensors[name], tensor) for name, tensor in own.items())
    assert found.adapter.config.r == 2
    head, numbers = found.head.build(base.hidden_size)
    assert torch.equal(head.weight, base.heads["reward"].weight) and numbers == {"centre": 0.25}
    with pytest.raises(UserError, match=f"{HEAD}: does not hold a head for width {base.hidden_size + 1}"):
        found.head.build(base.hidden_size + 1)


def test_a_head_is_read_only_where_it_is_asked_for(tmp_path):
    base = make_base()
    base.add_role("sft", AdapterConfig(rank=2))
    save_role(base, "sft", tmp_path)
    assert read_role(tmp_path).head is None
    with pytest.raises(UserError, match="nothing without its head"):
        read_role(tmp_path, head=True)


def test_an_adapter_on_a_bf16_base_is_merged_without_rounding_it_away(tmp_path):
    """Most changes lie below bf16's last place; in bf16 the merged folder would nearly be the bare base."""
    base = SharedBase(tiny_lm("llama").to(torch.bfloat16), word_tokenizer())
    base.add_role("sft", ADAPTER)
    randomise(base, "sft", 0, 0.01)
    write_model(base, "sft", tmp_path / "merged", (2,))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    found, state, scale = dict(merged.named_parameters()), base.adapter_state("sft"), ADAPTER.alpha / ADAPTER.rank
    changed = 0
    for name, weight in base.base_tensors().items():
        expected, lora = weight.double(), f"base_model.model.{name.removesuffix('.weight')}"
        if f"{lora}.lora_A.weight" in state:
            a, b = state[f"{lora}.lora_A.weight"].double(), state[f"{lora}.lora_B.weight"].double()
            expected = expected + scale * b @ a
            changed += 1
        torch.testing.assert_close(found[name].double(), expected, atol=1e-7, rtol=1e-6)
    assert merged.dtype == torch.float32 and changed == 14


def test_a_role_that_is_a_head_alone_is_written_as_one(tmp_path):
    """A value role on the policy's trunk, beside roles with adapters."""
    base = make_base()
    base.add_role("policy", ADAPTER)
    head = base.add_head("value", 3)
    save_role(base, "value", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [HEAD]
    assert torch.equal(load_file(tmp_path / HEAD)["weight"], head.weight)
