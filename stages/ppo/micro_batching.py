"""How many rows of a rollout one forward pass holds. It changes memory and time, and no sum beyond rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.backbone.oom_retry import OOMRetry
from stages.ppo.rollout import Rollout
from stages.settings import PPOConfig


class MicroBatching:
    """Micro-batches of ``rows`` rows, or of ``tokens`` padded tokens where that is set; halved when memory runs out.

    Args:
        config: PPO's settings.
        retry: remembers the largest micro-batch that fits.
    """

    def __init__(self, config: PPOConfig, retry: OOMRetry) -> None:
        self.rows, self.tokens, self.retry = config.micro_batch, config.micro_tokens, retry

    @property
    def size(self) -> int:
        """Rows or padded tokens of a micro-batch now."""
        return self.retry.size(self.tokens or self.rows)

    def each(self, rollout: Rollout, work: Callable[[list[int]], None]) -> None:
        """Call ``work`` with the row numbers of each micro-batch of the whole rollout.

        Raises:
            StageError: a single row does not fit into memory.
        """

        def attempt(size: int) -> None:
            for part in self._cut(rollout, range(len(rollout.queries)), size):
                work(part)

        self.retry.run(attempt, *self._wanted(rollout))

    def accumulate(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        work: Callable[[list[int]], dict[str, Tensor]],
        undo: Callable[[], None],
    ) -> dict[str, Tensor]:
        """Sums, in float64 on the CPU, of the numbers that ``work`` returns for the micro-batches of some rows.

        Args:
            rollout: whose rows.
            rows: a minibatch.
            work: forward and backward of a micro-batch; its gradients add up by themselves.
            undo: takes back the gradients of an attempt for which memory did not suffice.

        Raises:
            StageError: a single row does not fit into memory.
        """

        def attempt(size: int) -> dict[str, Tensor]:
            found = [work(part) for part in self._cut(rollout, rows, size)]
            if not found:
                return {}
            table = torch.stack([torch.stack([x.detach() for x in each.values()]) for each in found]).cpu().double()
            return dict(zip(found[0], sum(table, torch.zeros(len(found[0]), dtype=torch.float64)), strict=True))

        return self.retry.run(attempt, *self._wanted(rollout), undo=undo)

    def _wanted(self, rollout: Rollout) -> tuple[int, int]:
        """The size that the recipe asks for, and the smallest that still makes a difference."""
        return (self.tokens, rollout.longest) if self.tokens else (self.rows, 1)

    def _cut(self, rollout: Rollout, rows: Sequence[int], size: int) -> list[list[int]]:
        return rollout.parts(rows, size, self.tokens and size)
