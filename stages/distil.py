"""Distillation: a smaller model learns from the responses, or from the distributions, of a larger one.

Sequence-level (Kim & Rush 2016, https://arxiv.org/abs/1606.07947): the teacher responds to prompts, and the student is
trained on these responses as SFT is on demonstrations. By logits (Hinton et al. 2015): at every token of a response the
student's distribution is drawn to the teacher's by their forward KL.
"""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data.common.errors import UserError
from data.counting import Tally, log_row, share_warning, tell, warned
from data.records import Demonstration, Prompt
from data.template import Encoded, Renderer
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import generator
from models.hub.limits import check_rows
from models.roles.export import save_role
from models.roles.role_view import RoleView
from models.roles.shared_base import SharedBase
from models.sampling.fast import FastEngine
from models.sampling.generate import SamplingParams, generate, sampling_noise
from stages.distil_cost import BLOCK
from stages.safe_points.checkpoints import State
from stages.settings import DistilConfig
from stages.sft import collate, encode_demonstrations, held_out_curve, make_trainer
from stages.stage import StageContext, StageResult, prompt_rows, settings_of_copy
from stages.training.distil_losses import Loss, by_distributions, by_tokens, row_sums
from stages.training.hf_trainer import fit, training_session
from stages.training.training_run import Start

