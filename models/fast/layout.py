"""Where each token of a pass stands: rows padded on the right for attention, in which rows may begin with one prompt.

Shapes: T tokens of all rows packed, H heads of size d, B rows, L the longest. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.backbone.transfers import sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Tokens that several rows begin with: computed once, and in every one of these rows for attention."""

    source: Tensor  # (B * L,) the token in each cell; any token where there is none
    shared: Tensor  # (P,) tokens that stand in more cells than one
    others: Tensor  # (P, K) their further cells; any cell where there are fewer
    present: Tensor  # (P, K, 1, 1) 1 where there is such a cell, else 0
    first: Tensor  # (trees,) the row of each tree's first branch
    dense: int  # columns that are prompt in every row, to be attended from in these first rows alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each token stands."""

    positions: Tensor  # (T,) for the rotary embedding
    cells: Tensor | None  # (T,) place in the (B * L) grid of attention; None: rows are of one length
    shape: tuple[int, int]  # B, L
    copies: Copies | None = None  # None: every token has one cell
    lengths: tuple[int, ...] | None = None  # (B,) tokens in each row, where they lie on the host

    def grid(self, x: Tensor) -> Tensor:
        """(T, H, d) -> (B, H, L, d), zero but in the one cell that each token is read from."""
        if self.cells is not None:
            x = x.new_zeros((self.shape[0] * self.shape[1], *x.shape[1:])).index_copy_(0, self.cells, x)
        return x.view(*self.shape, *x.shape[1:]).transpose(1, 2)

    def flat(self, x: Tensor) -> Tensor:
        """(B, H, L, d) -> (T, H * d), the transpose of ``grid``."""
        x = x.transpose(1, 2).reshape(self.shape[0] * self.shape[1], -1)
        return x if self.cells is None else x.index_select(0, self.cells)

    def rows_of(self, x: Tensor) -> Tensor:
        """(T, H, d) -> (B, H, L, d), a token in all of its cells; what stands where there is none is finite."""
        if self.copies is None:
            return self.grid(x)
        return x.index_select(0, self.copies.source).view(*self.shape, *x.shape[1:]).transpose(1, 2)

    def gathered(self, x: Tensor) -> Tensor:
        """(B, H, L, d) -> (T, H, d), the sum over a token's cells: the transpose of ``rows_of``.

        The order of the sum is fixed, on a GPU too. ``x`` is zero where there is no token.
        """
        heads, size = x.shape[1], x.shape[3]
        flat = self.flat(x).view(-1, heads, size)
        if self.copies is None:
            return flat
        cells = x.transpose(1, 2).reshape(-1, heads, size)
        more = (cells[self.copies.others] * self.copies.present.to(x.dtype)).sum(1)
        return flat.index_add_(0, self.copies.shared, more)


def layout_of(mask: Tensor, cells: Tensor | None = None) -> Layout:
    """Rows padded on the right: ``mask`` (B, L) True = real; ``cells`` (T,), the flat places of these, where known."""
    rows, width = mask.shape
    if cells is None:
        cells = mask.flatten().nonzero().squeeze(1)
    full = len(cells) == rows * width
    return Layout(
        positions=cells % max(1, width),
        cells=None if full else cells,
        shape=(rows, width),
        lengths=tuple(mask.sum(1).tolist()) if cells.device.type == "cpu" else None,
    )


def branch_layout(trees: Sequence[tuple[int, Sequence[int]]], device: torch.device | str) -> Layout:
    """Tokens of trees packed - a prompt, then its branches - where every branch is a row behind its own prompt.

    Attention has as many rows as there are branches, each causal by itself, so it needs no mask of each row and windows
    count the right neighbours; everything else computes a prompt once. On a CPU, columns that are prompt in every row
    are attended from once as well; a GPU's causal kernels take no mask, and skip what it would hide.

    Args:
        trees: tokens of a prompt, and of each of its branches.
        device: where the layout goes, in one message.
    """
    rows = [(prompt, n) for prompt, branches in trees for n in branches or (0,)]
    width = max((p + n for p, n in rows), default=0)
    further = torch.arange(1, max([1, *(len(branches) for _, branches in trees)]))
    dense = min((prompt for prompt, _ in trees), default=0) if torch.device(device).type == "cpu" else 0
    source = torch.zeros((len(rows), width), dtype=torch.long)
    positions, cells, shared, others, present = ([] for _ in range(5))
    first = []
    at = row = 0
    for prompt, branches in trees:
        number, begin = max(1, len(branches)), row * width
        first.append(row)
        source[row : row + number, :prompt] = torch.arange(at, at + prompt)
        steps = torch.arange(prompt)
        positions.append(steps)
        cells.append(begin + steps)
        shared.append(at + steps)
        others.append(begin + steps[:, None] + further.clamp(max=number - 1) * width)
        present.append((further < number).expand(prompt, -1))
        at += prompt
        for n in branches:
            source[row, prompt : prompt + n] = torch.arange(at, at + n)
            positions.append(torch.arange(prompt, prompt + n))
            cells.append(row * width + positions[-1])
            at, row = at + n, row + 1
        row += not branches
    parts = [torch.cat(p) for p in (positions, cells, shared, others, present)]
    where, places, shared_, others_, present_, source, starts = sent(
        [*parts, source.flatten(), torch.tensor(first, dtype=torch.long)], device
    )
    copies = Copies(
        source=source,
        shared=shared_,
        others=others_,
        present=present_[:, :, None, None],
        first=starts,
        dense=dense,
    )
    lengths = tuple(p + n for p, n in rows) if where.device.type == "cpu" else None
    return Layout(positions=where, cells=places, shape=(len(rows), width), copies=copies, lengths=lengths)
