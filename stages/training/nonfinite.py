"""Optimizer steps that cannot be taken: counted, and after too many in a row the stage stops."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from data.common.errors import NonFiniteError


class NonFiniteSteps:
    """Steps whose loss or gradient was not finite; they change no weight and no optimizer state.

    Args:
        setting: the recipe's name of the bound.
        bound: the stage stops after so many in a row; None: never.
    """

    def __init__(self, setting: str, bound: int | None) -> None:
        self.setting, self.bound = setting, bound
        self.total = self.in_a_row = 0

    def record(self, finite: bool, step: str, numbers: str) -> None:
        """Count one step.

        Args:
            finite: whether it was taken.
            step: which one, and ``numbers``: what was found, for the message.

        Raises:
            NonFiniteError: the bound is reached.
        """
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.total += not finite
        if self.bound is not None and self.in_a_row >= self.bound:
            raise NonFiniteError(
                f"{step}: {self.in_a_row} optimizer steps in a row were skipped, since loss or gradient was not finite "
                f"({numbers}). Check for extreme data or rewards, or lower the learning rate; the bound is "
                f"{self.setting}. Checkpoints from before the first of them are kept, and the same command resumes "
                "from there"
            )

    def require_a_step(self, steps: int, what: str) -> None:
        """At the end of a training: something must have been trained.

        Args:
            steps: how many there were.
            what: was trained, for the message.

        Raises:
            NonFiniteError: every single step was skipped.
        """
        if steps and self.total >= steps:
            raise NonFiniteError(
                f"{what}: all {steps} optimizer steps were skipped, since loss or gradient was not finite: nothing was "
                "trained. Check for extreme data or rewards, or lower the learning rate"
            )

    def as_dict(self) -> dict[str, int]:
        """For checkpoints."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def restore(self, saved: dict[str, int]) -> None:
        """Take over what ``as_dict`` has kept."""
        self.total, self.in_a_row = saved["total"], saved["in_a_row"]


def norm_of(parameters: Iterable[Tensor]) -> float:
    """Norm of all gradients together; not finite where one of them is not."""
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
