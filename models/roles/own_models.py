"""Roles with weights of their own: copies of the base, with an adapter merged or not, whole or of what is trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from data.common.errors import UserError
from models.backbone.four_bits import is_packed
from models.backbone.sharding import shards_of
from models.backbone.soft_prompts import remove_prompts
from models.roles.embeddings import unwrap
from models.roles.lora import is_adapters, plain_name


def merged_copy(lm: Any, adapter: str | None, own: set[str] | None = None) -> Any:
    """A copy of the base in at least fp32, without adapters; with ``adapter`` merged into its weights.

    Merged in fp32: in bf16 the sum would swallow most of what a small adapter adds. With ``own`` only the tensors of
    these names are copied, and all others are the base's.
    """
    if any(map(is_packed, lm.modules())):
        raise UserError("a base in four bits has no weights to merge into: load it without runtime.quantize")
    if shards_of(lm) is not None:
        raise UserError("a base in parts has no weights to merge into: load it in one process")
    made = copied(lm, own)
    remove_prompts(made)
    unwrap(made, adapter)
    for name, module in list(made.named_modules()):
        if isinstance(module, BaseTunerLayer):
            if adapter is not None:
                module.merge(adapter_names=[adapter])
            parent, _, last = name.rpartition(".")
            setattr(made.get_submodule(parent), last, module.get_base_layer())
    return made


def copied(lm: Any, own: set[str] | None) -> Any:
    """A copy of a model in at least fp32; with ``own`` of the tensors of these names, and all others are shared."""
    if own is None:
        made = copy.deepcopy(lm)
        return made.to(torch.promote_types(made.dtype, torch.float32))
    made = copy.deepcopy(lm, {id(p): p for name, p in lm.named_parameters() if plain_name(name) not in own})
    for name, p in made.named_parameters():
        if plain_name(name) in own:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    return made


def delta_of(lm: Any, name: str, adapter: str | None) -> Tensor | None:
    """What an adapter adds to a tensor of the base, by its name without adapters; None where that is nothing."""
    module, _, last = name.rpartition(".")
    found = lm.get_submodule(module) if adapter is not None and last == "weight" else None
    layer: Any = found if isinstance(found, BaseTunerLayer) else None
    if layer is None or adapter not in layer.lora_A:
        return None
    return layer.get_delta_weight(adapter).detach().float()


def share_equal(base: Any, lm: Any) -> None:
    """Put the base's own tensors where a stored model has the same: they are in memory once."""
    named = base.named_parameters(remove_duplicate=False)
    there = {plain_name(name): p for name, p in named if not is_adapters(name)}
    for name, p in list(lm.named_parameters(remove_duplicate=False)):
        own = there.get(name)
        if own is not None and own.shape == p.shape and torch.equal(own.to(p.dtype), p):
            _put(lm, name, own)


def unshare(base: Any, lm: Any) -> None:
    """Give a model tensors of its own, in at least fp32, where it has the base's; tied ones stay tied."""
    there, made = {id(p) for p in base.parameters()}, dict[int, nn.Parameter]()
    for name, p in list(lm.named_parameters(remove_duplicate=False)):
        if id(p) in there:
            own = p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            _put(lm, name, made.setdefault(id(p), nn.Parameter(own, requires_grad=False)))


def _put(lm: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Make a tensor of this name a parameter of the model."""
    module, _, last = name.rpartition(".")
    setattr(lm.get_submodule(module), last, parameter)
