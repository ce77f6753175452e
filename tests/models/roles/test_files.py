"""A role's files are read without a base, and say all that a base needs to take them in."""

from __future__ import annotations

import pytest
import torch

from data.common.errors import UserError
from models.backbone.settings import AdapterConfig
from models.roles.export import save_role
from models.roles.files import HEAD, read_role
from tests.conftest import make_base


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
