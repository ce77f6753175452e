"""One model's training in a stage: its steps, what is skipped, and what a checkpoint keeps. It knows no trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import global_rng
from models.backbone.trained_shards import drop_parts, failed_anywhere, total_norm
from stages.safe_points.checkpoints import State
from stages.safe_points.training_state import restore_training, training_tensors
from stages.settings import RewardConfig, SFTConfig
from stages.stage import StageContext
from stages.training.gradient_sums import GradientSums
from stages.training.held_out_curve import HeldOutCurve
from stages.training.nonfinite import NonFiniteSteps
from stages.training.rank_budget import RankBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a model's training starts, of those that a stage trains one after another.

    Attributes:
        number: of this model, from 0.
        steps: of the models before it.
        skipped: how many of those were skipped.
        weights: of the models before it, by the names that checkpoints give them.
        curves: what the held-out curves of the models before it found, by role.
        saved: this model's own state, to resume from; None: it is trained from the start.
        kept: what a checkpoint is to hold besides.
    """

    number: int = 0
    steps: int = 0
    skipped: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    saved: State | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)


FROM_SCRATCH = Start()


class TrainingRun:
    """What a trainer's steps need and leave behind.

    Args:
        context: of the stage.
        config: the stage's settings.
        key: what messages call those settings: ``KEY.max_skipped_steps``, ``KEY.micro_batch``.
        name: what messages call the training.
        parameters: what is trained, by name.
        start: where it starts.
    """

    def __init__(
        self,
        context: StageContext,
        config: SFTConfig | RewardConfig,
        key: str,
        name: str,
        parameters: Mapping[str, Any],
        start: Start = FROM_SCRATCH,
    ) -> None:
        self.context, self.processes, self.name = context, context.processes, name
        self.parameters, self.start, self.saved = dict(parameters), start, start.saved
        self.nonfinite = NonFiniteSteps(f"{key}.max_skipped_steps", config.max_skipped_steps)
        self.memory = OOMRetry(
            f"{key}.micro_batch",
            context.warn_alone,
            context.processes.together,
            failed_anywhere(self.parameters.values()),
        )
        self.key = key
        self.batch, self.micro_batch = config.batch, config.micro_batch
        self.gradients = GradientSums(self.parameters.values(), context.processes)
        self.budget = self._budget(context)
        self.noted = torch.zeros(2, dtype=torch.float64)  # by the loss, of this process's micro-batches in a step
        self.norm = self.loss = 0.0  # of the last step; the gradient's before clipping
        self.curve: HeldOutCurve | None = None

    def _budget(self, context: StageContext) -> RankBudget | None:
        """The ranks of the adapter that is trained, where it is AdaLoRA's; checkpoints know it by its tensors."""
        role = next((name.rpartition(".lora_E.")[2] for name in self.parameters if ".lora_E." in name), None)
        return None if role is None else RankBudget.of(context.base, role, context.adapter)

    def finish_gradients(self) -> None:
        """Sum the step's gradients, and add what a method asks of each step; all processes call it."""
        self.gradients.finish()
        if self.budget is not None:
            self.budget.add_orthogonality()

    def follow(self, curve: HeldOutCurve | None) -> None:
        """Evaluate held-out rows in this training; where it resumes from a state without their curve, there is none."""
        if curve is not None and self.saved is not None and not curve.restore(self.saved):
            self.context.say(f"{self.name}: no held-out curve, since the checkpoint that it resumes from has none")
            curve = None
        self.curve = curve

    def begin_step(self, micro_batches: int) -> None:
        """Forget what was noted, before the first of a step's micro-batches."""
        self.noted = torch.zeros(2, dtype=torch.float64)
        self.gradients.begin(micro_batches)

    def note(self, numbers: Tensor) -> None:
        """Add what the loss of one micro-batch counted (2,), for the log."""
        self.noted = self.noted + numbers.detach().cpu().double()

    def drop_gradients(self) -> None:
        """Leave nothing of a step whose memory did not suffice, or that is skipped."""
        drop_parts(self.parameters.values())
        for p in self.parameters.values():
            p.grad = None

    def judge_step(self, step: int, max_grad_norm: float) -> None:
        """Before the optimizer's step: without gradients it changes neither weights nor moments."""
        if max_grad_norm <= 0:  # nobody clips, and nobody computed it
            self.norm = float(total_norm(self.parameters.values()))
        mine = math.isfinite(self.norm) and math.isfinite(self.loss)
        finite = self.processes.sum(torch.tensor(float(not mine))).item() == 0
        if not finite:
            self.drop_gradients()
        self.nonfinite.record(finite, f"{self.name}, step {step}", f"loss {self.loss:g}, gradient norm {self.norm:g}")

    @property
    def skipped(self) -> int:
        """Steps that were skipped, those of the models before included."""
        return self.start.skipped + self.nonfinite.total

    def finished(self) -> int | None:
        """Steps of a training that the saved state shows to be complete; None: there are some left."""
        known = self.saved.numbers["trainer"] if self.saved is not None else None
        if known is None or not (known["global_step"] >= known["max_steps"] or (self.curve and self.curve.stopped)):
            return None
        return int(known["global_step"])

    def restore_finished(self) -> None:
        """Weights and counts of a training that is complete."""
        assert self.saved is not None
        restore_training(self.parameters, [], self.saved.tensors)
        self.nonfinite.restore(self.saved.numbers["skips"])

    def restore(self, optimizer: Any, schedule: Any) -> None:
        """Weights, optimizer, schedule and counts as they were saved."""
        assert self.saved is not None
        numbers = self.saved.numbers
        restore_training(self.parameters, [optimizer], self.saved.tensors)
        if self.budget is not None:
            self.budget.restore(self.saved.tensors)
        schedule.load_state_dict(numbers["schedule"])
        for group, rate in zip(optimizer.param_groups, numbers["rates"], strict=True):
            group["lr"] = rate
        self.nonfinite.restore(numbers["skips"])
        limits = self.saved.own_numbers["limits"]
        self.memory.limit = limits.get(self.memory.name)  # of rows or of tokens, by what the recipe counts

    def state(self, optimizer: Any, schedule: Any, trainer_state: Any, tokens: int) -> State:
        """All of it, between two optimizer steps; ``tokens`` is TRL's count for its log."""
        plain = {k: v for k, v in vars(trainer_state).items() if isinstance(v, int | float | str | bool)}
        state = State(
            tensors=training_tensors(self.parameters, [optimizer])
            | dict(self.start.weights)
            | dict(self.start.kept)
            | ({} if self.budget is None else self.budget.state()),
            numbers={
                "part": self.start.number,
                "offset": self.start.steps,
                "trainer": plain,
                "schedule": schedule.state_dict(),
                "rates": [group["lr"] for group in optimizer.param_groups],
                "tokens": tokens,
                "skips": self.nonfinite.as_dict(),
                "skipped_before": self.start.skipped,
                "curves": dict(self.start.curves),
            },
            own=global_rng(),
            own_numbers={"limits": {self.memory.name: self.memory.limit}},
        )
        return state if self.curve is None else self.curve.add_to(state)
