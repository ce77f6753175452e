"""What SFT and the reward stage share around Transformers' trainer: settings, progress, a clean base afterwards."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from models.backbone.forward import set_gradient_checkpointing
from models.backbone.seeds import derived_seed, isolated_rng, set_global_rng
from models.backbone.trained_shards import clip_gradients, exchange_parameters, owners
from models.roles.shared_base import SharedBase
from stages.safe_points.checkpoints import State
from stages.settings import RewardConfig, SFTConfig
from stages.stage import StageContext
from stages.training.training_run import TrainingRun

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def trainer_settings(context: StageContext, config: SFTConfig | RewardConfig, rows: int, key: str) -> dict[str, Any]:
    """Arguments for ``TrainingArguments``: everything that TRL's or Transformers' defaults would decide otherwise."""
    total = max(1, math.ceil(rows / config.batch * config.epochs))
    return {
        "output_dir": str(Path(context.out) / "trainer"),
        # every process reads whole batches, of which `OwnSteps` takes the process's share, cut into micro-batches
        "per_device_train_batch_size": config.batch,
        "gradient_accumulation_steps": 1,
        "average_tokens_across_devices": False,  # the batch that is counted is the whole one already
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}[
            config.schedule
        ],
        "warmup_steps": min(round(total * config.warmup), total - 1),  # at least one step above rate 0
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": config.weight_decay,
        "seed": derived_seed(context.seed, key) % 2**31,
        "use_cpu": context.processes.device.type == "cpu",
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,  # switched by `training_session`, which also puts it back
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": context.processes.device.type == "cuda",
        "remove_unused_columns": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
    }


def on_one_device(arguments: Arguments) -> Arguments:
    """The same arguments, knowing that this process has one device: with more, trainers enter ``nn.DataParallel``."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _undivided(accelerator: Any, loader: Any, *_: Any, **__: Any) -> Any:
    """A prepared loader as one process has it, whichever process this is."""
    prepared = prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        rng_types=accelerator.rng_types.copy(),
        use_seedable_sampler=accelerator.use_seedable_sampler,
        data_seed=accelerator.dataloader_config.data_seed,
    )
    accelerator._dataloaders.append(prepared)
    return prepared


