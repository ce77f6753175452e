"""Attention of rows that are padded on the right, where a causal mask keeps padding out of sight.

Shapes: B rows, L the longest, H heads of size d, and H' of keys and values, which groups of heads share. Knows no
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_FLASH = "_scaled_dot_product_flash_attention_for_cpu"


def attend(
    q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None, scale: float | None = None, soft_cap: float | None = None
) -> Tensor:
    """(B, H, L, d) of queries (B, H, L, d), and keys and values (B, H', W, d) that groups of heads share.

    Args:
        sees: (L, W) bool, of W columns of keys; None: every token sees its row up to itself.
        scale: times the scores; None: d ** -0.5.
        soft_cap: scores s become c tanh(s / c) (Gemma 2).
    """
    if soft_cap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=sees, is_causal=sees is None, enable_gqa=q.shape[1] != k.shape[1], scale=scale
        )
    if sees is None:
        sees = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    weights = capped_weights(q @ k.transpose(2, 3), scale or q.shape[-1] ** -0.5, soft_cap)
    return torch.softmax(weights.masked_fill(~sees, -torch.inf), dim=-1).to(v.dtype) @ v


def capped_weights(scores: Tensor, scale: float, soft_cap: float) -> Tensor:
    """Scores with a soft cap, in at least fp32."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return torch.tanh(scores * (scale / soft_cap)) * soft_cap


def better_by_rows(q: Tensor) -> bool:
    """Whether ``attend_by_rows`` is the faster for queries like these: in bf16 on a CPU, whose kernel for that takes
    twice as long backward as the one for fp32."""
    kernels = hasattr(torch.ops.aten, _FLASH) and hasattr(torch.ops.aten, f"{_FLASH}_backward")
    return q.dtype == torch.bfloat16 and q.device.type == "cpu" and kernels


def attend_by_rows(
    q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None, scale: float | None, lengths: Sequence[int]
) -> Tensor:
    """What ``attend`` gives without a soft cap, computed in fp32 a row at a time, without its padding.

    What is kept for backward is in the precision of ``q``.

    Args:
        q: (B, H, M, d), of the last M columns.
        k, v: (B, H', L, d).
        sees: (M, L) bool; None where M is L, and every token sees its row up to itself.
        scale: times the scores; None: d ** -0.5.
        lengths: tokens of each row, from the first column on.

    Returns:
        (B, H, M, d), zero where a row has no token.
    """
    return _ByRows.apply(q, k, v, sees, scale, tuple(lengths))


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sees: Tensor | None,
        scale: float | None,
        lengths: tuple[int, ...],
    ) -> Tensor:
        out, sums = _zeros_for(q), list[Tensor]()
        for row, (queries, keys) in enumerate(_spans(q, k, lengths)):
            if queries:
                parts = _wide(q, k, v, row, queries, keys)
                found, total = getattr(torch.ops.aten, _FLASH)(
                    *parts, 0.0, sees is None, attn_mask=_added(sees, queries, keys), scale=scale
                )
                out[row, :, :queries] = found[0]
                sums.append(total)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.sees, ctx.scale, ctx.lengths = sees, scale, lengths
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, *sums = ctx.saved_tensors
        by_q, by_k, by_v = map(_zeros_for, (q, k, v))
        shared = (k.shape[1], q.shape[1] // k.shape[1])
        for row, (queries, keys) in enumerate(_spans(q, k, ctx.lengths)):
            if not queries:
                continue
            parts = _wide(q, k, v, row, queries, keys)
            found, steep = (x[row : row + 1, :, :queries].float() for x in (out, gradient))
            mask = _added(ctx.sees, queries, keys)
            one_q, one_k, one_v = getattr(torch.ops.aten, f"{_FLASH}_backward")(
                steep, *parts, found, sums.pop(0), 0.0, ctx.sees is None, attn_mask=mask, scale=ctx.scale
            )
            by_q[row, :, :queries] = one_q[0]
            by_k[row, :, :keys] = one_k[0].unflatten(0, shared).sum(1)
            by_v[row, :, :keys] = one_v[0].unflatten(0, shared).sum(1)
        return by_q, by_k, by_v, None, None, None


def _zeros_for(x: Tensor) -> Tensor:
    """Zeros (B, H, L, d) that lie in memory as (B, L, H, d), as products read them."""
    rows, heads, width, size = x.shape
    return x.new_zeros((rows, width, heads, size)).transpose(1, 2)


def _spans(q: Tensor, k: Tensor, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Queries and keys of each row."""
    before = k.shape[2] - q.shape[2]
    return [(max(0, length - before), length) for length in lengths]


def _wide(q: Tensor, k: Tensor, v: Tensor, row: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """A row (1, H, ..., d) in fp32, keys and values once for each head that reads them."""
    each = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x[row : row + 1, :, :keys].float() for x in (k, v))
    if each > 1:
        wide_k, wide_v = wide_k.repeat_interleave(each, dim=1), wide_v.repeat_interleave(each, dim=1)
    return q[row : row + 1, :, :queries].float(), wide_k, wide_v


def _added(sees: Tensor | None, queries: int, keys: int) -> Tensor | None:
    """What is added to a row's scores (queries, keys): -inf where a token is out of sight."""
    if sees is None:
        return None
    seen = sees[:queries, :keys]
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
