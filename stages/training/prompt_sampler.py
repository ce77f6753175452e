"""The order of rankings in training: several of one prompt stand in one step, as one prompt's pairs do in one ranking.

They are correlated; in steps of their own each prompt would be seen several times an epoch (Ouyang et al. 2022, section
3.5). Knows nothing of models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from models.backbone.seeds import generator


def packed(groups: Sequence[Sequence[int]], batch: int) -> list[int]:
    """Rows of all groups, in this order but that no batch cuts a group: where the next one does not fit into the rest
    of a batch, the next that does takes its place. Where none does, a group is cut."""
    queues: dict[int, deque[int]] = {}
    for number, group in enumerate(groups):
        queues.setdefault(len(group), deque()).append(number)
    out: list[int] = []
    while queues:
        free = batch - len(out) % batch
        fits = [size for size in queues if size <= free] or list(queues)
        size = min(fits, key=lambda s: queues[s][0])
        out += groups[queues[size].popleft()]
        if not queues[size]:
            del queues[size]
    return out


class OnePromptAStep(Sampler[int]):
    """Row numbers, each once an epoch, groups in a new order every epoch; the same in all processes.

    Args:
        prompts: what rows of one prompt have in common; None for a row by itself.
        batch: rows of a step, over all processes.
    """

    def __init__(self, prompts: Sequence[Hashable | None], batch: int, seed: int) -> None:
        self.batch, self.seed, self.epoch = batch, seed, 0
        groups: dict[Hashable, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(("alone", row) if prompt is None else ("prompt", prompt), []).append(row)
        self.groups, self.rows = list(groups.values()), len(prompts)

    @property
    def needed(self) -> bool:
        """Whether any prompt has several rows."""
        return len(self.groups) < self.rows

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.groups), generator=generator(self.seed, "rankings/order", self.epoch)).tolist()
        yield from packed([self.groups[i] for i in order], self.batch)
