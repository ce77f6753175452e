"""The reward model: a role with a scalar head, trained on rankings of k answers.

Each answer is encoded once, however many pairs it is in (Ouyang et al. 2022). Runs on Transformers' trainer with our
collator (one row is one ranking) and loss.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from data.common.errors import UserError
from data.counting import warned
from data.records import RankedAnswers
from data.splits import is_held_out
from models.backbone.artifacts import write_json
from models.backbone.logprobs import Rows, make_rows
from models.backbone.seeds import derived_seed, generator
from models.hub.limits import check_rows
from models.roles.shared_base import RoleView
from models.sampling.fast import FastEngine
from models.sampling.generate import generate, sampling_noise
from reward.card import examine as reward_card
from reward.card.accuracy import pair_accuracy, pair_outcomes
from reward.files import HOLDOUT, member_role, save_reward
from reward.losses import pair_counts, ranking_losses
from reward.model import Member, RewardModel, pooled, pooled_scores
from reward.shared_prompt import can_share, shared_states
from stages.safe_points.checkpoints import State, restore_training
from stages.settings import RewardConfig
from stages.stage import StageContext, StageResult
from stages.training import hf_trainer as trainers
from stages.training.hf_trainer import ProgressCallback, Resumable, on_one_device, trainer_settings, training_session
from stages.training.micro_batches import of_rankings, some_rankings
from stages.training.prompt_sampler import OnePromptAStep
from stages.training.ranking_rows import EncodedRanking, encode_rankings

VERSION = 15


def run(context: StageContext, config: RewardConfig) -> StageResult:
    """Train the ``reward`` role (or an ensemble) and perhaps a watcher, centre, measure and write them."""
    mine, holdout_rankings = split_holdout(context.corpus.rankings.train, config.holdout)
    train, tally = encode_rankings(context.renderer, mine, config)
    if text := tally.warning() or tally.summary():
        (context.warn if tally.warning() else context.say)(f"reward model: {text}")
    held_out, _ = encode(context, context.corpus.rankings.held_out, config)
    if not train:
        why = f": {tally.warning() or tally.summary()}" if tally.rows else ""
        raise UserError(f"data.rankings: no ranking has two different answers of different rank; nothing to learn{why}")
    ids = [q + a for r in (*train, *held_out) for q, a in zip(r.queries, r.responses, strict=True)]
    check_rows(context.base.limits, ids, "data.rankings", "lower reward.max_tokens", context.warn)
    if config.margin and all(row.scores is None for row in train):
        raise UserError("reward.margin: needs rankings with scores, whose differences it is; set it to 0")
    roles_rankings = {member_role("reward", i): train for i in range(config.ensemble)}
    if config.holdout:
        roles_rankings[HOLDOUT], _ = encode(context, holdout_rankings, config)
        if not roles_rankings[HOLDOUT]:
            raise UserError("reward.holdout: none of the training rankings falls into this share; raise it, or set 0")
    steps, skipped = train_all(context, roles_rankings, config)
    queries, answers, source = calibration_responses(context, train, config)
    model, samples = calibrated(context, config, list(roles_rankings)[: config.ensemble], queries, answers)
    holdout_model = calibrated(context, config, [HOLDOUT], queries, answers)[0] if config.holdout else None
    if context.processes.is_main:
        save_reward(model, context.out)
        if holdout_model is not None:
            save_reward(holdout_model, context.out / HOLDOUT)
        shutil.rmtree(context.out / "trainer", ignore_errors=True)
    found = evaluate_rankings(model, held_out)
    card = write_card(context, model, samples, source)
    return StageResult(
        metrics={
            "rankings": len(train),
            "dropped": sum(tally.dropped.values()),
            "counts": tally.as_dict(),
            **warned(tally.warning()),
            "held_out_rankings": len(held_out),
            "steps": steps,
            "skipped_steps": skipped,
            "score_mean": model.score_mean,
            "score_std": model.score_std,
            "centred_on": source,
            "probe": reference_score(model, train),
            **found,
            **(
                {"watcher": {"rankings": len(roles_rankings[HOLDOUT]), **evaluate_rankings(holdout_model, held_out)}}
                if holdout_model
                else {}
            ),
            "report_card": reward_card.summary(card),
        }
    )


def split_holdout(rankings: Sequence[RankedAnswers], share: float) -> tuple[list[RankedAnswers], list[RankedAnswers]]:
    """Rankings of the reward model, and those of the watcher: no prompt is in both."""
    out: tuple[list[RankedAnswers], list[RankedAnswers]] = ([], [])
    for ranking in rankings:
        out[is_held_out(f"watcher/{ranking.prompt.group}", share)].append(ranking)
    return out


def train_all(
    context: StageContext, roles_rankings: Mapping[str, Sequence[EncodedRanking]], config: RewardConfig
) -> tuple[int, int]:
    """Train one role after another, each with its own seed; returns all steps, and how many of them were skipped.

    Roles start alike (the SFT adapter, or an identity) but for their heads; they see their rankings in other orders.
    """
    base, saved = context.base, context.checkpoints.resume()
    at = saved.numbers.get("part", 0) if saved is not None else 0
    before: dict[str, Tensor] = {}
    steps = skipped = 0
    for number, (role, rows) in enumerate(roles_rankings.items()):
        seed = context.seed if number == 0 else derived_seed(context.seed, f"reward/{role}")
        start = "sft" if "sft" in base.roles and config.init == "sft" else None
        base.add_role(role, context.adapter, copy_of=start, head=True, seed=seed)
        if config.pooling == "learned":
            base.heads[role].add_attention()  # type: ignore[operator]
        tensors = base.parameters_of(role)
        if saved is not None and number < at:
            restore_training(tensors, [], {k.removeprefix(f"done/{role}/"): v for k, v in saved.tensors.items()})
        else:
            if saved is not None and number == at:
                steps, skipped = saved.numbers["offset"], saved.numbers["skipped_before"]
            resume = ResumePoint(number, steps, skipped, before, saved if number == at else None)
            more = fit(replace(context, seed=seed), rows, config, role, resume)
            steps, skipped = steps + more[0], skipped + more[1]
        before |= {f"done/{role}/weights/{n}": p.detach().clone() for n, p in tensors.items()}
    return steps, skipped


def calibrated(
    context: StageContext,
    config: RewardConfig,
    roles: Sequence[str],
    queries: Sequence[list[int]],
    answers: Sequence[list[int]],
) -> tuple[RewardModel, Tensor]:
    """The trained roles as a reward model whose mean score of these answers is 0, and the scores (float64)."""
    settings: dict[str, Any] = {"base": context.base, "renderer": context.renderer, "pooling": config.pooling}
    settings["max_tokens"] = config.max_tokens

    def moments(model: RewardModel) -> tuple[Tensor, float, float]:
        samples = model.raw_scores(queries, answers).double()
        score_mean, score_std = samples.mean().item(), samples.std().item() if len(samples) > 1 else 1.0
        return samples, score_mean, score_std

    members = []
    for role in roles:
        samples, score_mean, score_std = moments(RewardModel(role=role, **settings))
        members.append(Member(role=role, score_mean=score_mean, score_std=score_std))
    if len(roles) > 1:
        settings |= {
            "members": tuple(members),
            "combine": config.combine,
            "uncertainty_penalty": config.uncertainty_penalty,
        }
        samples, score_mean, score_std = moments(RewardModel(role=roles[0], **settings))
    return RewardModel(role=roles[0], score_mean=score_mean, score_std=score_std, **settings), samples - score_mean


def write_card(context: StageContext, model: RewardModel, samples: Tensor, source: str) -> dict[str, Any]:
    """``report_card.json``, and what is in it."""
    given, scores = context.corpus.rankings, samples.tolist()
    card = reward_card.examine(
        model, given.train, given.held_out, samples=scores, sampled_from=source, seed=context.seed
    )
    if context.processes.is_main:
        write_json(context.out / reward_card.FILE, card, sort_keys=False)
    return card


def encode(
    context: StageContext, rankings: Sequence[RankedAnswers], config: RewardConfig
) -> tuple[list[EncodedRanking], int]:
    """Ids of every ranking that is used, and how many are dropped; see ``encode_rankings``."""
    kept, tally = encode_rankings(context.renderer, rankings, config)
    return kept, sum(tally.dropped.values())


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where one of several models begins: its number, steps, skipped ones and weights before it, and its own state."""

    number: int = 0
    steps: int = 0
    skipped: int = 0
    before: Mapping[str, Tensor] = field(default_factory=dict)
    saved: State | None = None


