"""Scores of a reward model that are asked for more than once: each row is scored once, and progress is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reward.model import RewardModel

Phase = Callable[[str, int], Callable[[int], None]]
"""Begins a part of so many rows by its name; what it gives is told of each so many rows that are done."""


def silent(name: str, total: int) -> Callable[[int], None]:
    """A phase that nobody sees."""
    return lambda rows: None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredOnce:
    """A reward model that remembers the rows that it has scored.

    ``name`` is what the user is told of the rows that are scored, through ``phase``.
    """

    model: RewardModel
    phase: Phase = silent
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = field(default_factory=dict)

    def score_ids(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], name: str) -> Tensor:
        """Centred scores (B,); rows that are known, or equal to another one, are not scored again.

        Args:
            queries, responses: ids of each row.
            name: of the phase that the user sees.
        """
        keys = [(tuple(q), tuple(a)) for q, a in zip(queries, responses, strict=True)]
        new = [key for key in dict.fromkeys(keys) if key not in self.known]
        if new:
            passes = len(new) * max(1, len(self.model.members))
            with self.model.memory.reporting(self.phase(name, passes)):
                scores = self.model.score_ids([q for q, _ in new], [a for _, a in new])
            self.known.update(zip(new, scores.tolist(), strict=True))
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float32)
