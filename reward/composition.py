"""The reward that PPO maximises: a weighted sum of the reward model and Python functions, each part kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from data.errors import UserError
from data.functions import load_function
from reward.model import RewardModel, Samples


class RewardSource(Protocol):
    """Anything that gives one number a response; inject your own."""

    def __call__(self, samples: Samples) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ModelReward:
    """The reward model, centred, and divided by its spread on SFT samples where ``standardise`` says so."""

    model: RewardModel
    standardise: bool = False

    def __call__(self, samples: Samples) -> Tensor:
        scores = self.model.score(samples)
        return scores / max(self.model.spread, 1e-6) if self.standardise else scores


class FunctionReward:
    """A Python function ``f(prompts, completions, **kwargs) -> list of numbers`` from the user's file or a package."""

    def __init__(self, source: str, folder: Path) -> None:
        self.function = load_function(source, folder)

    def __call__(self, samples: Samples) -> Tensor:
        values = self.function.call(
            [p.text for p in samples.prompts],
            list(samples.texts),
            finished=list(samples.finished),
            messages=[[m.as_dict() for m in p.messages] for p in samples.prompts],
            categories=[p.category for p in samples.prompts],
        )
        return torch.tensor(values, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Named parts with weights."""

    parts: Sequence[tuple[str, float, RewardSource]]

    def __call__(self, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """``(total (B,), each part's own unweighted scores (B,) by name)``."""
        scores = {name: source(samples) for name, _, source in self.parts}
        for name, values in scores.items():
            if values.shape != (len(samples.texts),):
                raise UserError(f"reward '{name}': {tuple(values.shape)} scores for {len(samples.texts)} responses")
        total = torch.stack([weight * scores[name] for name, weight, _ in self.parts]).sum(0)
        return total, scores


def compose(
    parts: Sequence[tuple[str, float]], model: RewardModel | None, folder: Path, *, standardise: bool = False
) -> WeightedSum:
    """Build the sum from recipe entries ``(source, weight)``.

    Raises:
        UserError: the reward model is asked for and there is none, or a name occurs twice.
    """
    named: list[tuple[str, float, RewardSource]] = []
    for source, weight in parts:
        if source == "model" and model is None:
            raise UserError(
                "ppo.reward: 'model' needs a reward model: run the reward stage or give --input reward=PATH"
            )
        if source in (name for name, _, _ in named):
            raise UserError(f"ppo.reward: '{source}' is listed twice; add the weights up")
        made: RewardSource = (
            ModelReward(model, standardise)
            if source == "model" and model is not None
            else FunctionReward(source, folder)
        )
        named.append((source, weight, made))
    return WeightedSum(named)