def fit(
    context: StageContext,
    rows: Sequence[EncodedRanking],
    config: RewardConfig,
    role: str = "reward",
    resume: ResumePoint = ResumePoint(),
) -> tuple[int, int]:
    """Train a role's adapter and head; returns the numbers of its optimizer steps, and of those that were skipped."""
    base = context.base
    session = training_session(context, base, role, "reward")
    with base.training(role) as trainable, base.role(role) as view, session:
        head = {id(p) for p in base.heads[role].parameters()}
        rate = config.learning_rate
        head_rate = rate if config.head_learning_rate is None else config.head_learning_rate
        groups = [
            {"params": [p for p in trainable.values() if id(p) not in head], "lr": rate},
            {"params": [p for p in trainable.values() if id(p) in head], "lr": head_rate, "weight_decay": 0.0},
        ]
        trainer = RankingTrainer(
            model=RewardModule(view, config.pooling),
            args=on_one_device(TrainingArguments(**trainer_settings(context, config, len(rows), "reward"))),
            train_dataset=list(rows),  # type: ignore[arg-type]
            data_collator=lambda batch: collate(batch, context.pad_id, config.margin > 0),
            callbacks=[ProgressCallback(context, "reward model")],
            optimizers=(torch.optim.AdamW(groups, lr=rate, weight_decay=config.weight_decay), None),
        )
        trainer.settings = config
        trainer.prepare(context, config, "reward")
        trainer.part, trainer.offset, trainer.before = resume.number, resume.steps, resume.before
        trainer.skipped_before = resume.skipped
        return trainers.fit(trainer, context, trainable, resume.saved), trainer.nonfinite.total


