"""Several roles over the same rows in one pass, in which each layer of a divided base is gathered once for all of them.

The rows of all roles go through the modules as one batch; inside a block, where adapters are, each role's own rows are
computed by themselves, with its adapter. So every number has the bits of a pass of one role.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from models.backbone.forward import body_of, hidden_states
from models.backbone.sharding import output_held


class KnownStates(NamedTuple):
    """A role's last hidden states (B, L, D) of rows (B, L), which are known by their tensor itself."""

    ids: Tensor
    states: Tensor


@contextlib.contextmanager
def known_states(base: Any, names: Iterable[str], ids: Tensor, mask: Tensor) -> Iterator[None]:
    """Views of these roles know the states of these rows while the block runs, and the output layer stays whole.

    Nothing is different, nor is anything computed, where this spares no gathering: on a base that is not divided, of
    roles with models of their own, with gradients, and where adapters lie outside the blocks. Neither are rows of as
    many tokens as there are rows of all roles: a block's arguments would not tell which of the two they count.

    Args:
        base: the ``SharedBase``.
        names: of roles.
        ids: (B, L) right-padded.
        mask: (B, L) bool, True = real.
    """
    roles = [name for name in dict.fromkeys(names) if name not in base.copies]
    blocks = blocks_of(base.lm) if base.divided and len(roles) > 1 and not torch.is_grad_enabled() else {}
    inside = sum(len(layers) for layers in blocks.values())
    outside = sum(isinstance(m, BaseTunerLayer) for m in base.lm.modules()) - inside
    if not blocks or outside or ids.shape[1] == len(ids) * len(roles):
        yield
        return
    states = states_of_roles(base.lm, blocks, [base.adapter_of(name) for name in roles], ids, mask)
    base.known = {name: KnownStates(ids, found) for name, found in zip(roles, states, strict=True)}
    try:
        with output_held(base.lm):
            yield
    finally:
        base.known = {}


def blocks_of(lm: Any) -> dict[nn.Module, list[BaseTunerLayer]]:
    """The blocks of a model, with the layers in each that have adapters."""
    lists = [m for m in body_of(lm).modules() if isinstance(m, nn.ModuleList)]
    outer = lists[0] if lists else ()
    return {block: [m for m in block.modules() if isinstance(m, BaseTunerLayer)] for block in outer}


def states_of_roles(
    lm: Any, blocks: dict[nn.Module, list[BaseTunerLayer]], adapters: Sequence[str | None], ids: Tensor, mask: Tensor
) -> list[Tensor]:
    """Last hidden states (B, L, D) with each of the adapters; None is the base without any."""
    count = len(adapters)

    def in_turn(layers: Sequence[BaseTunerLayer], real: Any) -> Any:
        def forward(*given: Any, **more: Any) -> Any:
            found = []
            for i, adapter in enumerate(adapters):
                for layer in layers:
                    select_adapter(layer, adapter)
                found.append(real(*_rows(given, i, count, len(ids)), **_rows(more, i, count, len(ids))))
            return _joined(found)

        return forward

    before = {block: vars(block).get("forward") for block in blocks}
    chosen = {layer: (layer._active_adapter, layer._disable_adapters) for layers in blocks.values() for layer in layers}
    for block, layers in blocks.items():
        block.forward = in_turn(layers, block.forward)
    try:
        return list(hidden_states(lm, ids.repeat(count, 1), mask.repeat(count, 1)).chunk(count))
    finally:
        for block, own in before.items():
            del block.forward
            if own is not None:
                block.forward = own
        for layer, (active, disabled) in chosen.items():
            layer._active_adapter, layer._disable_adapters = active, disabled


def select_adapter(layer: BaseTunerLayer, adapter: str | None) -> None:
    """Compute with one adapter, or with none, whoever asks for gradients."""
    layer._active_adapter = [adapter] if adapter else []
    layer._disable_adapters = adapter is None


def _rows(value: Any, i: int, count: int, rows: int) -> Any:
    """The part of a block's arguments that belongs to the ``i``-th of ``count`` groups of rows."""
    if isinstance(value, Tensor):
        own = value.ndim > 1 and len(value) == count * rows
        return value[i * rows : (i + 1) * rows] if own else value
    if isinstance(value, tuple | list):
        return tuple(_rows(part, i, count, rows) for part in value)
    return {key: _rows(part, i, count, rows) for key, part in value.items()} if isinstance(value, dict) else value


def _joined(found: Sequence[Any]) -> Any:
    """What a block returns, of all groups of rows."""
    first = found[0]
    if isinstance(first, Tensor):
        return torch.cat(list(found))
    return tuple(map(_joined, zip(*found, strict=True))) if isinstance(first, tuple | list) else first
