"""The scalar head of the reward and value roles. It knows nothing of adapters, tokens or losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """One number per hidden state, always in fp32.

    ``attention``, where there is one, weighs the tokens of a response: its score is then a learned mean of the numbers.

    Initialised N(0, 1/sqrt(d+1)) with bias 0, so that untrained scores have unit order (Huang et al. 2024, detail
    "reward head initialisation"; openai/lm-human-preferences).
    """

    def __init__(self, hidden_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32))
        with torch.no_grad():
            self.weight.normal_(0.0, 1.0 / math.sqrt(hidden_size + 1), generator=generator)
        self.attention: nn.Parameter | None = None

    def add_attention(self) -> ScalarHead:
        """Give it a vector that weighs tokens, at first all alike, so that training starts from the plain mean."""
        self.attention = nn.Parameter(torch.zeros_like(self.weight), requires_grad=self.weight.requires_grad)
        return self

    def weights(self, hidden: Tensor, inside: Tensor | None = None) -> Tensor:
        """Share of each token (..., L) in its response, which add up to 1: the softmax of states times ``attention``.

        Args:
            hidden: (..., L, D).
            inside: (..., L), True for the response's tokens; all of them where it is not given.
        """
        assert self.attention is not None
        logits = hidden.to(self.weight.dtype) @ self.attention
        return (logits if inside is None else logits.masked_fill(~inside, float("-inf"))).softmax(-1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) of any dtype to scalars (...) in the head's own precision, fp32."""
        return hidden.to(self.weight.dtype) @ self.weight + self.bias

    def zero_(self) -> ScalarHead:
        """Make every output 0: the safe start of a value function that has not been trained."""
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()
        return self
