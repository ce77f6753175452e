"""Training of one reward model: Transformers' trainer with our collator (one row is one ranking) and loss."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from data.storage.collected import said
from data.storage.digests import as_digests, digest, firsts
from models.backbone.logprobs import Rows, make_rows
from models.fast.hidden_states import usable
from models.roles.role_view import RoleView
from reward.files import HOLDOUT
from reward.losses import pair_counts, ranking_losses
from reward.model import packed_scores, pooled_scores
from reward.shared_prompt import can_share, shared_states
from stages.settings import RewardConfig
from stages.stage import StageContext
from stages.training import hf_trainer as trainers
from stages.training.held_out_curve import HeldOutCurve, chosen
from stages.training.hf_trainer import OwnSteps, on_one_device, trainer_settings, training_session
from stages.training.micro_batches import of_rankings
from stages.training.prompt_sampler import OnePromptAStep
from stages.training.ranking_rows import EncodedRanking
from stages.training.training_run import FROM_SCRATCH, Start, TrainingRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training leaves besides weights: its optimizer steps, how many were skipped, and its held-out curve."""

    steps: int
    skipped: int
    curve: HeldOutCurve | None


def fit(
    context: StageContext,
    rows: Sequence[EncodedRanking],
    config: RewardConfig,
    role: str = "reward",
    start: Start = FROM_SCRATCH,
    held_out: Sequence[EncodedRanking] = (),
) -> Trained:
    """Train a role's adapter and head.

    Args:
        held_out: rankings of which the held-out curve evaluates some.
    """
    base = context.base
    session = training_session(context, base, role, "reward")
    with base.training(role) as trainable, base.role(role) as view, session:
        base.heads[role].bias.requires_grad_(False)  # no difference of scores knows it: its gradient is rounding
        run = TrainingRun(context, config, "reward", "reward model", trainable, start)
        run.follow(held_out_curve(context, config, role, rows, held_out, trainable))
        trainer = RankingTrainer(
            run,
            config=config,
            model=RewardModule(view, config.pooling),
            args=on_one_device(TrainingArguments(**trainer_settings(context, config, len(rows), "reward"))),
            train_dataset=rows,
            data_collator=lambda batch: collate(batch, context.pad_id, config.margin > 0),
            optimizers=(_optimizer(trainable, base.heads[role], config), None),
        )
        return Trained(steps=trainers.fit(trainer), skipped=run.nonfinite.total, curve=run.curve)


def held_out_curve(
    context: StageContext,
    config: RewardConfig,
    role: str,
    rows: Sequence[EncodedRanking],
    held_out: Sequence[EncodedRanking],
    trainable: Mapping[str, nn.Parameter],
) -> HeldOutCurve | None:
    """The curve of a role's training; None where nothing is held out, or the recipe asks for none."""
    some = chosen(held_out, config, len(rows))
    if not some:
        return None
    prompts = [said(row.prompt) if row.prompt else i for i, row in enumerate(some)]
    return HeldOutCurve(context, config, "reward", name_of(role), some, len(held_out), prompts, trainable)


def name_of(role: str) -> str:
    """What messages call a role's training."""
    return {"reward": "reward model", HOLDOUT: "held-out reward model"}.get(role, f"reward model ({role})")


