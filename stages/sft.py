"""Instruction SFT: TRL's SFTTrainer on the shared base, fed with ids and explicit labels from our one rendering."""

from __future__ import annotations

import shutil
import warnings
from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from torch import Tensor

from data.batching import right_pad
from data.common.errors import UserError, located
from data.common.patience import each
from data.counting import Tally, log_row, tell, warned
from data.records import Demonstration
from data.storage.collected import said
from data.storage.digests import digest
from data.storage.folders import new_file
from data.storage.store import IN_MEMORY
from data.storage.token_rows import labelled_store
from data.storage.views import Chain, origin_of
from data.template import Encoded, Renderer
from models.backbone.oom_retry import OOMRetry
from models.hub.limits import check_rows
from models.roles.export import save_role
from models.roles.shared_base import SharedBase
from stages.safe_points.checkpoints import State
from stages.settings import SFTConfig
from stages.stage import StageContext, StageResult
from stages.training.held_out_curve import HeldOutCurve, chosen, require_held_out
from stages.training.hf_trainer import fit, on_one_device, trainer_settings, training_session
from stages.training.row_losses import supervised_logprobs
from stages.training.training_run import Start, TrainingRun

VERSION = 10


def run(context: StageContext, config: SFTConfig) -> StageResult:
    """Train the ``sft`` role on demonstrations; write its adapter alone."""
    base, corpus = context.base, context.corpus.demonstrations
    positions = base.limits.positions
    rows, tally = encode_demonstrations(context.renderer, corpus.train, config, positions=positions)
    tell(tally, "SFT", context.say, context.warn)
    if not rows:
        raise UserError("data.demonstrations: no row has a supervised token; SFT has nothing to learn")
    asked = array("Q")
    held_out, held_out_tally = encode_demonstrations(
        context.renderer, corpus.held_out, config, "held-out demonstrations", positions=positions, asked=asked
    )
    tell(held_out_tally, "SFT", context.say, context.warn)
    context.log.note(log_row(tally.as_dict()) | log_row(held_out_tally.as_dict(), "held_out"))
    ids = (r.ids for r in Chain(rows, held_out))
    check_rows(base.limits, ids, "data.demonstrations", "lower sft.max_tokens", context.warn)
    base.add_role("sft", context.adapter, seed=context.seed)
    with base.training("sft"), base.role("sft"), training_session(context, base, "sft", "sft"):
        trainer = make_trainer(context, rows, config, context.checkpoints.resume())
        trainer.training_run.follow(held_out_curve(context, config, rows, held_out, asked))
        steps = fit(trainer)
    curve = trainer.training_run.curve
    save_role(base, "sft", context.out, main=context.processes.is_main)
    if context.processes.is_main:
        shutil.rmtree(context.out / "trainer", ignore_errors=True)
    progress = context.bar.phase("held-out demonstrations", len(held_out))
    return StageResult(
        metrics={
            "rows": len(rows),
            "dropped": sum(tally.dropped.values()),
            "counts": tally.as_dict(),
            "held_out_counts": held_out_tally.as_dict(),
            **warned(tally.warning(), held_out_tally.warning(), curve.warning() if curve else ""),
            "supervised_tokens": sum(sum(x >= 0 for x in r.labels) for r in rows),
            "held_out_nll": labelled_nll(
                base, "sft", held_out, context.pad_id, progress=progress, warn=context.warn_alone
            ),
            "steps": steps,
            "skipped_steps": trainer.training_run.skipped,
            **({"held_out_curves": {"sft": curve.summary()}} if curve else {}),
        }
    )


def held_out_curve(
    context: StageContext,
    config: SFTConfig,
    rows: Sequence[Encoded],
    held_out: Sequence[Encoded],
    asked: Sequence[Hashable],
    role: str = "sft",
    key: str = "sft",
    name: str = "SFT",
) -> HeldOutCurve | None:
    """The curve of a role's training; None where nothing is held out, or the recipe asks for none. ``asked`` says of
    each held-out row which prompt it has; ``key`` and ``name`` are what messages call settings and training.

    Raises:
        UserError: weights are chosen, or training stops, by held-out rows that are not there.
    """
    require_held_out(config, key, "demonstrations" if role == "sft" else "prompts", len(held_out))
    some = chosen(held_out, config, len(rows))
    if not some:
        return None
    return HeldOutCurve(
        context,
        config,
        key,
        name,
        some,
        len(held_out),
        chosen(asked, config, len(rows)),
        context.base.parameters_of(role),
    )


def number_of_prompt(demonstration: Demonstration, supervise: str, row: int) -> int:
    """A number that rows share whose turns before the first supervised one are the same; a row without any is alone.

    Texts say it: a tokenizer may write different prompts with the same ids.
    """
    turns = demonstration.prompt.messages
    if supervise == "all":
        turns = turns[: next((i for i, turn in enumerate(turns) if turn.role == "assistant" and turn.trained), None)]
    return said(turns) if turns else digest(f"row {row}")


def encode(
    context: StageContext, demonstrations: Sequence[Demonstration], config: SFTConfig
) -> tuple[Sequence[Encoded], int]:
    """Rows with at least one supervised token, and how many had none."""
    rows, tally = encode_demonstrations(context.renderer, demonstrations, config)
    return rows, sum(tally.dropped.values())


