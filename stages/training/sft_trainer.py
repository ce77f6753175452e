"""TRL's SFTTrainer with the loss of response positions only. Imported where it is used: TRL takes seconds to import.

The loss goes through ``model(...)``; what changes is the model's ``forward``, which ``training_session`` puts back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from data.batching import token_batches
from models.roles.response_loss import response_nll
from models.roles.role_view import RoleView
from stages.training.hf_trainer import OwnSteps
from stages.training.micro_batches import of_rows
from stages.training.row_losses import row_nll
from stages.training.training_run import TrainingRun


class ResponseTrainer(OwnSteps, SFTTrainer):
    """Loss, accuracy and token counts of supervised tokens; each batch cut by length, never padded to its longest.

    Args:
        training_run: what its steps need.
        lm: the causal LM under the adapters, whose forward becomes the response-only loss.
        fast: use the fast path where it knows the architecture.
        batch_tokens: padded tokens that one forward and backward may hold; None for a whole micro-batch.
    """

    def __init__(
        self, training_run: TrainingRun, *, lm: Any, fast: bool, batch_tokens: int | None, **settings: Any
    ) -> None:
        super().__init__(training_run, **settings)
        self.batch_tokens = batch_tokens
        self.view = RoleView(name=training_run.key, lm=lm, head=None, fast=fast)
        if batch_tokens is not None:
            training_run.memory.name = f"{training_run.key}.batch_tokens"

        def forward(
            input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any
        ) -> tuple[Tensor, Tensor, Tensor]:
            return response_nll(lm, input_ids, attention_mask, labels, fast=fast)

        lm.forward = forward

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of -log p over a micro-batch's supervised tokens by their number in the whole batch of all processes."""
        nll, right, count = model(**inputs)
        total = count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = nll / total
        self.training_run.note(torch.stack([right, count]))
        return (loss, None) if return_outputs else loss

    def held_out_values(self, rows: Sequence[Any]) -> Tensor:
        """(B, 4) of held-out rows: loss in nats, supervised tokens, and two zeros."""
        batch = self.data_collator([{"input_ids": row.ids, "labels": row.labels} for row in rows])
        ids, mask, labels = (batch[k].to(self.args.device) for k in ("input_ids", "attention_mask", "labels"))
        nll, count = row_nll(self.view, ids, mask, labels)
        return torch.stack([nll, count, torch.zeros_like(nll), torch.zeros_like(nll)], dim=1)

    def note_step(self, inputs: dict[str, Tensor], noted: Tensor) -> None:
        right, count = noted.tolist()
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        self._metrics["train"]["mean_token_accuracy"].append(right / max(1.0, count))
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    def micro_batches_of(self, inputs: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
        """Of at most ``size`` rows, or padded tokens where there is a budget of them."""
        lengths = inputs["attention_mask"].sum(1).tolist()
        if self.batch_tokens is not None:
            return of_rows(inputs, token_batches(lengths, size))
        return of_rows(inputs, [range(i, min(i + size, len(lengths))) for i in range(0, len(lengths), size)])

    def wanted(self, inputs: dict[str, Tensor]) -> tuple[int, int]:
        if self.batch_tokens is None:
            return super().wanted(inputs)
        lengths = inputs["attention_mask"].sum(1)
        longest, each = int(lengths.max()), math.ceil(int(lengths.sum()) / self.training_run.processes.world_size)
        several = self.training_run.processes.world_size > 1
        return min(self.batch_tokens, max(longest, each)) if several else self.batch_tokens, longest
