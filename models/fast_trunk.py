"""States of the layers that no adapter touches, kept for rows that several roles and epochs read.

Below its lowest adapter every role computes the same numbers from the same tokens. Rows are found by their tokens, so
whoever reads them (policy, reference, value, reward) need not say which rows they are, and a row that is not there is
computed as ever. Kept: tokens x hidden size numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.batching import right_pad, token_batches
from models.fast_layers import embed, forward, layout_of, start
from models.fast_weights import Decoder

CELLS = 2048  # padded tokens a pass; fixed, so that the same rows have the same bits whenever they are computed again


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """What enters layer ``depth`` of one base."""

    depth: int  # at least 1
    embeddings: Tensor  # of the base: which one it is
    states: Tensor  # (T, D) of all rows end to end
    places: dict[tuple[int, ...], slice]  # a row's ids -> its states

    def find(self, decoder: Decoder, ids: Tensor, mask: Tensor) -> Tensor | None:
        """States (T', D) of right-padded rows (B, L) laid end to end; None unless all are here and valid for it."""
        same = decoder.embeddings is self.embeddings and decoder.norm.dtype == self.states.dtype
        if not same or decoder.lowest < self.depth:
            return None
        found = []
        for row, length in zip(ids.tolist(), mask.sum(1).tolist(), strict=True):
            place = self.places.get(tuple(row[:length]))
            if place is None:
                return None
            found.append(self.states[place])
        return torch.cat(found) if found else None


@torch.no_grad()
@torch.profiler.record_function("trivet/lower layers")
def make_trunk(decoder: Decoder, rows: Sequence[Sequence[int]], depth: int) -> Trunk:
    """Compute layers 0 to ``depth`` - 1 of rows of ids, none empty; each distinct row once.

    Raises:
        ValueError: an adapter of ``decoder`` lies below ``depth``.
    """
    if not 0 < depth <= decoder.lowest:
        raise ValueError(f"no trunk of depth {depth}: the lowest adapter is in layer {decoder.lowest}")
    distinct = list(dict.fromkeys(tuple(row) for row in rows))
    states = decoder.norm.new_empty((sum(map(len, distinct)), decoder.embeddings.shape[1]))
    places: dict[tuple[int, ...], slice] = {}
    at = 0
    for row in distinct:
        places[row] = slice(at, at + len(row))
        at += len(row)
    for batch in token_batches([len(row) for row in distinct], CELLS):
        ids, mask = (t.to(states.device) for t in right_pad([distinct[i] for i in batch], 0))
        run, x = start(decoder, layout_of(mask)), embed(decoder, ids[mask])
        for index in range(depth):
            x = forward(run, index, x, None, None)
        for i, part in zip(batch, x.split(mask.sum(1).tolist()), strict=True):
            states[places[distinct[i]]] = part
    return Trunk(depth=depth, embeddings=decoder.embeddings, states=states, places=places)


def best_depth(lowest: Sequence[tuple[int, int]]) -> int:
    """The depth that saves most: ``lowest`` are each role's lowest layer with an adapter, and its passes."""
    return max((depth for depth, _ in lowest), key=lambda d: d * sum(n for at, n in lowest if at >= d), default=0)
