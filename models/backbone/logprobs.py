"""Hidden states -> log-probabilities and entropy, at response positions only, the vocabulary in chunks of rows.

Rows are ``query + response``, right-padded. Shapes: B rows, L padded length, N response tokens of the whole batch
packed (row by row), D hidden size, V vocabulary. This module knows nothing of roles or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from data.batching import right_pad
from models.backbone.transfers import sent

CHUNK = 256  # rows of the (rows, V) logits that exist at one time: fewer slow the products, more leave the caches
LogitsOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What is known of right-padded rows where they are made, so that no pass has to ask the device for it.

    The tensors lie on the rows' device.
    """

    sequences: Sequence[tuple[int, ...]]  # each row's ids
    cells: Tensor  # (T,) flat places in (B * L) of all real tokens
    predicting: Tensor  # (N,) flat places of those that predict a response token
    numbers: Tensor  # (B,) whatever the caller numbers rows by


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Right-padded ``query + response`` rows on one device.

    Right padding needs no special positions: in a causal model nothing real ever attends to it.
    """

    ids: Tensor  # (B, L) token ids
    mask: Tensor  # (B, L) bool, True = real
    query_lengths: Tensor  # (B,) at least 1
    response_lengths: Tensor  # (B,)
    packing: Packing | None = None

    @property
    def lengths(self) -> Tensor:
        """(B,) real tokens."""
        return self.query_lengths + self.response_lengths

    @property
    def numbers(self) -> Tensor:
        """(B,) of the rows, as the caller of ``make_rows`` counts them."""
        if self.packing is None:
            return torch.arange(len(self.ids), device=self.ids.device)
        return self.packing.numbers

    def response_positions(self) -> Tensor:
        """Flat indices (N,) into (B*L) of the positions that *predict* each response token (and hold its value)."""
        if self.packing is not None:
            return self.packing.predicting
        steps = torch.arange(self.ids.shape[1], device=self.ids.device)[None]
        first = self.query_lengths[:, None] - 1
        inside = (steps >= first) & (steps < first + self.response_lengths[:, None])
        return inside.flatten().nonzero().squeeze(1)

    def targets(self) -> Tensor:
        """The response tokens themselves (N,), in the order of ``response_positions``."""
        return self.ids.flatten()[self.response_positions() + 1]


def make_rows(
    queries: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str,
    numbers: Sequence[int] | None = None,
) -> Rows:
    """Join queries and responses; an empty query is an error, since nothing would predict the first token.

    ``numbers``: of the rows, kept with them; by default they are counted from 0.
    """
    if any(not q for q in queries):
        raise ValueError("a query has no token: nothing would predict the first response token")
    sequences = [(*q, *r) for q, r in zip(queries, responses, strict=True)]
    ids, mask = right_pad(sequences, pad_id)
    on_host = Rows(
        ids=ids,
        mask=mask,
        query_lengths=torch.tensor([len(q) for q in queries], dtype=torch.long),
        response_lengths=torch.tensor([len(r) for r in responses], dtype=torch.long),
    )
    places = [mask.flatten().nonzero().squeeze(1), on_host.response_positions()]
    order = torch.tensor(list(range(len(ids)) if numbers is None else numbers), dtype=torch.long)
    there = sent([ids, on_host.query_lengths, on_host.response_lengths, *places, order], device)
    ids, query_lengths, response_lengths, cells, predicting, order = there
    packing = Packing(sequences=sequences, cells=cells, predicting=predicting, numbers=order)
    steps = torch.arange(ids.shape[1], device=device)
    return Rows(
        ids=ids,
        mask=steps < (query_lengths + response_lengths)[:, None],
        query_lengths=query_lengths,
        response_lengths=response_lengths,
        packing=packing,
    )


def scatter(flat: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Scatter flat per-token values (N,) to (B, width), zero where a row has ended; N is the sum of the lengths."""
    rows = torch.arange(len(lengths), device=flat.device).repeat_interleave(lengths, output_size=len(flat))
    first = lengths.cumsum(0) - lengths
    cells = rows * width + torch.arange(len(flat), device=flat.device) - first[rows]
    return flat.new_zeros(len(lengths) * width).index_copy(0, cells, flat).view(len(lengths), width)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """At least fp32 before the temperature and the softmax: bf16 has three digits."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits / temperature


def _statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (n,), entropies (n,) and the softmax (n, V) of tempered logits (n, V).

    The largest probability is 1 / sum(exp(l - max)), so the normaliser costs no exponentials of its own.
    """
    probabilities = torch.softmax(logits, dim=-1)
    normaliser = logits.amax(-1) - probabilities.amax(-1).log()
    logprobs = logits.gather(1, targets[:, None]).squeeze(1) - normaliser
    entropy = normaliser - torch.linalg.vecdot(probabilities, logits)
    return logprobs, entropy, probabilities


