"""States of the layers that no adapter touches, kept for rows that several roles and epochs read.

Below its lowest adapter every role computes the same numbers from the same tokens, and in the layer of that adapter the
same products of queries, keys and values with the frozen weights, which are kept in fp32 alone. Rows are found by their
tokens, so whoever reads them (policy, reference, value, reward) need not say which rows they are, and a row that is not
there is computed, as usual. Kept: tokens x (hidden size + widths of queries, keys and values) numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.batching import right_pad, token_batches
from models.backbone.transfers import sent
from models.fast.layers import base_product, embed, forward, start
from models.fast.layout import layout_of
from models.fast.products import products_of
from models.fast.weights import Decoder

CELLS = 2048  # padded tokens a pass; fixed, so that the same rows have the same bits whenever they are computed again


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCache:
    """What enters layer ``depth`` of one base."""

    depth: int  # at least 1
    embeddings: Tensor  # of the base: which one it is
    states: Tensor  # (T, D) of all rows packed
    product: Tensor | None  # (T, ...) layer ``depth``'s ``base_product`` of them
    places: dict[tuple[int, ...], slice]  # a row's ids -> its states

    def find(self, decoder: Decoder, rows: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor | None] | None:
        """Copies of states (T', D), and of products where they are kept, of rows of ids packed; None unless all are
        here and valid for ``decoder``."""
        same = decoder.embeddings is self.embeddings and decoder.norm.dtype == self.states.dtype
        if not same or decoder.lowest < self.depth:
            return None
        found = [place for place in map(self.places.get, rows) if place is not None]
        if not rows or len(found) < len(rows):
            return None
        product = None if self.product is None else torch.cat([self.product[place] for place in found])
        return torch.cat([self.states[place] for place in found]), product


def sequences_of(ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    """Ids of each of the right-padded rows (B, L)."""
    return [tuple(row[:n]) for row, n in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]


@torch.no_grad()
@torch.profiler.record_function("trivet/prefix layers")
def make_prefix_cache(
    decoder: Decoder, rows: Sequence[Sequence[int]], depth: int, states: Tensor | None = None
) -> PrefixCache:
    """Layers 0 to ``depth`` - 1 of rows of ids, none empty.

    Args:
        decoder: of any role whose adapter begins no lower.
        rows: several may be the same.
        depth: at least 1.
        states: (T, D) that enter layer ``depth``, of all rows packed, where they are known; otherwise they are
            computed, each distinct row once.

    Raises:
        ValueError: an adapter of ``decoder`` lies below ``depth``.
    """
    if not 0 < depth <= decoder.lowest:
        raise ValueError(f"no prefix cache of depth {depth}: the lowest adapter is in layer {decoder.lowest}")
    kept = [tuple(row) for row in rows]
    if states is None:
        kept = list(dict.fromkeys(kept))
        states = prefix_states_of(decoder, kept, depth)
    products = products_of(decoder)
    parts = [base_product(decoder, products, depth, part) for part in states.split(CELLS)]
    kept_parts = [part for part in parts if part is not None]
    product = torch.cat(kept_parts) if kept_parts else None
    places: dict[tuple[int, ...], slice] = {}
    at = 0
    for row in kept:
        places.setdefault(row, slice(at, at + len(row)))
        at += len(row)
    return PrefixCache(depth=depth, embeddings=decoder.embeddings, states=states, product=product, places=places)


@torch.no_grad()
def prefix_states_of(decoder: Decoder, rows: Sequence[Sequence[int]], depth: int) -> Tensor:
    """What enters layer ``depth`` (T, D), of all rows packed."""
    lengths = [len(row) for row in rows]
    states = decoder.norm.new_empty((sum(lengths), decoder.embeddings.shape[1]))
    parts = states.split(lengths)
    for batch in token_batches(lengths, CELLS):
        ids, mask = right_pad([rows[i] for i in batch], 0)
        cells = mask.flatten().nonzero().squeeze(1)
        ids, cells = sent([ids.flatten()[cells], cells], states.device)
        run, x = start(decoder, layout_of(mask, cells)), embed(decoder, ids)
        for index in range(depth):
            x = forward(run, index, x, None, None)
        for i, part in zip(batch, x.split([lengths[i] for i in batch]), strict=True):
            parts[i].copy_(part)
    return states


def best_depth(lowest: Sequence[tuple[int, int]]) -> int:
    """The depth that saves most: ``lowest`` are each role's lowest layer with an adapter, and its passes."""
    return max((depth for depth, _ in lowest), key=lambda d: d * sum(n for at, n in lowest if at >= d), default=0)
