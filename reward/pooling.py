"""Poolings: a response's hidden states (L, D) to its raw score; the same for many at once, for padded rows (B, L, D) or
for packed states (T, D) of one response after another.

``last`` reads the head at the last real token, the stop token of a finished response (Ouyang et al. 2022); ``mean``
averages it over the response's tokens, which lets each token speak for itself and is easier for very small models;
``learned`` is a weighted mean, by the head's own attention (one query vector; Yang et al. 2016, "Hierarchical
Attention Networks"). An empty response scores 0 by either mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.backbone.logprobs import Rows
from models.backbone.scalar_head import ScalarHead
from models.backbone.transfers import sent


def last(states: Tensor, head: nn.Module) -> Tensor:
    """A response's score () at the last of its states (L, D)."""
    return head(states[-1])


def mean(states: Tensor, head: nn.Module) -> Tensor:
    """The mean () of the head over a response's states (L, D)."""
    return head(states).mean()


def learned(states: Tensor, head: nn.Module) -> Tensor:
    """The mean () of the head over states (L, D), weighted by its attention over them."""
    assert isinstance(head, ScalarHead)
    values = head(states)
    return head.weights(states) @ values


def last_of_padded(hidden: Tensor, head: nn.Module, rows: Rows) -> Tensor:
    """Scores (B,) of rows with states (B, L, D), each at its last real token."""
    index = torch.arange(hidden.shape[0], device=hidden.device)
    return head(hidden[index, rows.lengths - 1])


def mean_of_padded(hidden: Tensor, head: nn.Module, rows: Rows) -> Tensor:
    """Scores (B,) of rows with states (B, L, D): the mean over the response's tokens, 0 of an empty one."""
    values = torch.where(_inside(hidden, rows), head(hidden), 0.0)
    return values.sum(1) / rows.response_lengths.clamp(min=1)


def learned_of_padded(hidden: Tensor, head: nn.Module, rows: Rows) -> Tensor:
    """Scores (B,) of rows with states (B, L, D): the weighted mean over the response's tokens, 0 of an empty one."""
    assert isinstance(head, ScalarHead)
    inside = _inside(hidden, rows)
    values = torch.where(inside, head(hidden), 0.0)
    some = inside | ~inside.any(1, keepdim=True)  # no softmax over nothing
    return (head.weights(hidden, some) * values).sum(1)


def last_of_packed(states: Tensor, head: nn.Module, lengths: Sequence[int]) -> Tensor:
    """Scores (B,) of responses whose states (T, D) stand one after another, ``lengths`` (B) of each."""
    ends = torch.tensor(lengths).cumsum(0) - 1
    (ends,) = sent([ends], states.device)
    return head(states.index_select(0, ends))


def mean_of_packed(states: Tensor, head: nn.Module, lengths: Sequence[int]) -> Tensor:
    """As ``last_of_packed``, the mean over each response."""
    sizes = torch.tensor(lengths)
    inside = torch.arange(max(lengths))[None] < sizes[:, None]
    cells, sizes = sent([inside.flatten().nonzero().squeeze(1), sizes], states.device)
    values = head(states)
    grid = values.new_zeros(inside.numel()).index_copy(0, cells, values)
    return grid.view(inside.shape).sum(1) / sizes.clamp(min=1)


def _inside(hidden: Tensor, rows: Rows) -> Tensor:
    """(B, L) True on the response's tokens."""
    steps = torch.arange(hidden.shape[1], device=hidden.device)[None]
    return (steps >= rows.query_lengths[:, None]) & (steps < rows.lengths[:, None])
