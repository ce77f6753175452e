"""Scores that mean something: the responses whose mean score becomes 0, and a reward model that is shifted to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import generator
from models.sampling.fast import FastEngine
from models.sampling.generate import SamplingParams, generate, sampling_noise
from reward.model import Member, RewardModel, combined
from stages.settings import RewardConfig
from stages.stage import StageContext
from stages.training.ranking_rows import EncodedRanking


def calibration_responses(
    context: StageContext, train: Sequence[EncodedRanking], config: RewardConfig
) -> tuple[list[list[int]], list[list[int]], str]:
    """Queries and responses whose mean score becomes 0: SFT samples where there is an SFT model and prompts, otherwise
    training responses; and which of the two."""
    base, renderer = context.base, context.renderer
    prompts = context.corpus.prompts.train[: config.calibration_samples]
    if "sft" not in base.roles or not prompts:
        chosen = [pair for r in train[: config.calibration_samples] for pair in r.given]
        return [q for q, _ in chosen], [a for _, a in chosen], "training responses"
    queries = [renderer.prompt_ids(p.messages) for p in prompts]
    longest = max(len(a) for r in train for _, a in r.given)
    memory = OOMRetry("SFT samples at once", context.warn_alone)
    progress = context.bar.phase("SFT samples, whose mean score becomes 0", len(queries))
    with base.role("sft") as role, memory.reporting(progress):
        made = generate(
            FastEngine(),
            role,
            queries,
            noise=sampling_noise(len(queries), longest, generator(context.seed, "reward/centre")),
            batch=128,
            params=SamplingParams(
                max_new_tokens=longest,
                temperature=1.0,
                stop_ids=renderer.stop_ids,
                stop_strings=renderer.stop_strings,
                pad_id=renderer.pad_id,
            ),
            memory=memory,
        )
    responses = [renderer.closed(p.messages, ids) for p, ids in zip(prompts, made.ids, strict=True)]
    return queries, responses, "sft samples"


def calibrated(
    context: StageContext,
    config: RewardConfig,
    roles: Sequence[str],
    queries: Sequence[list[int]],
    answers: Sequence[list[int]],
) -> tuple[RewardModel, Tensor]:
    """The trained roles as a reward model whose mean score of these responses is 0, and the scores (float64)."""
    settings: dict[str, Any] = {"base": context.base, "renderer": context.renderer, "pooling": config.pooling}
    settings["max_tokens"] = config.max_tokens

    def moments(raw: Tensor) -> tuple[Tensor, float, float]:
        samples = raw.double()
        mean, std = samples.mean().item(), samples.std().item() if len(samples) > 1 else 1.0
        return samples, mean, std

    members, raw = [], []
    progress = context.bar.phase("scores of what becomes 0", len(queries) * len(roles))
    for role in roles:
        model = RewardModel(role=role, **settings)
        with model.memory.reporting(progress):
            raw.append(model.raw_scores(queries, answers))
        samples, mean, std = moments(raw[-1])
        members.append(Member(role=role, score_mean=mean, score_std=std))
    if len(roles) > 1:
        settings |= {
            "members": tuple(members),
            "combine": config.combine,
            "uncertainty_penalty": config.uncertainty_penalty,
        }
        centred = torch.stack([scores - m.score_mean for scores, m in zip(raw, members, strict=True)])
        samples, mean, std = moments(combined(centred, config.combine, config.uncertainty_penalty))
    return RewardModel(role=roles[0], score_mean=mean, score_std=std, **settings), samples - mean
