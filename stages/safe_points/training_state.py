"""Weights and optimizer state of what is trained, as tensors by name and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from models.backbone.trained_shards import own_tensor, whole_tensor


def training_tensors(parameters: Mapping[str, Tensor], optimizers: Iterable[Any]) -> dict[str, Tensor]:
    """Weights as ``weights/NAME`` and optimizer state as ``optimizer/KEY/NAME``; all processes call it.

    Those that processes hold in parts are whole in the main one, which writes them.
    """
    out = {f"weights/{n}": whole_tensor(p, p) for n, p in parameters.items()}
    for optimizer in optimizers:
        states = getattr(optimizer, "optimizer", optimizer).state
        for name, p in parameters.items():  # in one order in all processes
            found = {key: v for key, v in states.get(p, {}).items() if isinstance(v, Tensor)}
            out |= {f"optimizer/{key}/{name}": whole_tensor(p, v) for key, v in found.items()}
    return out


@torch.no_grad()
def restore_training(
    parameters: Mapping[str, Tensor], optimizers: Iterable[Any], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of ``training_tensors``: in place, on the devices where the parameters are."""
    for name, p in parameters.items():
        p.copy_(own_tensor(p, tensors[f"weights/{name}"]))
    names = {id(p): n for n, p in parameters.items()}
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, what, name = key.split("/", 2)
            states.setdefault(name, {})[what] = own_tensor(parameters[name], value) if name in parameters else value
    for optimizer in optimizers:
        inner = getattr(optimizer, "optimizer", optimizer)
        packed, flat = inner.state_dict(), [p for g in inner.param_groups for p in g["params"]]
        packed["state"] = {i: states[names[id(p)]] for i, p in enumerate(flat) if names[id(p)] in states}
        inner.load_state_dict(packed)
