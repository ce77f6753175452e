"""One AdamW for both roles: the policy, the value adapter and the value head, each with its own rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stages.settings import PPOConfig


def make_optimizer(
    config: PPOConfig, policy: Mapping[str, nn.Parameter], value: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """AdamW over literal lists of parameters, the head without weight decay.

    Args:
        config: PPO's settings.
        policy: the policy's parameters by name.
        value: the value role's; those of its head begin with ``value.head.``.
    """
    value_rate = config.learning_rate if config.value_learning_rate is None else config.value_learning_rate
    head_rate = value_rate if config.value_head_learning_rate is None else config.value_head_learning_rate
    heads = {n: p for n, p in value.items() if n.startswith("value.head.")}
    adapter = [p for n, p in value.items() if n not in heads]
    groups: list[dict[str, Any]] = [
        {"params": list(policy.values()), "lr": config.learning_rate},
        {"params": list(heads.values()), "lr": head_rate, "weight_decay": 0.0},
    ]
    if adapter:
        groups.insert(1, {"params": adapter, "lr": value_rate})
    return torch.optim.AdamW(groups, eps=config.adam_epsilon, weight_decay=config.weight_decay)
