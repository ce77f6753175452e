"""Best of n: which of several responses to a prompt a reward likes best. It knows nothing of systems or files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from reward.model import Samples
from reward.terms.composition import WeightedSum


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """A reward that chooses; clip and penalty are as in PPO, where it is what PPO optimises."""

    reward: WeightedSum
    clip: float | None = None
    missing_eos_penalty: float = 0.0

    def __call__(self, tries: Sequence[Samples]) -> list[int]:
        """The number of the best try of each prompt; the first of equals.

        Args:
            tries: n times B responses to the same prompts. Parts that are normalised see all n B scores at once.

        Raises:
            UserError, RemoteError: as its parts do.
        """
        each = [self.reward.scores(t) for t in tries]
        total, _ = self.reward.combine({name: torch.cat([scores[name] for scores in each]) for name in each[0]})
        if self.clip is not None:
            total = total.clamp(-self.clip, self.clip)
        unfinished = torch.tensor([not f for t in tries for f in t.finished], dtype=total.dtype)
        total = total - self.missing_eos_penalty * unfinished
        return total.reshape(len(tries), -1).argmax(0).tolist()
