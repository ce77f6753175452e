"""SFT's trainer with a loss by a teacher. Imported where it is used: TRL takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.training.distil_losses import Loss, row_sums
from stages.training.sft_trainer import ResponseTrainer
from stages.training.training_run import TrainingRun


class DistilTrainer(ResponseTrainer):
    """Sums of a loss of supervised tokens, by the number of them in the whole batch of all processes.

    Args:
        training_run: what its steps need.
        loss: of the student's tokens.
        settings: as ``ResponseTrainer`` takes them.
    """

    def __init__(self, training_run: TrainingRun, *, loss: Loss, **settings: Any) -> None:
        super().__init__(training_run, **settings)
        self.token_loss = loss
        view = self.view

        def forward(
            input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any
        ) -> tuple[Tensor, Tensor, Tensor]:
            values, agree, _where = loss(view, input_ids, attention_mask, labels)
            return values.sum(), agree.sum(), torch.tensor(len(values), device=input_ids.device)

        view.lm.forward = forward

    def held_out_values(self, rows: Sequence[Any]) -> Tensor:
        """(B, 4) of held-out rows: loss in nats, tokens, and two zeros."""
        batch = self.data_collator([{"input_ids": row.ids, "labels": row.labels} for row in rows])
        ids, mask, labels = (batch[k].to(self.args.device) for k in ("input_ids", "attention_mask", "labels"))
        nats, _, count = row_sums(self.token_loss, self.view, ids, mask, labels)
        return torch.stack([nats, count, torch.zeros_like(nats), torch.zeros_like(nats)], dim=1)
