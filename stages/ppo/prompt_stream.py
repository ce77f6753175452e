"""Which prompts each rollout asks: an endless stream of permutations, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from data.records import Prompt
from models.backbone.seeds import generator


class PromptStream:
    """Each prompt once before any comes again. There is no state to save: a position says it all.

    Args:
        prompts: what may be asked.
        queries: their token ids, in the same order.
        seed: of the permutations.
    """

    def __init__(self, prompts: Sequence[Prompt], queries: Sequence[list[int]], seed: int) -> None:
        self.prompts, self.queries, self.seed = prompts, queries, seed
        self._permutation: tuple[int, torch.Tensor] = (-1, torch.empty(0))

    def chosen(self, update: int, rows: int) -> list[int]:
        """The number of each row's prompt in an update's rollout of ``rows`` rows."""
        return [self._number(update * rows + i) for i in range(rows)]

    def _number(self, position: int) -> int:
        epoch, at = divmod(position, len(self.prompts))
        if self._permutation[0] != epoch:
            g = generator(self.seed, "ppo/prompts", epoch)
            self._permutation = (epoch, torch.randperm(len(self.prompts), generator=g))
        return int(self._permutation[1][at])
