"""What is gathered as one, and what a base in parts refuses. Several processes: tests/stages/test_base_in_parts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from data.common.errors import UserError
from models.backbone import sharding
from models.backbone.architecture import without_weights
from models.backbone.sharding import (
    check_libraries,
    check_output_layer,
    check_shares,
    output_held,
    shards_of,
    unit_names,
)
from models.roles.own_models import merged_copy
from tests.conftest import make_base, tiny_lm

FREE, KEPT = "free_full_weight", "keep_full_weight"


@pytest.mark.parametrize(
    ("family", "tied", "names"),
    [
        ("llama", False, {"model.embed_tokens", "model.layers.*", "model.norm", "lm_head"}),
        ("llama", True, {"model.embed_tokens", "model.layers.*", "model.norm", "lm_head"}),
        ("gpt2", True, {"transformer.wte", "transformer.wpe", "transformer.h.*", "transformer.ln_f", "lm_head"}),
    ],
)
def test_blocks_embeddings_and_what_else_has_weights_are_units(family, tied, names):
    lm = without_weights(tiny_lm(family, tie_word_embeddings=tied).config)
    plan = unit_names(lm)
    assert set(plan) == names
    assert {name for name, style in plan.items() if style == KEPT} == ({"lm_head"} if tied else set())
    assert set(plan.values()) <= {FREE, KEPT}


def test_every_weight_is_in_one_unit():
    """A part in which no list of blocks and no embedding lies is one unit; loose tensors are their module's."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head, self.body = nn.Linear(4, 9, bias=False), nn.Module()
            self.body.words, self.body.blocks = nn.Embedding(9, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.body.tower = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            self.body.loose = nn.Parameter(torch.zeros(4))

        def get_input_embeddings(self) -> Any:
            return self.body.words

        def get_output_embeddings(self) -> nn.Module:
            return self.lm_head

    assert list(unit_names(Odd())) == ["lm_head", "body.words", "body.blocks.*", "body.tower", "body"]


def test_an_output_layer_that_is_no_product_is_refused():
    lm = tiny_lm()
    check_output_layer(lm, "x")
    lm.lm_head = nn.Sequential(nn.Linear(32, 40))
    with pytest.raises(UserError, match=r"base x: its output layer is a Sequential.*runtime\.sharding: none"):
        check_output_layer(lm, "x")


@pytest.mark.parametrize(("processes", "fewer"), [(2, None), (3, 2), (4, None), (5, 4), (8, 4)])
def test_experts_of_which_a_process_would_have_none_are_refused(processes, fewer):
    """Four experts among three: two, two and none."""
    lm = without_weights(tiny_lm("llama", model_type="mixtral", num_local_experts=4).config)
    if fewer is None:
        return check_shares(lm, "x", processes)
    with pytest.raises(
        UserError, match=rf"base x: {processes} processes cannot share the 4 experts of .*: start {fewer},"
    ):
        check_shares(lm, "x", processes)


def test_a_base_in_parts_is_not_merged_into():
    base = make_base()
    assert shards_of(base.lm) is None and not base.divided
    with output_held(base.lm) as nothing:
        assert nothing is None
    base.lm.shards = object()
    assert base.divided
    with pytest.raises(UserError, match="no weights to merge into"):
        merged_copy(base.lm, None)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_libraries_that_lack_something_are_refused_by_name(package, monkeypatch):
    check_libraries()
    (place, *names), *more = sharding.NEEDED[package]
    monkeypatch.setitem(sharding.NEEDED, package, ((place, *names, "of_tomorrow"), *more))
    with pytest.raises(UserError, match=rf"needs {package} .* or newer, and .*which lacks .*\.of_tomorrow: update"):
        check_libraries()
    monkeypatch.setitem(sharding.NEEDED, package, (("torch.no_such_module", "x"),))
    with pytest.raises(UserError, match=r"lacks torch\.no_such_module"):
        check_libraries()
