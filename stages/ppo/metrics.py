"""The field's metrics of one PPO update, over real tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from models.backbone.transfers import received
from stages import ppo_math
from stages.ppo.rollout import Rollout, StepRecord

STEP_METRICS = ("loss/policy", "loss/value", "policy/approxkl", "policy/clipfrac", "policy/ratio", "value/clipfrac")


@torch.no_grad()
def rollout_metrics(rollout: Rollout, kl_coef: float) -> dict[str, float]:
    """What a rollout was like. Means of rows are means of per-row sums, so a KL is in nats a response."""
    mask, finished, logprobs, ref_logprobs, entropy, values, returns, raw_scores, scores, *parts = received(
        [
            *(rollout.mask, rollout.finished, rollout.logprobs, rollout.ref_logprobs, rollout.entropy, rollout.values),
            *(rollout.returns, rollout.raw_scores, rollout.scores, *rollout.score_parts.values()),
        ]
    )
    kl = torch.where(mask, logprobs - ref_logprobs, torch.zeros_like(logprobs))
    per_row = {
        "objective/kl": kl.sum(1),
        "objective/scores": raw_scores,
        "objective/scores_squared": raw_scores**2,
        "objective/transformed_scores": scores,
        "objective/rlhf_reward": scores - kl_coef * kl.sum(1),
        "rollout/length": mask.sum(1),
        "rollout/truncated_fraction": ~finished,
        **{f"reward/{name}": v for name, v in zip(rollout.score_parts, parts, strict=True)},
    }
    table = torch.stack([v.double() for v in per_row.values()])
    means = dict(zip(per_row, (table.sum(1) / max(1, table.shape[1])).tolist(), strict=True))
    variance = max(0.0, means.pop("objective/scores_squared") - means["objective/scores"] ** 2)
    sums = torch.stack([mask.sum().double(), ppo_math.masked_sum(entropy, mask).double(), kl.double().sum()])
    tokens, entropy, kl_total = sums.tolist()
    explained = ppo_math.explained_variance(values, returns, mask)
    return means | {
        "objective/scores_std": variance**0.5,
        "objective/entropy": entropy / max(tokens, 1),
        "objective/kl_per_token": kl_total / max(tokens, 1),
        "ppo/value/explained_variance": explained.item(),
        "tokens/response": tokens,
    }


def texts_metrics(counts: Tensor) -> dict[str, float]:
    """What reward models on another base, and classifiers, could not read as it was sampled, as shares.

    Args:
        counts: rows, cut rows, tokens and unknown tokens (4,), as of ``reward.model.TextsRead``.
    """
    rows, cut, tokens, unknown = counts.tolist()
    return {
        "rollout/scored_cut_fraction": cut / max(1.0, rows),
        "rollout/scored_unknown_fraction": unknown / max(1.0, tokens),
    }


def update_metrics(records: list[StepRecord]) -> dict[str, float]:
    """Means over the optimizer steps of one update."""
    count = len(records)
    out = {name: sum(r.metrics[name] for r in records) / count for name in records[0].metrics}
    out["ppo/policy/grad_norm"] = sum(r.policy_grad_norm for r in records) / count
    out["ppo/value/grad_norm"] = sum(r.value_grad_norm for r in records) / count
    return out
