"""A copy of a divided model whose weights are kept in fp32, in parts as well."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone.architecture import without_weights
from models.backbone.forward import check_logit_path, switch_off_dropout
from models.backbone.sharding import is_part, whole_of
from models.backbone.trained_shards import TrainedShards, rows_of


def divided_copy(lm: Any, base_dtype: torch.dtype, added: Callable[[str], Tensor | None] = lambda name: None) -> Any:
    """A copy of a divided model with fp32 weights, to be trained or not; all processes call it at the same place.

    No process holds more than its part, and a matrix of what is ``added``. Where the base is bf16 products are made in
    bf16, as those of a whole copy (``models.backbone.forward.precision``): the matrices of its blocks are gathered in
    bf16, and their gradients added up in fp32. Its blocks' vectors (norms, biases) are then whole in every process,
    since one gathered layer has one precision, and norms are computed in fp32.

    Args:
        lm: the model, perhaps with adapters on it.
        base_dtype: of the base.
        added: what is added to the whole tensor of that name; None: nothing.
    """
    half = base_dtype == torch.bfloat16
    shards, processes = lm.shards, lm.shards.processes
    shards.gathers.meet()
    sources = {_plain(n): p for n, p in lm.named_parameters() if ".lora_" not in n}
    made = without_weights(copy.deepcopy(lm.config)).to(torch.float32).requires_grad_(False)
    tied = made.get_output_embeddings().weight is made.get_input_embeddings().weight
    _divide(made, lm, tied, half, next(p.device_mesh for p in sources.values() if is_part(p)))
    made.to_empty(device=next(iter(sources.values())).device)
    if tied:
        made.get_output_embeddings().weight = made.get_input_embeddings().weight
    buffers = {_plain(n): b for n, b in lm.named_buffers()}
    with torch.no_grad():
        for name, p in made.named_parameters():
            own = p.to_local() if is_part(p) else p
            own.copy_(sources[name].to_local() if is_part(p) else whole_of(sources[name]))
            if (more := added(name)) is not None:
                own.add_(rows_of(more, processes) if is_part(p) else more)
        for name, b in made.named_buffers():
            b.copy_(buffers[name])
    made.eval()
    switch_off_dropout(made)
    made.config, made.generation_config = copy.deepcopy(lm.config), copy.deepcopy(lm.generation_config)
    made.name_or_path = lm.name_or_path
    made.compute_dtype = torch.bfloat16 if half else None
    made.shards = TrainedShards(made, processes)
    if tied:
        made.shards.gather_for(made.get_input_embeddings())
    check_logit_path(made, made.name_or_path)  # FSDP learns at the first pass which module is the root
    return made


def _divide(made: Any, lm: Any, tied: bool, half: bool, mesh: Any) -> None:
    """Divide a model without weights in the units of another."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    # what autocast would round comes rounded; embeddings and the norm behind the blocks do not, as in a whole copy
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    rounded = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if half else plain
    shared = {id(made.get_output_embeddings()), id(made.get_input_embeddings())} if tied else set()
    whole: set[nn.Parameter] = set()
    for name, unit in lm.named_modules():
        if not name or not isinstance(unit, FSDPModule):
            continue
        own = made.get_submodule(_plain(name))
        block = isinstance(made.get_submodule(_plain(name).rpartition(".")[0]), nn.ModuleList)
        if block and half:
            whole |= {p for p in own.parameters() if p.ndim < 2}
        policy = rounded if block or own is made.get_output_embeddings() else plain
        if id(own) not in shared:
            fully_shard(own, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=whole)
    fully_shard(made, mesh=mesh, reshard_after_forward=True, mp_policy=plain, ignored_params=whole)


def _plain(name: str) -> str:
    """A name in a model that has no adapters."""
    return name.replace(".base_layer", "")