def encode_demonstrations(
    renderer: Renderer,
    demonstrations: Sequence[Demonstration],
    config: SFTConfig,
    unit: str = "demonstrations",
    key: str = "sft",
    positions: int | None = None,
    asked: array[int] | None = None,
) -> tuple[Sequence[Encoded], Tally]:
    """Rows with at least one supervised token, and the count of all; ``key`` is what messages call the settings,
    ``positions`` how many the base has; ``asked`` gets the ``number_of_prompt`` of each row.

    Raises:
        UserError: the template refuses a conversation; its file and line are named.
    """
    kept = labelled_store()
    tally = Tally(unit=unit, key=f"{key}.max_tokens", limit=config.max_tokens, room=positions, sign=renderer.unknown_id)
    for place, d in enumerate(each(demonstrations, f"rendering {unit}")):
        with located(d.prompt.source):
            row = renderer.conversation(
                d.prompt.messages, d.answer, d.finished, supervise=config.supervise, max_tokens=config.max_tokens
            )
        assert row.fitted is not None
        empty = all(label < 0 for label in row.labels)
        dropped = "no supervised token" if empty else ""
        tally.record([row.fitted], dropped, origin_of(demonstrations, place))
        if not empty:
            kept.append(row)
            if asked is not None:
                asked.append(number_of_prompt(d, config.supervise, place))
    return kept, tally


def make_trainer(
    context: StageContext,
    rows: Sequence[Encoded],
    config: SFTConfig,
    saved: State | None = None,
    role: str = "sft",
    key: str = "sft",
    name: str = "SFT",
    start: Start | None = None,
    make: Callable[..., Any] | None = None,
) -> Any:
    """TRL's trainer of the entered role, with nothing left to its own preparation.

    Args:
        context: of the stage.
        rows: to train on.
        config: the stage's settings.
        saved: where it resumes.
        role: that is entered.
        key, name: what messages call the settings and the training.
        start: where training starts, instead of ``saved``.
        make: another trainer than ``ResponseTrainer``.
    """
    from trl import SFTConfig as TrlConfig

    from stages.training.sft_trainer import ResponseTrainer

    base = context.base
    peft = base.adapters.peft
    model: Any = base.copies.get(role, base.lm if role in base.virtual_tokens else peft)
    if peft is not None:
        peft.active_adapter = role  # what PeftModel.forward asks for; the layers themselves are selected already
    settings = trainer_settings(context, config, len(rows), key)
    run = TrainingRun(context, config, key, name, base.parameters_of(role), start or Start(saved=saved))
    return (make or ResponseTrainer)(
        run,
        lm=base.copies.get(role, base.lm),
        fast=base.fast,
        batch_tokens=config.batch_tokens,
        model=model,
        args=on_one_device(
            TrlConfig(
                **settings,
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=None,
                packing=False,
                padding_free=False,
            )
        ),
        train_dataset=as_dataset(rows),
        processing_class=base.tokenizer,
        data_collator=lambda batch: collate(batch, context.pad_id),
    )


def as_dataset(rows: Sequence[Encoded]) -> Dataset:
    """Ids and labels as the trainer takes them; many lie in a file."""
    columns = ({"input_ids": r.ids, "labels": r.labels} for r in rows)
    if len(rows) <= IN_MEMORY:
        return Dataset.from_list(list(columns))
    file = new_file("dataset.arrow")
    with ArrowWriter(path=str(file), writer_batch_size=IN_MEMORY) as writer:
        for row in columns:
            writer.write(row)
        writer.finalize()
    made = Dataset.from_file(str(file))
    file.unlink()  # it stays as long as it is mapped
    return made


def collate(batch: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Right-padded ids (B, L), the mask from the lengths, labels -100 outside the supervised tokens."""
    ids, mask = right_pad([row["input_ids"] for row in batch], pad_id)
    labels, _ = right_pad([row["labels"] for row in batch], -100)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


@torch.no_grad()
def labelled_nll(
    base: SharedBase,
    role: str,
    rows: Sequence[Encoded],
    pad_id: int,
    batch: int = 32,
    progress: Callable[[int], None] = lambda rows: None,
    warn: Callable[[str], None] = warnings.warn,
) -> float | None:
    """Nats per supervised token over all rows (token mean, not a mean of batch means); None without rows.

    ``progress`` is called with each so many rows that are done; ``warn`` hears where memory runs out and fewer rows are
    read at once.
    """
    total, count, memory = 0.0, 0, OOMRetry("held-out rows at once", warn)
    with base.role(role) as view, memory.reporting(progress):

        def add(chosen: Sequence[int]) -> None:
            nonlocal total, count
            part = [{"input_ids": rows[i].ids, "labels": rows[i].labels} for i in chosen]
            ids, mask, labels = (t.to(base.device) for t in collate(part, pad_id).values())
            logprobs, _ = supervised_logprobs(view, ids, mask, labels)
            total, count = total - logprobs.sum().item(), count + len(logprobs)

        memory.each(range(len(rows)), batch, add)
    return total / count if count else None
