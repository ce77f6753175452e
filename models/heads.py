"""The scalar head of the reward and value roles. It knows nothing of adapters, tokens or losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """One number per hidden state, always in fp32.

    Initialised N(0, 1/sqrt(d+1)) with bias 0, so that untrained scores have unit order (Huang et al. 2024, detail
    "reward head initialisation"; openai/lm-human-preferences).
    """

    def __init__(self, hidden_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32))
        with torch.no_grad():
            self.weight.normal_(0.0, 1.0 / math.sqrt(hidden_size + 1), generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) of any dtype to scalars (...) in the head's own precision, fp32."""
        return hidden.to(self.weight.dtype) @ self.weight + self.bias

    def zero_(self) -> ScalarHead:
        """Make every output 0: the safe start of a value function that has not been trained."""
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()
        return self
