"""Between host and device: several tensors in one message, and as much precision as a device computes well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Integer tensors of the CPU as int64 ones on ``device``, in one message that the host does not wait for."""
    device = torch.device(device)
    if device.type == "cpu":
        return [t.long() for t in tensors]
    whole = torch.cat([t.long().flatten() for t in tensors])
    if device.type == "cuda":
        whole = whole.pin_memory()
    parts = whole.to(device, non_blocking=True).split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def parked(x: Tensor) -> Tensor:
    """A copy in pinned memory of the host, on its way there; of a CPU's tensor the tensor itself."""
    if x.device.type == "cpu":
        return x
    return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)


def received(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of fp32 numbers or truth values on the CPU, in one message; those of a CPU themselves."""
    if all(t.device.type == "cpu" for t in tensors):
        return list(tensors)
    whole = torch.cat([t.float().flatten() for t in tensors]).cpu()
    parts = whole.split([t.numel() for t in tensors])
    return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]


def wide(x: Tensor) -> Tensor:
    """``x`` in float64 on a CPU, and in fp32 elsewhere: GPUs compute float64 slowly, and Apple's not at all."""
    return x.double() if x.device.type == "cpu" else x.float()
