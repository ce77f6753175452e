"""How many rows of a rollout one forward pass holds. It changes memory and time, and no sum beyond rounding.

Micro-batches are cut from all rows before they are dealt out to processes, so that the rows computed together are those
of one process. They are smaller than the recipe says only where a process would be left without any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import Processes
from stages.ppo.rollout import Rollout
from stages.settings import PPOConfig
from stages.training.gradient_sums import OrderedSums


class MicroBatching:
    """Micro-batches of ``rows`` rows, or of ``tokens`` padded tokens where that is set; halved when memory runs out.

    Args:
        config: PPO's settings.
        retry: remembers the largest micro-batch that fits.
        processes: that share the micro-batches.
    """

    def __init__(self, config: PPOConfig, retry: OOMRetry, processes: Processes) -> None:
        self.rows, self.tokens, self.retry, self.processes = config.micro_batch, config.micro_tokens, retry, processes

    @property
    def size(self) -> int:
        """Rows or padded tokens of a micro-batch now."""
        return self.retry.size(self.tokens or self.rows)

    def each(self, rollout: Rollout, work: Callable[[list[int]], None]) -> None:
        """Call ``work`` with the row numbers of each micro-batch of the whole rollout that is this process's.

        Raises:
            StageError: a single row does not fit into memory.
        """
        rows = range(len(rollout.queries))
        wanted, minimum = self._wanted(rollout, rows)
        mine = self.processes.dealt(self._cut(rollout, rows, wanted))

        def attempt(size: int) -> None:
            for part in self._finer(rollout, mine, wanted, size):
                work(part)

        self.retry.run(attempt, wanted, minimum)

    def accumulate(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        work: Callable[[list[int]], dict[str, Tensor]],
        names: Sequence[str],
        gradients: OrderedSums,
        undo: Callable[[], None],
    ) -> dict[str, Tensor]:
        """Sums over all processes, in float64 on the CPU, of the numbers that ``work`` returns for the micro-batches.

        Args:
            rollout: whose rows.
            rows: a minibatch, the same in all processes.
            work: forward and backward of a micro-batch.
            names: of the numbers.
            gradients: adds up what it leaves.
            undo: takes back the gradients of an attempt for which memory did not suffice.

        Raises:
            StageError: a single row does not fit into memory.
        """
        wanted, minimum = self._wanted(rollout, rows)
        cut = self._cut(rollout, rows, wanted)
        mine = self.processes.dealt(cut)

        def attempt(size: int) -> Tensor:
            gradients.begin(len(cut))
            found = []
            for part in self._finer(rollout, mine, wanted, size):
                numbers = work(part)
                found.append(torch.stack([numbers[name].detach() for name in names]))
                gradients.add()
            return torch.stack(found).cpu().double() if found else torch.zeros((0, len(names)), dtype=torch.float64)

        table = self.processes.gather_dealt(self.retry.run(attempt, wanted, minimum, undo=undo))
        return dict(zip(names, sum(table, torch.zeros(len(names), dtype=torch.float64)), strict=True))

    def _wanted(self, rollout: Rollout, rows: Sequence[int]) -> tuple[int, int]:
        """The size that the recipe asks for, less where processes would be idle, and the smallest that still makes a
        difference."""
        count = self.processes.world_size
        if not self.tokens:
            return (self.rows if count == 1 else max(1, min(self.rows, math.ceil(len(rows) / count)))), 1
        if count == 1:
            return self.tokens, rollout.longest
        known = rollout.row_lengths
        lengths = [known[i] for i in rows]
        longest = max(lengths, default=1)
        return min(self.tokens, max(longest, math.ceil(sum(lengths) / count))), longest

    def _finer(self, rollout: Rollout, parts: Sequence[list[int]], wanted: int, size: int) -> list[list[int]]:
        """This process's micro-batches, cut again where memory allows smaller ones alone."""
        if size >= wanted:
            return list(parts)
        if self.processes.world_size == 1:  # as if the recipe had said so
            return self._cut(rollout, [i for part in parts for i in part], size)
        return [finer for part in parts for finer in self._cut(rollout, part, size)]

    def _cut(self, rollout: Rollout, rows: Sequence[int], size: int) -> list[list[int]]:
        return rollout.parts(rows, size, self.tokens and size)
