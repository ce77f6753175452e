"""Rows of ids to padded tensors, and batches of length-bucketed rows.

Masks come from the rows' lengths, never from ids: the padding id may be a real token. Knows nothing of text or models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad at the front, for queries that are continued.

    Returns:
        ids (B, L) int64 and mask (B, L) bool, True = a real token; L is the longest row's length.
    """
    return _pad(rows, pad_id, left=True)


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad at the end. Returns ids (B, L) int64 and mask (B, L) bool, True = a real token."""
    return _pad(rows, pad_id, left=False)


def _pad(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        if len(row):
            where = slice(longest - len(row), longest) if left else slice(0, len(row))
            ids[i, where] = torch.as_tensor(row, dtype=torch.long)
            mask[i, where] = True
    return ids, mask


def length_bucketed(lengths: Sequence[int], worth: int) -> list[list[int]]:
    """Every index once, longest first, in groups: a cut is made where it saves at least ``worth`` padded cells.

    Cuts go where they save most, then each part is cut again. ``worth`` is what one more forward pass costs.
    """

    def cut(rows: list[int]) -> list[list[int]]:
        saved = [(lengths[rows[0]] - lengths[r]) * (len(rows) - i) for i, r in enumerate(rows)]
        best = max(range(len(rows)), key=saved.__getitem__, default=0)
        return [rows] if saved[best] < worth or best == 0 else [*cut(rows[:best]), *cut(rows[best:])]

    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return cut(order) if order else []


def token_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Every index once, longest first, in batches of at most ``tokens`` padded cells, or of one row."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
