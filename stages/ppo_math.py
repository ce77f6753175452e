"""The mathematics of PPO-RLHF: pure functions on tensors, no model, config, device or logger.

Shapes: B rows, T response tokens. Masks are boolean, True = a real response token. Whatever stands in masked slots,
NaN included, changes nothing: it is replaced before any arithmetic, since ``NaN * 0`` is NaN.

Sources: Schulman et al. 2017 (PPO, arXiv 1707.06347), Schulman et al. 2016 (GAE, arXiv 1506.02438), Ziegler et al.
2019 (arXiv 1909.08593), Huang et al. 2024 (arXiv 2403.17031), Schulman 2020 ("Approximating KL divergence").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from models.backbone.transfers import wide

Reduce = Callable[[Tensor], Tensor]
LOG_RATIO_LIMIT = 20.0  # exp(20) is far outside every clip and still finite in fp32


def _clean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def _same(total: Tensor) -> Tensor:
    return total


def response_mask(lengths: Tensor, width: int) -> Tensor:
    """(B, width) mask of the first ``lengths[b]`` tokens: those sampled up to and including the stop token."""
    return torch.arange(width, device=lengths.device)[None] < lengths[:, None]


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over real tokens."""
    return _clean(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum over real tokens divided by ``denominator``, by default their number (0 when there are none)."""
    count = mask.sum().clamp(min=1) if denominator is None else denominator
    return masked_sum(x, mask) / count


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, reduce: Reduce = _same) -> Tensor:
    """Scale to unbiased variance 1 over real tokens, and to mean 0 unless ``shift_mean`` is False (mean kept).

    Args:
        x: (B, T).
        mask: (B, T).
        shift_mean: False for rewards, whose sign matters.
        reduce: sums a tensor over processes, so that statistics are global.

    Returns:
        (B, T), zero in masked slots; zeros (plus the mean) where there are fewer than two tokens or no variance.
    """
    exact = wide(_clean(x, mask))
    count, total = reduce(torch.stack([wide(mask.sum()), exact.sum()]))
    mean = total / count.clamp(min=1)
    centred = torch.where(mask, exact - mean, torch.zeros_like(exact))
    variance = reduce((centred**2).sum()) / (count - 1).clamp(min=1)
    scale = torch.where(variance > 1e-12, variance.clamp(min=1e-12).rsqrt(), torch.zeros_like(variance))
    white = centred * scale + (0.0 if shift_mean else mean)
    return _clean(white, mask).to(x.dtype)


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k2", "k3"] = "k1") -> Tensor:
    """Per-token estimates of KL(policy || reference) from sampled tokens (Schulman 2020).

    k1 = log-ratio (unbiased; the one to use in the reward), k2 = half its square, k3 = exp(-k1) - 1 + k1.
    """
    k1 = logprobs - ref_logprobs
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return 0.5 * k1**2
    if estimator == "k3":
        return torch.expm1(-k1) + k1
    raise ValueError(f"unknown KL estimator '{estimator}': k1, k2 or k3")


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards (B, T): ``-kl_coef * kl`` on every real token, plus the row's score on its last real token.

    The last real token is the stop token of a finished response and the last sampled one otherwise; nothing comes
    after it. A row without tokens gets nothing.

    Args:
        scores: (B,) one number a response.
        kl: (B, T) from :func:`kl_penalty`.
        mask: (B, T).
        kl_coef: weight of the penalty.
    """
    if scores.shape != mask.shape[:1] or kl.shape != mask.shape:
        raise ValueError(
            f"shapes do not fit: scores {tuple(scores.shape)}, kl {tuple(kl.shape)}, mask {tuple(mask.shape)}"
        )
    rewards = -kl_coef * _clean(kl, mask)
    later = torch.flip(torch.cumsum(torch.flip(mask.long(), [1]), 1), [1])  # real tokens from here on
    last = mask & (later == 1)
    return rewards + torch.where(last, scores[:, None].to(rewards.dtype), torch.zeros_like(rewards))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over real tokens.

    The episode ends with the last real token, by stop token or by length limit: nothing is bootstrapped after it. A
    masked token in the middle is passed over, without discount.

    Args:
        rewards: (B, T).
        values: (B, T), ``values[:, t]`` of the state *before* token t.
        mask: (B, T).
        gamma: discount.
        lam: lambda.

    Returns:
        ``(advantages, returns)``, returns = advantages + values; both zero in masked slots.
    """
    rewards, values = _clean(rewards, mask), _clean(values, mask)
    advantages = torch.zeros_like(values)
    running, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, running)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(mask[:, t], running, torch.zeros_like(running))
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate (Schulman et al. 2017, eq. 7): masked mean of ``max(-A r, -A clip(r, 1-clip, 1+clip))``.

    Args:
        logprobs: (B, T) with gradient.
        old_logprobs: (B, T) from before the first update, without gradient.
        advantages: (B, T) without gradient.
        mask: (B, T).
        clip: half-width of the ratio's interval.
        denominator: token count of the whole minibatch over all micro-batches and processes.

    Returns:
        ``(loss, metrics)``: approxkl (k2 of new against old), clipfrac and ratio, each over the same denominator, so
        that micro-batches add up to the minibatch's mean.
    """
    log_ratio = _clean(logprobs, mask) - _clean(old_logprobs, mask)
    ratio = torch.exp(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    advantages = _clean(advantages, mask)
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    loss = masked_mean(torch.maximum(plain, clipped), mask, denominator)
    with torch.no_grad():
        metrics = {
            "approxkl": masked_mean(0.5 * log_ratio**2, mask, denominator),
            "clipfrac": masked_mean((clipped > plain).to(ratio.dtype), mask, denominator),
            "ratio": masked_mean(ratio, mask, denominator),
        }
    return loss, metrics


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float | None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the masked mean of ``max((v - R)^2, (clip(v, v_old +- clip) - R)^2)``; the clip is around the *old value*.

    Args:
        values: (B, T) with gradient.
        old_values: (B, T) from rollout time.
        returns: (B, T) fixed for all epochs.
        mask: (B, T).
        clip: half-width around the old value; None switches it off.
        denominator: as in :func:`policy_loss`.

    Returns:
        ``(loss, {"clipfrac": ...})``.
    """
    values, old_values, returns = (_clean(x, mask) for x in (values, old_values, returns))
    plain = (values - returns) ** 2
    clipped = plain if clip is None else (torch.clamp(values, old_values - clip, old_values + clip) - returns) ** 2
    loss = 0.5 * masked_mean(torch.maximum(plain, clipped), mask, denominator)
    return loss, {"clipfrac": masked_mean((clipped > plain).detach().to(values.dtype), mask, denominator)}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce = _same) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens: 1 for a perfect critic, 0 for a constant one."""

    both = torch.stack([wide(_clean(x, mask)) for x in (returns, returns - values)])
    count = reduce(wide(mask.sum())).clamp(min=1)
    mean = reduce(both.sum((1, 2))) / count
    centred = torch.where(mask, both - mean[:, None, None], torch.zeros_like(both))
    variance, unexplained = reduce((centred**2).sum((1, 2))) / count
    return torch.where(variance > 1e-12, 1.0 - unexplained / variance.clamp(min=1e-12), torch.zeros_like(variance))


def minibatches(rows: int, count: int, generator: torch.Generator) -> Sequence[Tensor]:
    """A fresh permutation of the rows cut into ``count`` equal parts: each row exactly once an epoch."""
    if rows % count:
        raise ValueError(f"{rows} rows do not divide into {count} minibatches")
    return torch.randperm(rows, generator=generator).chunk(count)
