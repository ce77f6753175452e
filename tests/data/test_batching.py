"""Padding by lengths, and length-bucketed batches."""

from __future__ import annotations

import torch

from data.batching import left_pad, length_bucketed, right_pad, token_batches

ROWS = [[5, 2, 6], [0], [], [7, 0]]


def test_masks_come_from_lengths_not_ids():
    ids, mask = left_pad(ROWS, 0)
    assert ids.tolist() == [[5, 2, 6], [0, 0, 0], [0, 0, 0], [0, 7, 0]]
    assert mask.tolist() == [[True] * 3, [False, False, True], [False] * 3, [False, True, True]]
    ids, mask = right_pad(ROWS, 9)
    assert ids.tolist() == [[5, 2, 6], [0, 9, 9], [9, 9, 9], [7, 0, 9]]
    assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3, [True, True, False]]
    assert ids.dtype == torch.long and mask.dtype == torch.bool


def test_no_rows():
    assert left_pad([], 0)[0].shape == (0, 0)


def test_groups_hold_every_row_once_and_a_cut_saves_what_it_costs():
    lengths = [3, 100, 98, 4, 5, 97]
    assert length_bucketed(lengths, 50) == [[1, 2, 5], [4, 3, 0]]  # one cut saves (100 - 5) * 3 cells, the next saves 6
    assert length_bucketed(lengths, 1000) == [[1, 2, 5, 4, 3, 0]]
    assert length_bucketed([], 1) == []


def test_batches_of_tokens_hold_every_row_once_and_stay_below_the_limit():
    assert token_batches([4, 9, 2, 4], 8) == [[1], [0, 3], [2]]
    assert token_batches([], 8) == []
