"""Log-probabilities by blocks of rows and of the vocabulary: the logits of a block never leave the caches.

Sums over blocks are put together as they come (Milakov & Gimelshein 2018), and so is the gradient of the states, which
needs no second product: d logprob / d state = W[token] - sum of p W, over T. Knows no modules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.backbone.sharding import is_part
from models.fast.matmul import by_kernels, fits, product
from models.fast.products import product_dtype
from models.fast.weights import DTYPES, mixed, untouched

ROWS, WORDS = 512, 1024  # 2 MB of fp32 logits at a time
EXTRAS = ("logit_scale", "logits_scaling", "final_logit_softcapping")


def output_weight(lm: Any) -> Tensor | None:
    """The frozen output layer (V, D) where logits are its product with the states and nothing else."""
    output = lm.get_output_embeddings()
    if type(output) is not nn.Linear or output.bias is not None or not untouched(output):
        return None
    weight = output.weight
    if is_part(weight):
        return None
    extras = any(getattr(lm.config, name, None) for name in EXTRAS)
    fits = weight.dtype in DTYPES and not weight.requires_grad and not mixed(lm)
    return weight.detach() if fits and not extras else None


def block_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Logits (B, V) of a few rows, by a weight as it is or as ``matmul.pack`` gives it.

    With BLAS by blocks of words, whose copies for the product stay in the caches.
    """
    dtype = product_dtype(weight)
    if weight.is_mkldnn:
        return by_kernels(hidden.to(dtype), weight).to(hidden.dtype)
    if weight.device.type != "cpu":
        return (hidden.to(dtype) @ weight.T).to(hidden.dtype)
    if fits(weight):
        return by_kernels(hidden, weight)
    out = hidden.new_empty((len(hidden), len(weight)))
    for start in range(0, len(weight), WORDS):
        words, place = weight[start : start + WORDS], out[:, start : start + WORDS]
        if words.dtype == hidden.dtype:
            torch.mm(hidden, words.T, out=place)
        else:
            place.copy_(hidden.to(dtype) @ words.to(dtype).T)
    return out


def block_logprobs(hidden: Tensor, targets: Tensor, weight: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (with a gradient for ``hidden``) and entropies (without one), both (N,), in nats."""
    if torch.is_grad_enabled() and hidden.requires_grad:
        return _Blocks.apply(hidden, targets, weight, temperature)[:2]
    return token_statistics(hidden, targets, weight, temperature, gradients=False)[:2]


def block_nll(hidden: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of -log p in nats, with a gradient for ``hidden``, and how many tokens are the likeliest."""
    if torch.is_grad_enabled() and hidden.requires_grad:
        logprobs, _, likeliest = _Blocks.apply(hidden, targets, weight, 1.0)
    else:
        logprobs, _, likeliest, _ = token_statistics(hidden, targets, weight, 1.0, gradients=False)
    return -logprobs.sum(), likeliest.sum()


class TokenStatistics(NamedTuple):
    """What is known of N tokens by their states; log-probabilities and entropies in nats."""

    logprobs: Tensor  # (N,)
    entropy: Tensor  # (N,)
    likeliest: Tensor  # (N,) bool: no token has a larger logit
    gradients: Tensor | None  # (N, D) d logprob / d hidden


@torch.profiler.record_function("trivet/logprobs")
@torch.no_grad()
def token_statistics(
    hidden: Tensor, targets: Tensor, weight: Tensor, temperature: float, gradients: bool
) -> TokenStatistics:
    """Everything about N tokens; gradients where they are asked for."""
    parts = [
        _rows(hidden[i : i + ROWS], targets[i : i + ROWS], weight, temperature, gradients)
        for i in range(0, max(1, len(hidden)), ROWS)
    ]
    steep = torch.cat([p.gradients for p in parts if p.gradients is not None]) if gradients else None
    return TokenStatistics(
        logprobs=torch.cat([p.logprobs for p in parts]),
        entropy=torch.cat([p.entropy for p in parts]),
        likeliest=torch.cat([p.likeliest for p in parts]),
        gradients=steep,
    )


def _rows(hidden: Tensor, targets: Tensor, weight: Tensor, temperature: float, gradients: bool) -> TokenStatistics:
    normaliser = hidden.new_full((len(hidden),), -torch.inf)
    largest = normaliser.clone()
    mean, chosen = torch.zeros_like(normaliser), torch.zeros_like(normaliser)  # mean logit; the token's own
    expected = torch.zeros_like(hidden) if gradients else None  # sum of p W over the blocks so far
    multiply = product if len(hidden) == ROWS and fits(weight) else F.linear  # whole blocks alone: few shapes
    dtype = product_dtype(weight)
    states = hidden.to(dtype)
    for start in range(0, len(weight), WORDS):
        words = weight[start : start + WORDS].to(dtype)
        logits = multiply(states, words).to(hidden.dtype)
        if temperature != 1.0:
            logits.div_(temperature)
        at = targets - start
        inside = (at >= 0) & (at < len(words))
        own = logits.gather(1, at.clamp(0, len(words) - 1)[:, None]).squeeze(1)
        chosen = torch.where(inside, own, chosen)
        p = torch.softmax(logits, dim=-1)
        top = logits.amax(-1)
        largest = torch.maximum(largest, top)
        here = top - p.amax(-1).log()  # the largest probability is 1 / sum(exp(l - max))
        total = torch.logaddexp(normaliser, here)
        before, now = torch.exp(normaliser - total), torch.exp(here - total)
        mean = before * mean + now * torch.linalg.vecdot(p, logits)
        if expected is not None:
            expected.mul_(before[:, None]).addcmul_(multiply(p.to(dtype), words.T).to(p.dtype), now[:, None])
        normaliser = total
    gradient = None if expected is None else (weight[targets] - expected).div_(temperature)
    return TokenStatistics(chosen - normaliser, normaliser - mean, chosen >= largest, gradient)


class _Blocks(torch.autograd.Function):
    """The gradient by each state is found in forward and scaled in backward; see ``models.backbone.logprobs``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, entropy, likeliest, gradients = token_statistics(hidden, targets, weight, temperature, gradients=True)
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(entropy, likeliest)
        return logprobs, entropy, likeliest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprobs: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradients,) = ctx.saved_tensors
        return gradients * by_logprobs[:, None], None, None, None