def _chunk(hidden: Tensor, targets: Tensor, logits_of: LogitsOf, temperature: float) -> Tensor:
    return torch.stack(_statistics(_tempered(logits_of(hidden), temperature), targets)[:2])


class _Direct(torch.autograd.Function):
    """Log-probabilities whose gradient by each hidden state is found in the forward pass, chunk by chunk.

    Rows do not depend on each other, so d logprob / d hidden is one vector a row, (N, D), which backward scales: the
    logits are computed once and never kept. Exact only while the output layer itself is frozen.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, targets: Tensor, logits_of: LogitsOf, temperature: float, chunk: int, entropic: bool
    ) -> tuple[Tensor, Tensor]:
        values, logprob_gradients, entropy_gradients = (
            [],
            torch.empty_like(hidden),
            torch.empty_like(hidden) if entropic else None,
        )
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            h = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                raw = logits_of(h)
            logits = _tempered(raw.detach(), temperature)
            logprobs, entropy, p = _statistics(logits, targets[part])
            values.append(torch.stack([logprobs, entropy]))
            if entropy_gradients is not None:  # d entropy / d logit = p (sum(p l) - l)
                mean = torch.linalg.vecdot(p, logits)[:, None]
                logit_gradient = (p * (mean - logits)).div_(temperature).to(raw.dtype)
                entropy_gradients[part] = torch.autograd.grad(raw, h, logit_gradient, retain_graph=True)[0]
            p.neg_().scatter_add_(1, targets[part, None], torch.ones_like(logprobs)[:, None])
            logprob_gradients[part] = torch.autograd.grad(raw, h, p.div_(temperature).to(raw.dtype))[0]
        ctx.save_for_backward(logprob_gradients, entropy_gradients)
        logprobs, entropy = torch.cat(values, dim=1)
        if not entropic:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprobs: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logprob_gradients, entropy_gradients = ctx.saved_tensors
        out = logprob_gradients * by_logprobs[:, None].to(logprob_gradients.dtype)
        if entropy_gradients is not None:
            out += entropy_gradients * by_entropy[:, None].to(entropy_gradients.dtype)
        return out, None, None, None, None, None


def head_is_frozen(hidden: Tensor, logits_of: LogitsOf) -> bool:
    """Whether no tensor of the output layer that ``logits_of`` now reads asks for a gradient."""
    with torch.enable_grad():
        return not logits_of(hidden[:0].detach()).requires_grad


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    logits_of: LogitsOf,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies, in nats, of the tempered distribution that tokens are sampled from.

    Args:
        hidden: (N, D) states that predict each token.
        targets: (N,) the tokens.
        logits_of: maps (n, D) to (n, V); the model's own output layer.
        temperature: divides the logits once, in fp32 - the same for old, new and reference log-probabilities.
        chunk: rows whose logits exist at one time. With gradients and a frozen output layer they are computed once;
            an output layer that is trained itself is computed again in the backward pass.
        entropy_gradient: False where entropy is only recorded, which saves a product with the output layer.

    Returns:
        ``(logprobs, entropy)``, both (N,), in fp32 (float64 for a float64 model).
    """
    if hidden.shape[0] == 0:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        return empty, empty.clone()
    training = torch.is_grad_enabled()
    if training and hidden.requires_grad and head_is_frozen(hidden, logits_of):
        return _Direct.apply(hidden, targets, logits_of, temperature, chunk, entropy_gradient)
    parts = []
    for start in range(0, hidden.shape[0], chunk):
        h, t = hidden[start : start + chunk], targets[start : start + chunk]
        if training and h.requires_grad:
            parts.append(checkpoint(_chunk, h, t, logits_of, temperature, use_reentrant=False))
        else:
            parts.append(_chunk(h, t, logits_of, temperature))
    logprobs, entropy = torch.cat(parts, dim=1)
    return logprobs, entropy if entropy_gradient else entropy.detach()