class RewardModule(nn.Module):
    """The entered reward role as one module, so that a trainer (and DDP) sees exactly what it trains."""

    def __init__(self, view: RoleView, pooling: str) -> None:
        super().__init__()
        assert view.head is not None
        self.lm, self.head, self.view, self.pooling = view.lm, view.head, view, pooling
        self.shares = can_share(view.lm)

    def forward(
        self, ids: Tensor, mask: Tensor, query_lengths: Tensor, response_lengths: Tensor, counts: Tensor
    ) -> Tensor:
        """Scores (N,) fp32, one a row; ``counts`` (B,) rows belong to each ranking, whose prompt is computed once."""
        rows = Rows(ids=ids, mask=mask, query_lengths=query_lengths, response_lengths=response_lengths)
        if not self.shares:
            return pooled_scores(self.view.hidden(ids, mask), self.head, rows, self.pooling)
        states = shared_states(self.view, rows, counts.tolist())
        return torch.stack([pooled(s, self.head, self.pooling) for s in states])


class RankingTrainer(Resumable, Trainer):
    """Transformers' trainer with the ranking loss, normalised by the rankings of the whole batch."""

    settings: RewardConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that `num_items_in_batch` counts the rankings of the batch
        self.tokens = 0  # of queries and answers in the last step

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
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
        losses = losses * inputs["weights"]
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / count * self.counted
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is global
        with torch.no_grad():
            right_and_all = torch.stack([x.sum() for x in pair_counts(table, ranks, present)])
            self.noted = self.noted + self.counted * right_and_all.cpu()
        return (loss, scores) if return_outputs else loss

    def _get_train_sampler(self, *given: Any) -> Any:
        prompts = [row.prompt or None for row in self.train_dataset]  # type: ignore[union-attr]
        order = OnePromptAStep(prompts, self.settings.batch, self.args.seed)
        return order if order.needed else super()._get_train_sampler(*given)

    def micro_batches_of(self, inputs: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
        return of_rankings(inputs, size)

    def share_of(self, inputs: dict[str, Tensor], rows: range) -> dict[str, Tensor]:
        return some_rankings(inputs, rows)

    def note_step(self, inputs: dict[str, Tensor], noted: Tensor) -> None:
        right, pairs = noted.tolist()
        self.accuracy, self.tokens = right / max(1.0, pairs), int(inputs["mask"].sum())

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and hasattr(self, "accuracy"):
            logs["pair_accuracy"] = self.accuracy
            logs["tokens"] = self.tokens
        super().log(logs, *args, **kwargs)


def collate(batch: Sequence[EncodedRanking], pad_id: int, with_margins: bool) -> dict[str, Tensor]:
    """Answers packed (N, L), and per ranking padded (B, K) ranks, presence and score differences."""
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


def calibration_responses(
    context: StageContext, train: Sequence[EncodedRanking], config: RewardConfig
) -> tuple[list[list[int]], list[list[int]], str]:
    """Queries and answers whose mean score becomes 0: SFT samples where there is an SFT model and prompts, otherwise
    training answers; and which of the two."""
    base, renderer = context.base, context.renderer
    prompts = context.corpus.prompts.train[: config.calibration_samples]
    if "sft" not in base.roles or not prompts:
        chosen = train[: config.calibration_samples]
        return [q for r in chosen for q in r.queries], [a for r in chosen for a in r.responses], "training answers"
    queries = [renderer.prompt_ids(p.messages) for p in prompts]
    longest = max(len(a) for r in train for a in r.responses)
    with base.role("sft") as role:
        made = generate(
            FastEngine(),
            role,
            queries,
            noise=sampling_noise(len(queries), longest, generator(context.seed, "reward/centre")),
            batch=128,
            max_new_tokens=longest,
            temperature=1.0,
            stop_ids=renderer.stop_ids,
            pad_id=renderer.pad_id,
        )
    return queries, made.ids, "sft samples"


def reference_score(model: RewardModel, rows: Sequence[EncodedRanking]) -> dict[str, Any]:
    """One short training answer and its score: what PPO's self-check expects of the loaded model."""
    pairs = [(q, a) for r in rows for q, a in zip(r.queries, r.responses, strict=True)]
    query, response = min(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    return {"query": query, "response": response, "score": model.score_ids([query], [response]).item()}


def evaluate_rankings(model: RewardModel, rows: Sequence[EncodedRanking]) -> dict[str, Any]:
    """Held-out pair accuracy with its interval, and the share of pairs where the longer answer is the better one."""
    if not rows:
        return {"pair_accuracy": None, "pairs": 0}
    flat = model.score_ids([q for r in rows for q in r.queries], [a for r in rows for a in r.responses]).tolist()
    scores, at = [], 0
    for r in rows:
        scores.append(flat[at : at + len(r.ranks)])
        at += len(r.ranks)
    ranks = [r.ranks for r in rows]
    found = pair_accuracy(scores, ranks)
    longer, _ = pair_outcomes([[float(len(a)) for a in r.responses] for r in rows], ranks)
    return {
        "pair_accuracy": found.estimate,
        "pair_accuracy_ci95": found.ci,
        "pairs": len(longer),
        "longer_is_better": float(longer.mean()),
    }