VERSION = 1
ROLE = "distilled"
FIX = "raise distil.max_new_tokens"
HELD_OUT_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model that is learnt from, on a base of its own.

    Attributes:
        name: for messages.
        base: that it stands on, which shares nothing with the student's.
        role: on it.
        renderer: how it is asked.
    """

    name: str
    base: SharedBase
    role: str
    renderer: Renderer

    @property
    def pad_id(self) -> int:
        """The padding id, or 0 where that is outside the embeddings."""
        pad = self.renderer.pad_id
        return pad if pad < self.base.lm.get_input_embeddings().weight.shape[0] else 0


def run(context: StageContext, config: DistilConfig, teacher: Teacher) -> StageResult:
    """Train the role ``distilled`` on the run's base; write its adapter alone."""
    prompts, held_out = context.corpus.prompts.train, context.corpus.prompts.held_out[: config.held_out_prompts]
    prompts = prompts[: config.prompts]
    if not prompts and config.responses == "teacher":
        raise UserError("data.prompts: distil asks the teacher for responses to training prompts, and there are none")
    if config.loss == "logits":
        check_tokenizers(context.renderer.tokenizer, teacher, context.base.name)

    saved = context.checkpoints.resume()
    if config.responses == "teacher":
        said = responses_of(context, config, teacher, [*prompts, *held_out], saved)
        sampled = said.counts(config.max_new_tokens)
        cut = share_warning(said.unfinished, len(said.finished), "responses were cut at the limit", FIX)
        if cut:  # now: there is time to stop before the student learns them
            context.warn(f"distillation: {cut}")
        context.log.note(log_row(sampled, "sampled"))
        shown, held_out_shown = said.demonstrations[: len(prompts)], said.demonstrations[len(prompts) :]
    else:
        said, sampled, cut = Said([], [], []), {}, ""
        shown = list(context.corpus.demonstrations.train)
        held_out_shown = list(context.corpus.demonstrations.held_out)
    shown_rows = student_rows(context, config, shown, held_out_shown)

    base, rows, held_out_rows = context.base, shown_rows.rows, shown_rows.held_out
    start = "sft" if "sft" in base.roles and config.init == "sft" else None
    base.add_role(ROLE, settings_of_copy(context, ROLE, start), copy_of=start, seed=context.seed)
    with (
        teacher.base.role(teacher.role) as view,
        base.training(ROLE),
        base.role(ROLE) as student,
        training_session(context, base, ROLE, "distil"),
    ):
        loss = by_tokens if config.loss == "sequence" else by_distributions(view, config.temperature)
        before = agreement(context, student, loss, held_out_rows)
        trainer = trainer_of(context, config, loss, rows, said, saved)
        trainer.training_run.follow(
            held_out_curve(
                context, config, rows, held_out_rows, shown_rows.held_out_asked, ROLE, "distil", "distillation"
            )
        )
        steps = fit(trainer)
        after = agreement(context, student, loss, held_out_rows)
    curve = trainer.training_run.curve

    save_role(base, ROLE, context.out, main=context.processes.is_main)
    if context.processes.is_main:
        shutil.rmtree(context.out / "trainer", ignore_errors=True)
    tallies = (shown_rows.tally, shown_rows.held_out_tally)
    return StageResult(
        metrics={
            "teacher_fingerprint": teacher.base.fingerprint,
            "rows": len(rows),
            "dropped": sum(shown_rows.tally.dropped.values()),
            **({"sampled": sampled} if sampled else {}),
            "counts": shown_rows.tally.as_dict(),
            "held_out_counts": shown_rows.held_out_tally.as_dict(),
            **warned(cut, *(tally.warning() for tally in tallies), curve.warning() if curve else ""),
            "supervised_tokens": sum(sum(x >= 0 for x in r.labels) for r in rows),
            "agreement_before": before,
            "agreement": after,
            "steps": trainer.training_run.start.steps + steps,  # as plan and bar count: blocks of responses first
            "skipped_steps": trainer.training_run.skipped,
            **({"held_out_curves": {ROLE: curve.summary()}} if curve else {}),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRows:
    """Responses as ids of the student, to be trained on and held out, and what was cut or dropped of either;
    ``held_out_asked`` are numbers of the held-out rows' prompts."""

    rows: Sequence[Encoded]
    held_out: Sequence[Encoded]
    tally: Tally
    held_out_tally: Tally
    held_out_asked: Sequence[int] = ()


def student_rows(
    context: StageContext, config: DistilConfig, shown: Sequence[Demonstration], held_out: Sequence[Demonstration]
) -> StudentRows:
    """Render the responses for the student, and say what became of them.

    Raises:
        UserError: none of them has a token to learn from, or one is too long for the base.
    """
    room = context.base.limits.positions
    rows, tally = encode_demonstrations(context.renderer, shown, config, "responses", "distil", room)
    asked = array("Q")
    others, others_tally = encode_demonstrations(
        context.renderer, held_out, config, "held-out responses", "distil", room, asked
    )
    tell(tally, "distillation", context.say, context.warn)
    tell(others_tally, "distillation", context.say, context.warn)
    if not rows:
        raise UserError("distil: no response has a token to learn from")
    context.log.note(log_row(tally.as_dict()) | log_row(others_tally.as_dict(), "held_out"))
    check_rows(context.base.limits, (r.ids for r in rows), "distil", "lower distil.max_tokens", context.warn)
    return StudentRows(rows=rows, held_out=others, tally=tally, held_out_tally=others_tally, held_out_asked=asked)


def check_tokenizers(mine: Any, teacher: Teacher, base: str) -> None:
    """Distributions are compared token by token, so both models need the same vocabulary.

    Raises:
        UserError: theirs differ.
    """
    own, its = mine.get_vocab(), teacher.renderer.tokenizer.get_vocab()
    differ = sorted(t for t in own.keys() | its.keys() if own.get(t) != its.get(t))
    if differ:
        raise UserError(
            f"distil.loss: 'logits' compares distributions token by token, and the teacher {teacher.name} has another "
            f"tokenizer than base {base} ({len(differ):,} tokens differ, the first is {differ[0]!r}): use 'sequence'"
        )


@dataclass
class Said:
    """Responses of the teacher so far, in the order of the prompts."""

    prompts: Sequence[Prompt]
    ids: list[list[int]]
    finished: list[bool]
    texts: Sequence[str] = ()

    @property
    def unfinished(self) -> int:
        """Responses that the limit has cut."""
        return len(self.finished) - sum(self.finished)

    def counts(self, limit: int) -> dict[str, int]:
        """How many there are, how many were cut, and at which limit of tokens."""
        return {"responses": len(self.finished), "unfinished": self.unfinished, "limit": limit}

    @property
    def demonstrations(self) -> list[Demonstration]:
        """The responses as SFT takes them."""
        parts = zip(self.prompts, self.texts, self.finished, strict=True)
        return [Demonstration(prompt=p, answer=text, finished=done) for p, text, done in parts]

    def tensors(self) -> dict[str, Tensor]:
        """For checkpoints: ids one after another, with their lengths."""
        return {
            "responses/ids": torch.tensor([i for ids in self.ids for i in ids], dtype=torch.int32),
            "responses/lengths": torch.tensor([len(ids) for ids in self.ids], dtype=torch.int32),
            "responses/finished": torch.tensor(self.finished, dtype=torch.bool),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """What a checkpoint has of them."""
        lengths = tensors["responses/lengths"].tolist()
        self.ids = [part.tolist() for part in tensors["responses/ids"].split(lengths)] if lengths else []
        self.finished = tensors["responses/finished"].tolist()


def responses_of(
    context: StageContext, config: DistilConfig, teacher: Teacher, prompts: Sequence[Prompt], saved: State | None
) -> Said:
    """The teacher's response to each prompt: its most probable tokens, or a sample.

    Random numbers belong to rows: each process samples its share of a batch's rows with their part of the batch's
    table, so that responses do not depend on the number of processes.
    """
    queries = prompt_rows(teacher.renderer, prompts)
    room, places = config.max_new_tokens, [p.source for p in prompts]
    cure = "lower distil.max_new_tokens, or leave out the longest prompts"
    check_rows(teacher.base.limits, queries, "data.prompts", cure, context.warn, room, places)
    said, memory = Said(prompts, [], []), OOMRetry("distil.sampling_batch", context.warn_alone)
    if saved is not None:
        said.restore(saved.tensors)
    params = SamplingParams(
        max_new_tokens=room,
        temperature=config.sampling_temperature or 1.0,
        stop_ids=teacher.renderer.stop_ids,
        pad_id=teacher.pad_id,
    )
    with teacher.base.role(teacher.role) as role:
        for first in range(len(said.ids), len(queries), BLOCK):
            part = queries[first : first + BLOCK]
            mine = list(context.processes.share(len(part)))
            table = sampling_noise(len(part), room, generator(context.seed, "distil/responses", first))
            noise = table[mine] if config.sampling_temperature else None
            own = [part[i] for i in mine]
            batch = config.sampling_batch
            work = partial(generate, FastEngine(), role, own, noise=noise, batch=batch, params=params, memory=memory)
            made = context.processes.together(work)
            new = context.processes.gather(list(zip(made.ids, made.finished, strict=True)))
            said.ids += [ids for ids, _ in new]
            said.finished += [finished for _, finished in new]
            done = -(-len(said.ids) // BLOCK)
            context.bar.advance(done, {}, sum(len(ids) for ids, _ in new))
            context.checkpoints.safe_point(done, lambda: State(tensors=said.tensors()))
    return replace(said, texts=[teacher.renderer.text(ids) for ids in said.ids])


def trainer_of(
    context: StageContext, config: DistilConfig, loss: Loss, rows: Sequence[Encoded], said: Said, saved: State | None
) -> Any:
    """SFT's trainer with the loss by the teacher; its checkpoints hold the responses as well."""
    from stages.training.distil_trainer import DistilTrainer

    sampled = -(-len(said.ids) // BLOCK)
    trained = saved if saved is not None and "trainer" in saved.numbers else None
    return make_trainer(
        context,
        rows,
        config,
        role=ROLE,
        key="distil",
        name="distillation",
        start=Start(steps=sampled, saved=trained, kept=said.tensors() if said.ids else {}),
        make=partial(DistilTrainer, loss=loss),
    )


def agreement(context: StageContext, student: RoleView, loss: Loss, rows: Sequence[Encoded]) -> float | None:
    """Share of held-out tokens of which both hold the same for the most probable; None without any."""
    right, count, memory = 0.0, 0.0, OOMRetry("held-out rows at once", context.warn_alone)
    if not rows:
        return None

    def add(chosen: Sequence[int]) -> None:
        nonlocal right, count
        part = [{"input_ids": rows[i].ids, "labels": rows[i].labels} for i in chosen]
        ids, mask, labels = (t.to(context.base.device) for t in collate(part, context.pad_id).values())
        _, agree, tokens = row_sums(loss, student, ids, mask, labels)
        right, count = right + float(agree.sum()), count + float(tokens.sum())

    with memory.reporting(context.bar.phase("held-out responses", len(rows))):
        memory.each(range(len(rows)), HELD_OUT_BATCH, add)
    return right / count if count else None
