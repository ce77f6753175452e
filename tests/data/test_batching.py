"""Padding by lengths, positions, and batches of like length."""

from __future__ import annotations

import pytest
import torch

from data.batching import left_pad, length_grouped, position_ids, right_pad

ROWS = [[5, 2, 6], [0], [], [7, 0]]


def test_masks_come_from_lengths_not_ids():
    ids, mask = left_pad(ROWS, 0)
    assert ids.tolist() == [[5, 2, 6], [0, 0, 0], [0, 0, 0], [0, 7, 0]]
    assert mask.tolist() == [[True] * 3, [False, False, True], [False] * 3, [False, True, True]]
    ids, mask = right_pad(ROWS, 9)
    assert ids.tolist() == [[5, 2, 6], [0, 9, 9], [9, 9, 9], [7, 0, 9]]
    assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3, [True, True, False]]
    assert ids.dtype == torch.long and mask.dtype == torch.bool


def test_positions_ignore_padding_on_either_side():
    _, left = left_pad(ROWS, 0)
    _, right = right_pad(ROWS, 0)
    assert position_ids(left)[left].tolist() == position_ids(right)[right].tolist() == [0, 1, 2, 0, 0, 1]
    assert position_ids(left).min() == 0


def test_no_rows():
    assert left_pad([], 0)[0].shape == (0, 0)


def test_length_groups_hold_every_row_once_and_like_with_like():
    lengths = [(i * 37) % 101 for i in range(530)]
    batches = length_grouped(lengths, 8, torch.Generator().manual_seed(3))
    assert sorted(i for b in batches for i in b) == list(range(530))
    assert sorted(map(len, batches)) == [2] + [8] * 66
    spread = sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / len(batches)
    assert spread < 10  # at random it is about 78
    assert batches == length_grouped(lengths, 8, torch.Generator().manual_seed(3))
    assert batches != length_grouped(lengths, 8, torch.Generator().manual_seed(4))
    with pytest.raises(ValueError, match="at least 1"):
        length_grouped(lengths, 0, torch.Generator())