class OwnSteps:
    """A trainer whose steps and checkpoints are ours; mixed in before Transformers' trainer.

    Every process reads the same whole batches in the same order, cuts them into the same micro-batches and computes its
    share of these, so that what a step sees does not depend on the number of processes. No wrapper stands between code
    and model: gradients are summed here. A micro-batch that does not fit into memory is cut again; a step without a
    finite loss and gradient is not taken. Batches that were done before a checkpoint are skipped: the trainer's
    ``resume_from_checkpoint`` finds a folder with ``trainer_state.json`` and nothing else; weights, optimizer, schedule
    and generators come from the training run.
    """

    def __init__(self, training_run: TrainingRun, **settings: Any) -> None:
        self.training_run = training_run
        super().__init__(**settings)
        trainer: Any = self
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressCallback(trainer))

    # -- what a trainer says of its batches ----------------------------------------------------------------------

    def micro_batches_of(self, inputs: dict[str, Any], size: int) -> list[dict[str, Any]]:
        """A batch cut into parts of at most ``size`` rows."""
        raise NotImplementedError

    def wanted(self, inputs: dict[str, Any]) -> tuple[int, int]:
        """The size of a batch's micro-batches, and the smallest that makes a difference.

        It is the recipe's, or less where processes would be left without any of a whole batch.
        """
        run = self.training_run
        return min(run.micro_batch, math.ceil(run.batch / run.processes.world_size)), 1

    def held_out_values(self, rows: Sequence[Any]) -> Tensor:
        """Of held-out rows (n, 4) in float64 on the CPU: loss, its weight, right ones, and of how many."""
        raise NotImplementedError

    def note_step(self, inputs: dict[str, Any], noted: Tensor) -> None:
        """Keep for the log what ``noted`` says of a whole step, over all micro-batches and processes."""

    # -- what Transformers' trainer calls ------------------------------------------------------------------------

    def _wrap_model(self: Any, model: Any, *_: Any, **__: Any) -> Any:
        """The model as it is; Accelerate, which prepares it next, adds no wrapper of its own either."""
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = partial(prepare, evaluation_mode=True, device_placement=False)
        return model

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """It is there; moved, a divided model would have its weights in other memory than the optimizer."""

    def get_train_dataloader(self: Any) -> Any:
        """The trainer's own loader, with every whole batch in every process."""
        accelerator = self.accelerator
        accelerator.prepare_data_loader = partial(_undivided, accelerator)
        try:
            return super().get_train_dataloader()  # type: ignore[misc]
        finally:
            del accelerator.prepare_data_loader

    def training_step(self: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """This process's micro-batches of the batch; gradients add up before one exchange between processes.

        The batch is cut before it is shared out, so that a micro-batch has the same rows in whichever process, and a
        process for which there is none adds nothing. Nothing is exchanged within the micro-batches: one for which
        memory is too small makes this process's part of the step start again with smaller ones.

        Returns:
            The loss of the whole batch, over all processes.
        """
        run, step = self.training_run, super().training_step  # type: ignore[misc]
        processes = run.processes
        wanted, minimum = self.wanted(inputs)
        cut = self.micro_batches_of(inputs, wanted)
        mine = cut[processes.rank :: processes.world_size]

        def work(size: int) -> Tensor:
            losses = [torch.zeros((), device=self.args.device)]
            finer = mine if size >= wanted else [part for whole in mine for part in self.micro_batches_of(whole, size)]
            run.begin_step(max(len(cut), len(finer)))
            for part in finer:
                losses.append(step(model, part, num_items_in_batch).detach())
                run.gradients.add()
            return torch.stack(losses).cpu().double().sum()  # waited for once

        total = processes.sum(run.memory.run(work, wanted, minimum, run.drop_gradients)).float().to(self.args.device)
        run.finish_gradients()
        run.loss = float(total)
        self.note_step(inputs, processes.sum(run.noted))
        return total

    def create_optimizer(self: Any, *given: Any, **more: Any) -> Any:
        """The trainer's own, over this process's parts where the model is divided."""
        optimizer = super().create_optimizer(*given, **more)  # type: ignore[misc]
        exchange_parameters(optimizer, self.training_run.parameters.values())
        return optimizer

    def _clip_grad_norm(self: Any, model: Any) -> Any:
        trained = [p for p in self.training_run.parameters.values() if p.requires_grad]
        norm = (
            clip_gradients(trained, self.args.max_grad_norm) if owners(trained) else super()._clip_grad_norm(model)  # type: ignore[misc]
        )
        self.training_run.norm = float(norm)
        return norm

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Nothing here: weights are restored with the optimizer, once both are in place."""

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        run = self.training_run
        if run.saved is None:
            return
        run.restore(self.optimizer, self.lr_scheduler)
        if hasattr(self, "_total_train_tokens"):  # TRL's count for its log
            self._total_train_tokens = run.saved.numbers["tokens"]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.training_run.saved is not None:
            set_global_rng(self.training_run.saved.own)

    def state_now(self: Any) -> State:
        """Between two optimizer steps."""
        tokens = int(getattr(self, "_total_train_tokens", 0))
        return self.training_run.state(self.optimizer, self.lr_scheduler, self.state, tokens)


SHOWN = {k: k for k in ("loss", "mean_token_accuracy", "pair_accuracy")} | {
    f"held_out/{k}": f"held-out {k}" for k in ("loss", "accuracy")
}
"""Metrics in the terminal, and what they are called there."""


class ProgressCallback(TrainerCallback):
    """Sends a trainer's logs to our metrics file and bar; after them the state may be saved."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.run = trainer, trainer.training_run
        saved = self.run.saved
        self.tokens = 0 if saved is None else int(saved.numbers["tokens"])  # that the bar knows of

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.judge_step(state.global_step + 1, args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.run.budget is not None:
            self.run.budget.after_step(state.global_step + 1, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        context, step = self.run.context, state.global_step + self.run.start.steps
        kept = {k: v for k, v in logs.items() if isinstance(v, int | float) and k != "epoch"}
        kept |= {"loss": self.run.loss, "skipped_steps": self.run.skipped}
        if (curve := self.run.curve) is not None:
            kept |= curve.after_step(self.trainer, state.global_step, state.max_steps)
            control.should_training_stop = control.should_training_stop or curve.stopped
        context.log.write(step, kept)
        shown: dict[str, float] = {name: kept[k] for k, name in SHOWN.items() if k in kept}
        context.bar.advance(step, shown, self._new_tokens(kept))
        context.checkpoints.safe_point(step, self.trainer.state_now, step, self.run.nonfinite.in_a_row == 0)

    def _new_tokens(self, logs: dict[str, float]) -> int:
        """Tokens since the last log; TRL counts them up, from a checkpoint's count on."""
        if "num_tokens" not in logs:
            return int(logs.get("tokens", 0))
        before, self.tokens = self.tokens, int(logs["num_tokens"])
        return self.tokens - before


def fit(trainer: Any) -> int:
    """Train to the end, from the run's saved state on where it has one; the number of steps."""
    run: TrainingRun = trainer.training_run
    steps = run.finished()
    if steps is not None:
        run.restore_finished()
    else:
        steps = _train(trainer)
    if run.curve is not None:
        run.curve.finish()
    return steps


def _train(trainer: Any) -> int:
    """The steps that are left; the number of all."""
    run: TrainingRun = trainer.training_run
    if run.saved is None:
        if run.curve is not None:
            run.curve.begin(trainer)
        trainer.train()
    else:
        folder = Path(trainer.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trainer_state.json").write_text(json.dumps(run.saved.numbers["trainer"]), encoding="utf-8")
        trainer.train(resume_from_checkpoint=str(folder))
    trainer.accelerator.free_memory()
    if without := run.gradients.reached.warning(run.parameters):
        run.context.warn(f"{run.name}: {without}")
    run.nonfinite.require_a_step(trainer.state.global_step, run.name)
    return trainer.state.global_step


@contextlib.contextmanager
def training_session(context: StageContext, base: SharedBase, role: str, key: str) -> Iterator[None]:
    """Global generators, tokenizer, configs and ``forward`` are afterwards as they were (TRL changes all of them)."""
    lm = base.copies.get(role, base.lm)
    config, generation, pad = copy.deepcopy(lm.config), copy.deepcopy(lm.generation_config), base.tokenizer.pad_token
    tags = copy.copy(getattr(lm, "model_tags", None))
    with isolated_rng(derived_seed(context.seed, key)):
        set_gradient_checkpointing(lm, context.gradient_checkpointing, context.offload_activations)
        try:
            yield
        finally:
            set_gradient_checkpointing(lm, False)
            lm.eval()
            lm.__dict__.pop("forward", None)
            lm.config.__dict__.update(config.__dict__)
            lm.generation_config = generation
            base.tokenizer.pad_token = pad
            if tags is not None:
                lm.model_tags = tags
