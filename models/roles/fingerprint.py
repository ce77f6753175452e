"""The base's own tensors under all roles, and one hash of them."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from models.backbone.four_bits import scales_of
from models.backbone.sharding import shards_of, wait_for_passes, whole_of
from models.roles.lora import is_adapters, plain_name


def tensors_of(lm: Any) -> dict[str, Tensor]:
    """Parameters of a base by name, each storage once; see ``SharedBase.base_tensors``."""
    named = [(plain_name(n), p) for n, p in lm.named_parameters() if not is_adapters(n)]
    if shards_of(lm) is not None:
        return {name: p for name, p in named if name not in lm.all_tied_weights_keys}
    seen: set[int] = set()
    out = {}
    for name, p in named:
        if p.data_ptr() not in seen:
            seen.add(p.data_ptr())
            out[name] = p
    return out


def fingerprint_of(lm: Any) -> str:
    """sha256 of a base; see ``SharedBase.base_fingerprint``."""
    digest = hashlib.sha256()
    wait_for_passes(lm)
    for name, p in sorted(tensors_of(lm).items()):
        digest.update(f"{name} {p.dtype} {tuple(p.shape)}\n".encode())
        for part in (whole_of(p), scales_of(p)):
            if part is not None:
                digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
