"""TRL's SFTTrainer with the loss of response positions only. Imported where it is used: TRL takes seconds to import.

The loss goes through ``model(...)``, so that a wrapper such as DDP sees every forward pass; what changes is the
model's ``forward``, which ``training_session`` puts back.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer

from data.batching import token_batches
from models.response_loss import response_nll
from stages.trainers import Resumable


class ResponseTrainer(Resumable, SFTTrainer):
    """Loss, accuracy and token counts of supervised tokens; each batch cut by length, never padded to its longest.

    ``batch_tokens``: padded tokens that one forward and backward may hold; None for a whole micro-batch.
    """

    batch_tokens: int | None = None

    def use_response_loss(self, lm: Any, fast: bool = True) -> None:
        """Replace the forward of the causal LM under the adapters by the response-only loss."""

        def forward(
            input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any
        ) -> tuple[Tensor, Tensor, Tensor]:
            return response_nll(lm, input_ids, attention_mask, labels, fast=fast)

        lm.forward = forward

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of -log p over the supervised tokens of the whole batch, accumulation and processes included."""
        nll, right, count = model(**inputs)
        total = count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = nll / total
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is global
        seen = self.accelerator.gather_for_metrics(
            torch.stack([right.double(), count.double(), inputs["attention_mask"].sum().double()])[None]
        ).sum(0)
        self._total_train_tokens += int(seen[2])
        self._metrics["train"]["mean_token_accuracy"].append((seen[0] / seen[1].clamp(min=1)).item())
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return (loss, None) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; with a token budget it is cut into parts, whose gradients add up before one exchange."""
        if self.batch_tokens is None:
            return super().training_step(model, inputs, num_items_in_batch)
        lengths = inputs["attention_mask"].sum(1).tolist()
        parts = token_batches(lengths, self.batch_tokens)
        total = torch.zeros((), device=self.args.device)
        for i, rows in enumerate(parts):
            part = {k: v[rows, : max(lengths[r] for r in rows)] for k, v in inputs.items()}
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                total = total + super().training_step(model, part, num_items_in_batch)
        return total