def _optimizer(trainable: Mapping[str, nn.Parameter], head: nn.Module, config: RewardConfig) -> torch.optim.Optimizer:
    """AdamW; the head has its own learning rate and no weight decay."""
    of_head, rate = {id(p) for p in head.parameters()}, config.learning_rate
    head_rate = rate if config.head_learning_rate is None else config.head_learning_rate
    groups = [
        {"params": [p for p in trainable.values() if id(p) not in of_head], "lr": rate},
        {"params": [p for p in trainable.values() if id(p) in of_head], "lr": head_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=config.weight_decay)


class RewardModule(nn.Module):
    """The entered reward role as one module, so that a trainer sees exactly what it trains."""

    def __init__(self, view: RoleView, pooling: str) -> None:
        super().__init__()
        assert view.head is not None
        self.lm, self.head, self.view, self.pooling = view.lm, view.head, view, pooling
        self.modules_share = can_share(view.lm)

    def forward(
        self, ids: Tensor, mask: Tensor, query_lengths: Tensor, response_lengths: Tensor, counts: Tensor
    ) -> Tensor:
        """Scores (N,) fp32, one a row; ``counts`` (B,) rows belong to each ranking, whose prompt is computed once."""
        rows = Rows(ids=ids, mask=mask, query_lengths=query_lengths, response_lengths=response_lengths)
        if not self.modules_share and usable(self.lm, self.view.fast) is None:
            return pooled_scores(self.view.hidden(ids, mask), self.head, rows, self.pooling)
        states, lengths = shared_states(self.view, rows, counts.tolist())
        return packed_scores(states, self.head, lengths, self.pooling)


class RankingTrainer(OwnSteps, Trainer):
    """Transformers' trainer with the ranking loss, normalised by the rankings of the whole batch."""

    def __init__(self, training_run: TrainingRun, *, config: RewardConfig, **settings: Any) -> None:
        super().__init__(training_run, **settings)
        self.settings = config
        self.model_accepts_loss_kwargs = True  # so that `num_items_in_batch` counts the rankings of the batch
        self.tokens = 0  # of queries and responses in the last step

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        losses, table, scores = self._losses(model, inputs)
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / count
        with torch.no_grad():
            counts = pair_counts(table, inputs["ranks"], inputs["present"])
            self.training_run.note(torch.stack([x.sum() for x in counts]))
        return (loss, scores) if return_outputs else loss

    def _losses(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (B,) and scores (B, K) of rankings, and the scores (N,) row by row."""
        ranks, present = inputs["ranks"], inputs["present"]
        rows = (inputs[k] for k in ("ids", "mask", "query_lengths", "response_lengths"))
        scores = model(*rows, present.sum(1))
        table = torch.zeros(present.shape, dtype=scores.dtype, device=scores.device).masked_scatter(present, scores)
        losses = ranking_losses(
            table,
            ranks,
            self.settings.loss,
            margins=self.settings.margin * inputs["margins"] if "margins" in inputs else None,
            mask=present,
            label_smoothing=self.settings.label_smoothing,
        )
        return losses * inputs["weights"], table, scores

    def held_out_values(self, rows: Sequence[Any]) -> Tensor:
        """(B, 4) of held-out rankings: loss, 1, pairs that are right, and pairs."""
        inputs = {k: v.to(self.args.device) for k, v in self.data_collator(list(rows)).items()}
        losses, table, _ = self._losses(self.model, inputs)
        right, pairs = pair_counts(table, inputs["ranks"], inputs["present"])
        found = (losses, torch.ones_like(losses), right, pairs)
        return torch.stack([x.cpu().double() for x in found], dim=1)

    def _get_train_sampler(self, *given: Any) -> Any:
        rows = enumerate(self.train_dataset)  # type: ignore[arg-type]
        prompts = array("Q", (said(row.prompt) if row.prompt else digest(f"row {i}") for i, row in rows))
        if len(firsts(as_digests(prompts))) == len(prompts):
            return super()._get_train_sampler(*given)
        return OnePromptAStep(prompts, self.settings.batch, self.args.seed)

    def micro_batches_of(self, inputs: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
        return of_rankings(inputs, size)

    def note_step(self, inputs: dict[str, Tensor], noted: Tensor) -> None:
        right, pairs = noted.tolist()
        self.accuracy, self.tokens = right / max(1.0, pairs), int(inputs["mask"].sum())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and hasattr(self, "accuracy"):
            logs["pair_accuracy"] = self.accuracy
            logs["tokens"] = self.tokens
        super().log(logs, *args, **kwargs)


def collate(batch: Sequence[EncodedRanking], pad_id: int, with_margins: bool) -> dict[str, Tensor]:
    """Responses packed (N, L), and per ranking padded (B, K) ranks, presence and score differences."""
    rows = make_rows([q for r in batch for q in r.queries], [a for r in batch for a in r.responses], pad_id, "cpu")
    width = max(len(r.ranks) for r in batch)
    ranks = torch.tensor([r.ranks + [0] * (width - len(r.ranks)) for r in batch])
    present = torch.tensor([[i < len(r.ranks) for i in range(width)] for r in batch])
    out = {
        "ids": rows.ids,
        "mask": rows.mask,
        "query_lengths": rows.query_lengths,
        "response_lengths": rows.response_lengths,
        "ranks": ranks,
        "present": present,
        "weights": torch.tensor([r.weight for r in batch]),
        "labels": torch.ones(len(batch), dtype=torch.long),  # what the trainer counts: one ranking each
    }
    if with_margins:
        scores = torch.tensor([(r.scores or []) + [0.0] * (width - len(r.scores or [])) for r in batch])
        out["margins"] = (scores[:, :, None] - scores[:, None, :]).clamp(min=0)
    return out
