"""Attention a row at a time in fp32, beside float64 and beside torch's own kernels for bf16."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.fast.attention import attend, attend_by_rows, better_by_rows

LENGTHS = (7, 3, 12, 1)


def heads(dtype: torch.dtype, queries: int = 12, shared: int = 2) -> list[torch.Tensor]:
    """Queries, keys and values of four rows, and a gradient; 12 columns, 6 heads in groups of ``6 / shared``."""
    g = torch.Generator().manual_seed(0)
    shapes = [(4, 6, queries, 8), (4, shared, 12, 8), (4, shared, 12, 8), (4, 6, queries, 8)]
    return [torch.randn(shape, generator=g).bfloat16().to(dtype) for shape in shapes]


def with_gradients(attention, parts, steep):
    asked = [x.clone().requires_grad_() for x in parts]
    out = attention(*asked)
    return [out.detach(), *torch.autograd.grad(out, asked, steep)]


def sight(begin: int, window: int | None) -> torch.Tensor:
    back = torch.arange(12)[begin:, None] - torch.arange(12)
    return (back >= 0) & (back < (window or 12))


@pytest.mark.parametrize("shared", [2, 6])
@pytest.mark.parametrize(
    ("begin", "window"), [(0, None), (0, 4), (2, None), (2, 4)], ids=["all", "window", "behind a prompt", "both"]
)
def test_every_row_is_that_of_float64_and_padding_has_no_part_in_it(begin, window, shared):
    sees = None if begin == 0 and window is None else sight(begin, window)
    *parts, steep = heads(torch.bfloat16, 12 - begin, shared)
    for row, length in enumerate(LENGTHS):
        steep[row, :, max(0, length - begin) :] = 0.0  # nothing reads padding
        for x in parts[1:]:
            x[row, :, length:] = torch.nan  # and it is not read
    found = with_gradients(lambda q, k, v: attend_by_rows(q, k, v, sees, 0.3, LENGTHS), parts, steep)
    assert all(x.dtype == torch.bfloat16 and x.isfinite().all() for x in found)
    for row, length in enumerate(LENGTHS):
        queries = max(0, length - begin)
        one = [parts[0][row : row + 1, :, :queries], *(x[row : row + 1, :, :length] for x in parts[1:])]
        seen = None if sees is None else sees[:queries, :length]
        right = with_gradients(
            lambda q, k, v, seen=seen: attend(q, k, v, seen, 0.3),
            [x.double() for x in one],
            steep[row : row + 1, :, :queries].double(),
        ) if queries else [x.double() * 0 for x in (one[0], *one)]  # fmt: skip
        for x, expected, count in zip(found, right, (queries, queries, length, length), strict=True):
            assert_close(x[row : row + 1, :, :count].double(), expected, atol=2e-2, rtol=1e-2)
            assert not x[row, :, count:].any()


def test_no_further_from_float64_than_torchs_kernel_for_bf16():
    *parts, steep = heads(torch.bfloat16)
    right = with_gradients(lambda q, k, v: attend(q, k, v, None), [x.double() for x in parts], steep.double())
    ours = with_gradients(lambda q, k, v: attend_by_rows(q, k, v, None, None, (12,) * 4), parts, steep)
    torchs = with_gradients(lambda q, k, v: attend(q, k, v, None), parts, steep)
    for exact, x, y in zip(right, ours, torchs, strict=True):
        assert (x.double() - exact).abs().mean() <= 1.01 * (y.double() - exact).abs().mean()


def test_only_bf16_on_a_cpu_goes_row_by_row():
    """In fp32 the numbers of a row would be others, in their last places, than those of all rows at once."""
    q = torch.zeros(1, 1, 1, 8)
    assert not better_by_rows(q) and not better_by_rows(q.double())
    assert better_by_rows(q.bfloat16()) and not better_by_rows(q.bfloat16().to("meta"))
