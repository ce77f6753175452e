"""Weights and optimizer state of what is trained, as tensors by name and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def training_tensors(parameters: Mapping[str, Tensor], optimizers: Iterable[Any]) -> dict[str, Tensor]:
    """Weights as ``weights/NAME`` and optimizer state as ``optimizer/KEY/NAME``."""
    out = {f"weights/{n}": p for n, p in parameters.items()}
    names = {id(p): n for n, p in parameters.items()}
    for optimizer in optimizers:
        for p, state in getattr(optimizer, "optimizer", optimizer).state.items():
            out |= {f"optimizer/{key}/{names[id(p)]}": v for key, v in state.items() if isinstance(v, Tensor)}
    return out


@torch.no_grad()
def restore_training(
    parameters: Mapping[str, Tensor], optimizers: Iterable[Any], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of ``training_tensors``: in place, on the devices where the parameters are."""
    for name, p in parameters.items():
        p.copy_(tensors[f"weights/{name}"])
    names = {id(p): n for n, p in parameters.items()}
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, what, name = key.split("/", 2)
            states.setdefault(name, {})[what] = value
    for optimizer in optimizers:
        inner = getattr(optimizer, "optimizer", optimizer)
        packed, flat = inner.state_dict(), [p for g in inner.param_groups for p in g["params"]]
        packed["state"] = {i: states[names[id(p)]] for i, p in enumerate(flat) if names[id(p)] in states}
        inner.load_state_dict(packed)
