"""What SFT and the reward stage share around Transformers' trainer: settings, progress, a clean base afterwards."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from models.backbone.forward import set_gradient_checkpointing
from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import Processes
from models.backbone.seeds import derived_seed, global_rng, isolated_rng, set_global_rng
from models.roles.shared_base import SharedBase
from stages.safe_points.checkpoints import State, restore_training, training_tensors
from stages.settings import RewardConfig, SFTConfig
from stages.stage import StageContext
from stages.training.nonfinite import NonFiniteSteps, norm_of

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def trainer_settings(context: StageContext, config: SFTConfig | RewardConfig, rows: int, key: str) -> dict[str, Any]:
    """Arguments for ``TrainingArguments``: everything that TRL's or Transformers' defaults would decide otherwise."""
    total = max(1, math.ceil(rows / config.batch * config.epochs))
    return {
        "output_dir": str(Path(context.out) / "trainer"),
        # every process reads whole batches, of which `Resumable` takes the process's share, cut into pieces
        "per_device_train_batch_size": config.batch,
        "gradient_accumulation_steps": 1,
        "average_tokens_across_devices": False,  # the batch that is counted is the whole one already
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}[
            config.schedule
        ],
        "warmup_steps": round(total * config.warmup),
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
        "ddp_find_unused_parameters": False,
    }


def on_one_device(arguments: Arguments) -> Arguments:
    """The same arguments, told that this process has one device: with more, trainers enter ``nn.DataParallel``."""
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


class Resumable:
    """A trainer whose checkpoints are ours: it skips the batches that are done and reads nothing of its own files.

    Mixed in before Transformers' trainer. Every process reads the same whole batches in the same order and computes its
    share of each one's rows, so that what a step sees does not depend on the number of processes. The trainer's
    ``resume_from_checkpoint`` finds a folder with ``trainer_state.json`` and nothing else; weights, optimizer, schedule
    and generators come from ``saved``. Batches are cut into pieces here, so that a piece that does not fit into memory
    can be cut again; a step without a finite loss and gradient is not taken.
    """

    saved: State | None = None
    parameters: dict[str, Any]
    part, offset = 0, 0  # of a stage's models, trained one after another: this one's number, and the steps before it
    before: Mapping[str, Any] = MappingProxyType({})  # what checkpoints keep of the finished ones, by name
    skipped_before = 0  # steps of the finished ones that were skipped
    nonfinite: NonFiniteSteps
    memory: OOMRetry
    micro: int  # rows of a piece
    processes: Processes
    counted: float = 1.0  # 0 while this process computes a row only to take part
    noted = torch.zeros(2, dtype=torch.float64)  # what the loss notes of this process's pieces in a step
    norm: float = 0.0  # of the gradient, before clipping
    loss: float = 0.0

    def prepare(self, context: StageContext, config: SFTConfig | RewardConfig, key: str) -> None:
        self.processes = context.processes
        self.nonfinite = NonFiniteSteps(f"{key}.max_skipped_steps", config.max_skipped_steps)
        self.memory = OOMRetry(f"{key}.micro_batch", context.warn)
        self.micro = config.micro_batch

    # -- steps -------------------------------------------------------------------------------------------------

    def micro_batches_of(self, inputs: dict[str, Any], size: int) -> list[dict[str, Any]]:
        """A batch cut into parts of at most ``size`` rows."""
        raise NotImplementedError

    def wanted(self, inputs: dict[str, Any]) -> tuple[int, int]:
        """The size of a piece that the recipe asks for, and the least that makes a difference."""
        return self.micro, 1

    def share_of(self, inputs: dict[str, Any], rows: range) -> dict[str, Any]:
        """These neighbouring rows of a batch."""
        raise NotImplementedError

    def note_step(self, inputs: dict[str, Any], noted: Tensor) -> None:
        """Keep for the log what ``noted`` says of a whole step, over all pieces and processes."""

    def get_train_dataloader(self: Any) -> Any:
        """The trainer's own loader, with every whole batch in every process."""
        accelerator = self.accelerator
        accelerator.prepare_data_loader = partial(_undivided, accelerator)
        try:
            return super().get_train_dataloader()  # type: ignore[misc]
        finally:
            del accelerator.prepare_data_loader

    def training_step(self: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """This process's share of the batch piece by piece; gradients add up before one exchange between processes.

        Nothing is exchanged within the pieces, whose number is each process's own. A process without a row, where a
        batch has fewer rows than there are processes, computes one that counts nothing, to take part in the exchange.
        In one process, a piece for which memory is too small makes the whole step begin again with smaller ones.
        """
        step, share = super().training_step, self.processes.share(len(inputs["labels"]))  # type: ignore[misc]
        self.counted = float(len(share) > 0)
        mine = self.share_of(inputs, share or range(1))

        def work(size: int) -> Tensor:
            self.noted = torch.zeros_like(Resumable.noted)
            total, micro_batches = torch.zeros((), device=self.args.device), self.micro_batches_of(mine, size)
            for i, part in enumerate(micro_batches):
                last = i == len(micro_batches) - 1
                with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                    total = total + step(model, part, num_items_in_batch)
            return total

        def undo() -> None:
            for p in self.parameters.values():
                p.grad = None

        wanted, minimum = self.wanted(mine)
        alone = self.accelerator.num_processes == 1  # others would wait in an exchange that cannot be begun again
        total = self.memory.run(work, wanted, minimum, undo) if alone else self.memory.once(work, wanted)
        self.loss = float(total)
        self.note_step(inputs, self.processes.sum(self.noted))
        return total

    def _clip_grad_norm(self: Any, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        self.norm = float(norm)
        return norm

    def judge_step(self: Any, processes: Processes, name: str) -> None:
        """Before the optimizer's step: without gradients it changes neither weights nor moments."""
        if self.args.max_grad_norm <= 0:
            self.norm = norm_of(self.parameters.values())
        mine = math.isfinite(self.norm) and math.isfinite(self.loss)
        finite = processes.sum(torch.tensor(float(not mine))).item() == 0
        if not finite:
            for p in self.parameters.values():
                p.grad = None
        step = f"{name}, step {self.state.global_step + 1}"
        self.nonfinite.record(finite, step, f"loss {self.loss:g}, gradient norm {self.norm:g}")

    # -- state -------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Nothing here: weights are restored with the optimizer, once both are in place."""

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        if self.saved is not None:
            restore_training(self.parameters, [self.optimizer], self.saved.tensors)
            self.lr_scheduler.load_state_dict(self.saved.numbers["schedule"])
            for group, rate in zip(self.optimizer.param_groups, self.saved.numbers["rates"], strict=True):
                group["lr"] = rate
            self.nonfinite.restore(self.saved.numbers["skips"])
            limits = self.saved.numbers["limits"]
            self.memory.limit = limits.get(self.memory.name)  # of rows or of tokens, by what the recipe counts now
            if hasattr(self, "_total_train_tokens"):  # TRL's count for its log
                self._total_train_tokens = self.saved.numbers["tokens"]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.saved is not None:
            set_global_rng(self.saved.own)

    def state_now(self: Any) -> State:
        """Between two optimizer steps."""
        state = {k: v for k, v in vars(self.state).items() if isinstance(v, int | float | str | bool)}
        return State(
            tensors=training_tensors(self.parameters, [self.optimizer]) | dict(self.before),
            numbers={
                "part": self.part,
                "offset": self.offset,
                "trainer": state,
                "schedule": self.lr_scheduler.state_dict(),
                "rates": [group["lr"] for group in self.optimizer.param_groups],
                "tokens": int(getattr(self, "_total_train_tokens", 0)),
                "skips": self.nonfinite.as_dict(),
                "skipped_before": self.skipped_before,
                "limits": {self.memory.name: self.memory.limit},
            },
            own=global_rng(),
        )


class ProgressCallback(TrainerCallback):
    """Sends the trainer's logs to our metrics file and bar; after them the state may be saved."""

    def __init__(self, context: StageContext, name: str) -> None:
        self.context, self.name = context, name
        self.trainer: Any = None
        self.tokens: int | None = None  # told to the bar so far

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer is not None:
            self.trainer.judge_step(self.context.processes, self.name)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        kept = {k: v for k, v in logs.items() if isinstance(v, int | float) and k != "epoch"}
        step = state.global_step + (self.trainer.offset if self.trainer is not None else 0)
        if self.trainer is not None:
            kept["skipped_steps"] = self.trainer.skipped_before + self.trainer.nonfinite.total
        self.context.log.write(step, kept)
        shown: dict[str, float] = {k: kept[k] for k in ("loss", "mean_token_accuracy", "pair_accuracy") if k in kept}
        self.context.bar.advance(step, shown, self._new_tokens(kept))
        if self.trainer is not None:
            good = self.trainer.nonfinite.in_a_row == 0
            self.context.checkpoints.safe_point(step, self.trainer.state_now, step, good)

    def _new_tokens(self, logs: dict[str, float]) -> int:
        """Tokens since the last log; TRL counts them up, from a checkpoint's count on."""
        if "num_tokens" not in logs:
            return int(logs.get("tokens", 0))
        if self.tokens is None:
            saved = self.trainer.saved if self.trainer is not None else None
            self.tokens = 0 if saved is None else int(saved.numbers["tokens"])
        before, self.tokens = self.tokens, int(logs["num_tokens"])
        return self.tokens - before


def fit(trainer: Any, context: StageContext, parameters: dict[str, Any], saved: State | None) -> int:
    """Train from a checkpoint on (None: from the start), without the trainer's own printing; the number of steps."""
    trainer.remove_callback(PrinterCallback)
    trainer.parameters, trainer.saved = parameters, saved
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ProgressCallback):
            callback.trainer = trainer
    if trainer.saved is None:
        trainer.train()
    elif (known := trainer.saved.numbers["trainer"])["global_step"] >= known["max_steps"]:
        restore_training(parameters, [], trainer.saved.tensors)
        trainer.nonfinite.restore(trainer.saved.numbers["skips"])
        return int(known["global_step"])
    else:
        folder = Path(trainer.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trainer_state.json").write_text(json.dumps(known), encoding="utf-8")
        trainer.train(resume_from_checkpoint=str(folder))
    trainer.accelerator.free_memory()
    return trainer.state.global_step


@contextlib.contextmanager
def training_session(context: StageContext, base: SharedBase, role: str, key: str) -> Iterator[None]:
    """Global generators, tokenizer, configs and ``forward`` are afterwards as they were (TRL changes all of them)."""
    lm = base.copies.get(role, base.lm)
    config, generation, pad = copy.deepcopy(lm.config), copy.deepcopy(lm.generation_config), base.tokenizer.pad_token
    tags = copy.copy(getattr(lm, "model_tags", None))
    with isolated_rng(derived_seed(context.seed, key)):
        set_gradient_checkpointing(lm, context.gradient_checkpointing)
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
