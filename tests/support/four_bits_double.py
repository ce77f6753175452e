"""Linear layers in four bits without bitsandbytes, whose parameters take no tensors of the GPU's double.

Blocks of 64 numbers have one scale in fp32, and each number is one of 16 even levels, two to a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BLOCK, LEVELS = 64, 15


@dataclass(frozen=True)
class State:
    """What bitsandbytes keeps beside a packed matrix."""

    shape: torch.Size
    dtype: torch.dtype
    absmax: Tensor


class Linear4bit(nn.Linear):
    """Stands for the layer of that name."""

    def forward(self, input: Tensor) -> Tensor:
        weight: Any = self.weight
        return nn.functional.linear(input, dequantize(weight.data, weight.quant_state), self.bias)


Linear4bit.__module__ = "bitsandbytes.double"


def dequantize(packed: Tensor, state: State) -> Tensor:
    """The matrix again."""
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).view(-1, BLOCK)
    return ((codes.float() * (2 / LEVELS) - 1) * state.absmax[:, None]).view(state.shape).to(state.dtype)


def quantize(lm: nn.Module, names: list[str], device: torch.device) -> None:
    """As ``models.backbone.four_bits.quantize``."""
    for path, module in list(lm.named_modules()):
        if (
            path.rsplit(".", 1)[-1] in names
            and isinstance(module, nn.Linear)
            and any(map(str.isdigit, path.split(".")))
        ):
            setattr(lm.get_submodule(path.rpartition(".")[0]), path.rsplit(".", 1)[-1], _packed(module))
    lm.to(device)


@torch.no_grad()
def _packed(module: nn.Linear) -> Linear4bit:
    made = Linear4bit(module.in_features, module.out_features, bias=False, device="meta")
    blocks = module.weight.detach().float().reshape(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    codes = ((blocks / absmax[:, None] + 1) * (LEVELS / 2)).round().to(torch.uint8).view(-1, 2)
    weight: Any = nn.Parameter(codes[:, 0] << 4 | codes[:, 1], requires_grad=False)
    weight.quant_state = State(module.weight.shape, module.weight.dtype, absmax)
    made.weight = weight
    return made
