"""Hidden states -> log-probabilities and entropy, at response positions only, the vocabulary in chunks of rows.

Rows are ``query + response``, right-padded. Shapes: B rows, L padded length, N response tokens of the whole batch laid
end to end (row by row), D hidden size, V vocabulary. This module knows nothing of roles or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from data.batching import right_pad

CHUNK = 512  # rows of the (rows, V) logits that exist at one time


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Right-padded ``query + response`` rows on one device.

    Right padding needs no special positions: in a causal model nothing real ever attends to it.
    """

    ids: Tensor  # (B, L) token ids
    mask: Tensor  # (B, L) bool, True = real
    query_lengths: Tensor  # (B,) at least 1
    response_lengths: Tensor  # (B,)

    @property
    def lengths(self) -> Tensor:
        return self.query_lengths + self.response_lengths

    def response_positions(self) -> Tensor:
        """Flat indices (N,) into (B*L) of the positions that *predict* each response token (and hold its value)."""
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)[None]
        first = self.query_lengths[:, None] - 1
        inside = (steps >= first) & (steps < first + self.response_lengths[:, None])
        return inside.flatten().nonzero().squeeze(1)

    def targets(self) -> Tensor:
        """The response tokens themselves (N,), in the order of ``response_positions``."""
        return self.ids.flatten()[self.response_positions() + 1]


def make_rows(
    queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int, device: torch.device | str
) -> Rows:
    """Join queries and responses; an empty query is an error, since nothing would predict the first token."""
    if any(not q for q in queries):
        raise ValueError("a query has no token: nothing would predict the first response token")
    ids, mask = right_pad([[*q, *r] for q, r in zip(queries, responses, strict=True)], pad_id)
    return Rows(
        ids=ids.to(device),
        mask=mask.to(device),
        query_lengths=torch.tensor([len(q) for q in queries], device=device),
        response_lengths=torch.tensor([len(r) for r in responses], device=device),
    )


def scatter(flat: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Lay flat per-token values (N,) out as (B, width), zero where a row has ended."""
    steps = torch.arange(width, device=flat.device)[None]
    out = flat.new_zeros((lengths.shape[0], width))
    out[steps < lengths[:, None]] = flat
    return out


def _chunk(hidden: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor], temperature: float) -> Tensor:
    logits = logits_of(hidden)
    # at least fp32 before the temperature and the softmax: bf16 has three digits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    normaliser = torch.logsumexp(logits, dim=-1)
    logprobs = logits.gather(1, targets[:, None]).squeeze(1) - normaliser
    entropy = normaliser - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    return torch.stack([logprobs, entropy])


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies, in nats, of the tempered distribution that sampling draws from.

    Args:
        hidden: (N, D) states that predict each token.
        targets: (N,) the tokens.
        logits_of: maps (n, D) to (n, V); the model's own output layer.
        temperature: divides the logits once, in fp32 - the same for old, new and reference log-probabilities.
        chunk: rows whose logits exist at one time; with gradients the backward pass computes them again.

    Returns:
        ``(logprobs, entropy)``, both (N,), in fp32 (float64 for a float64 model).
    """
    parts = []
    for start in range(0, hidden.shape[0], chunk):
        h, t = hidden[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled() and h.requires_grad:
            parts.append(checkpoint(_chunk, h, t, logits_of, temperature, use_reentrant=False))
        else:
            parts.append(_chunk(h, t, logits_of, temperature))
    both = torch.cat(parts, dim=1) if parts else hidden.new_zeros((2, 0), dtype=torch.float32)
    return both[0], both[1]
