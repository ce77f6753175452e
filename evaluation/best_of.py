"""Best of n: which of several responses to a prompt a reward likes best. It knows nothing of systems or files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from reward.model import RewardModel, Samples
from reward.terms.composition import ModelReward, WeightedSum


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """A reward that chooses; clip and penalty are as in PPO, where it is what PPO optimises."""

    reward: WeightedSum
    clip: float | None = None
    missing_eos_penalty: float = 0.0

    def asks(self, model: RewardModel) -> bool:
        """Whether a part of the reward is this model."""
        return any(isinstance(source, ModelReward) and source.model is model for _, _, source in self.reward.parts)

    def __call__(self, tries: Sequence[Samples], done: Callable[[int], None] = lambda rows: None) -> list[int]:
        """The number of the best try of each prompt; the first of equals.

        Args:
            tries: n times B responses to the same prompts. Parts that are normalised see all n B scores at once.
            done: is told of so many more responses that all parts have scored.

        Raises:
            UserError, RemoteError: as its parts do.
        """
        each = []
        for samples in tries:
            each.append(self.reward.scores(samples))
            done(len(samples.texts))
        total, _ = self.reward.combine({name: torch.cat([scores[name] for scores in each]) for name in each[0]})
        if self.clip is not None:
            total = total.clamp(-self.clip, self.clip)
        unfinished = torch.tensor([not f for t in tries for f in t.finished], dtype=total.dtype)
        total = total - self.missing_eos_penalty * unfinished
        return total.reshape(len(tries), -1).argmax(0).tolist()
