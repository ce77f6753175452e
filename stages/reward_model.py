"""The reward model: a role with a scalar head, trained on rankings of k responses.

Each response is encoded once, however many pairs it is in (Ouyang et al. 2022).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from data.common.errors import UserError
from data.counting import Tally, log_row, tell, warned
from data.records import RankedAnswers
from data.splits import in_holdout
from data.storage.views import Chain, View
from models.backbone.artifacts import write_json
from models.backbone.seeds import derived_seed
from models.backbone.trained_shards import whole_tensor
from models.hub.limits import check_rows
from reward.card import examine as reward_card
from reward.card.accuracy import pair_accuracy, pair_outcomes
from reward.card.scored_once import ScoredOnce
from reward.files import HOLDOUT, member_role, save_reward
from reward.model import RewardModel
from reward.tables import POOLINGS
from stages.safe_points.checkpoints import State
from stages.safe_points.training_state import restore_training
from stages.settings import RewardConfig
from stages.stage import StageContext, StageResult, settings_of_copy
from stages.training.calibration import calibrated, calibration_responses
from stages.training.held_out_curve import require_held_out
from stages.training.ranking_rows import EncodedRanking, encode_rankings
from stages.training.ranking_trainer import Trained, fit, name_of
from stages.training.training_run import Start

VERSION = 20
HOLDOUT_COUNTS = "holdout_counts"


def run(context: StageContext, config: RewardConfig) -> StageResult:
    """Train the ``reward`` role (or an ensemble) and perhaps a held-out model; set their means to 0, examine, write."""
    mine, holdout_rankings = split_holdout(context.corpus.rankings.train, config.holdout)
    train, held_out, tallies = encode_all(context, mine, config)
    members = {member_role("reward", i): train for i in range(config.ensemble)}
    held_back: dict[str, Sequence[EncodedRanking]] = {}
    if config.holdout:
        held_back[HOLDOUT], tallies[HOLDOUT_COUNTS] = encode_held_back(context, holdout_rankings, config)
    note_counts(context, tallies)
    require_held_out(config, "reward", "rankings", len(held_out))
    done = train_all(context, members | held_back, config, held_out)

    queries, answers, source = calibration_responses(context, train, config)
    model, samples = calibrated(context, config, list(members), queries, answers)
    holdout_model = calibrated(context, config, [HOLDOUT], queries, answers)[0] if held_back else None
    holdout_scored = ScoredOnce(model=holdout_model, phase=context.bar.phase) if holdout_model else None
    write(context, model, holdout_model)

    scored = ScoredOnce(model=model, phase=context.bar.phase)
    rows, given = examined_rankings(context, train, held_out, config)
    found = evaluate_rankings(scored, rows)
    card = write_card(context, scored, given, samples, source, config.negatives)
    return StageResult(
        metrics={
            "rankings": len(train),
            "dropped": sum(tallies["counts"].dropped.values()),
            **({"negatives": sum(row.made for row in train)} if config.negatives else {}),
            **{name: tally.as_dict() for name, tally in tallies.items()},
            **warned(*(tally.warning() for tally in tallies.values()), *done.warnings),
            "held_out_rankings": len(held_out),
            "held_out_examined": len(rows),
            "steps": done.steps,
            "skipped_steps": done.skipped,
            **({"held_out_curves": done.curves} if done.curves else {}),
            "score_mean": model.score_mean,
            "score_std": model.score_std,
            "centred_on": source,
            "probe": reference_score(model, train),
            **found,
            **(
                {"watcher": {"rankings": len(held_back[HOLDOUT]), **evaluate_rankings(holdout_scored, rows)}}
                if holdout_scored
                else {}
            ),
            "report_card": reward_card.summary(card),
        }
    )


def encode_all(
    context: StageContext, rankings: Sequence[RankedAnswers], config: RewardConfig
) -> tuple[Sequence[EncodedRanking], Sequence[EncodedRanking], dict[str, Tally]]:
    """Training rankings, which each member of an ensemble sees, and held-out ones; and the counts of both.

    Raises:
        UserError: there is nothing to learn from, a row does not fit the base, or a margin has no scores to stand on.
    """
    positions = context.base.limits.positions
    train, tally = encode_rankings(context.renderer, rankings, config, positions=positions, negatives=config.negatives)
    given = context.corpus.rankings.held_out
    held_out, held_out_tally = encode_rankings(context.renderer, given, config, "held-out rankings", positions)
    if not train:
        why = f": {tally.warning() or tally.summary()}" if tally.rows else ""
        raise UserError(
            f"data.rankings: no ranking has two distinct responses of different rank; nothing to learn{why}"
        )
    ids = (q + a for r in Chain(train, held_out) for q, a in zip(r.queries, r.responses, strict=True))
    check_rows(context.base.limits, ids, "data.rankings", "lower reward.max_tokens", context.warn)
    if config.margin and all(row.scores is None for row in train):
        raise UserError("reward.margin: needs rankings with scores, whose differences it is; set it to 0")
    return train, held_out, {"counts": tally, "held_out_counts": held_out_tally}


def note_counts(context: StageContext, tallies: Mapping[str, Tally]) -> None:
    """Report what is cut and dropped, to the terminal and to the metrics file."""
    for name, tally in tallies.items():
        tell(tally, "reward model", context.say, context.warn)
        context.log.note(log_row(tally.as_dict(), name.removesuffix("counts").rstrip("_")))


def encode_held_back(
    context: StageContext, rankings: Sequence[RankedAnswers], config: RewardConfig
) -> tuple[Sequence[EncodedRanking], Tally]:
    """The rankings that the held-out reward model learns from, and the count of its share.

    Raises:
        UserError: there are none, or one does not fit the base.
    """
    unit, positions = "rankings of the held-out reward model", context.base.limits.positions
    kept, tally = encode_rankings(context.renderer, rankings, config, unit, positions, config.negatives)
    if not kept:
        why = f" ({tally.summary()})" if tally.rows else ""
        raise UserError(f"reward.holdout: no training ranking of this share can be used{why}; raise it, or set 0")
    ids = (q + a for r in kept for q, a in zip(r.queries, r.responses, strict=True))
    check_rows(context.base.limits, ids, "data.rankings", "lower reward.max_tokens", context.warn)
    return kept, tally


def write(context: StageContext, model: RewardModel, holdout_model: RewardModel | None) -> None:
    """The files of the reward model and of the held-out one, by the main process."""
    main = context.processes.is_main
    save_reward(model, context.out, main)
    if holdout_model is not None:
        save_reward(holdout_model, context.out / HOLDOUT, main)
    if main:
        shutil.rmtree(context.out / "trainer", ignore_errors=True)


def split_holdout(
    rankings: Sequence[RankedAnswers], share: float
) -> tuple[Sequence[RankedAnswers], Sequence[RankedAnswers]]:
    """Rankings of the reward model, and those of the held-out one: no prompt is in both."""
    if not share:
        return rankings, []
    out = np.fromiter((in_holdout(ranking.prompt.group, share) for ranking in rankings), bool)
    return View(rankings, np.flatnonzero(~out)), View(rankings, np.flatnonzero(out))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainings:
    """Trainings of several models together: optimizer steps, how many were skipped, and what held-out rows showed."""

    steps: int = 0
    skipped: int = 0
    curves: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: State) -> Trainings:
        """Those that were finished when a checkpoint was saved."""
        numbers = saved.numbers
        return cls(steps=numbers["offset"], skipped=numbers["skipped_before"], curves=numbers.get("curves", {}))

    def with_one(self, role: str, trained: Trained) -> Trainings:
        """The same and one more training, of ``role``."""
        found = trained.curve.summary() if trained.curve is not None else None
        return Trainings(
            steps=self.steps + trained.steps,
            skipped=self.skipped + trained.skipped,
            curves=self.curves if found is None else {**self.curves, role: found},
        )

    @property
    def warnings(self) -> list[str]:
        """Sentences about roles that learnt nothing on held-out rows."""
        return [f"{name_of(role)}: {curve['text']}" for role, curve in self.curves.items() if curve["learnt"] is False]


def train_all(
    context: StageContext,
    roles_rankings: Mapping[str, Sequence[EncodedRanking]],
    config: RewardConfig,
    held_out: Sequence[EncodedRanking] = (),
) -> Trainings:
    """Train one role after another, each with its own seed.

    Roles start alike (the SFT adapter, or an identity) but for their heads; they see their rankings in other orders.
    """
    saved = context.checkpoints.resume()
    current = saved.numbers.get("part", 0) if saved is not None else 0  # the role that was being trained
    finished: dict[str, Tensor] = {}
    done = Trainings()
    for number, (role, rows) in enumerate(roles_rankings.items()):
        seed = context.seed if number == 0 else derived_seed(context.seed, f"reward/{role}")
        tensors = add_untrained(context, config, role, seed)
        if saved is not None and number < current:
            restore_training(tensors, [], {k.removeprefix(f"done/{role}/"): v for k, v in saved.tensors.items()})
        else:
            resumed = saved if number == current else None
            if resumed is not None:
                done = Trainings.of(resumed)
            start = Start(
                number=number,
                steps=done.steps,
                skipped=done.skipped,
                weights=dict(finished),
                curves=done.curves,
                saved=resumed,
            )
            done = done.with_one(role, fit(replace(context, seed=seed), rows, config, role, start, held_out))
        finished |= {f"done/{role}/weights/{n}": whole_tensor(p, p).detach().clone() for n, p in tensors.items()}
    return done


def add_untrained(context: StageContext, config: RewardConfig, role: str, seed: int) -> dict[str, nn.Parameter]:
    """A reward role before its training: the SFT adapter (or an identity) and a fresh head; its tensors by name."""
    base = context.base
    start = "sft" if "sft" in base.roles and config.init == "sft" else None
    base.add_role(role, settings_of_copy(context, role, start), copy_of=start, head=True, seed=seed)
    if POOLINGS[config.pooling].attention:
        base.heads[role].add_attention()  # type: ignore[operator]
    return base.parameters_of(role)


def examined_rankings(
    context: StageContext, train: Sequence[EncodedRanking], held_out: Sequence[EncodedRanking], config: RewardConfig
) -> tuple[Sequence[EncodedRanking], Sequence[RankedAnswers]]:
    """The held-out rankings that are scored, as ids and as they were given; the user is told where they are a part."""
    given = context.corpus.rankings.held_out
    chosen = reward_card.examined(given, round(len(train) * config.epochs))
    if len(chosen) == len(given):
        return held_out, given
    context.say(
        f"reward model: examined {len(chosen):,} of {len(given):,} held-out rankings, evenly spaced, in proportion to "
        "its training"
    )
    return encode(context, chosen, config)[0], chosen


def write_card(
    context: StageContext,
    scored: ScoredOnce,
    held_out: Sequence[RankedAnswers],
    samples: Tensor,
    source: str,
    negatives: Sequence[str] = (),
) -> dict[str, Any]:
    """``report_card.json`` on these held-out rankings, and what is in it; ``negatives`` are those of training."""
    given, scores = context.corpus.rankings, samples.tolist()
    card = reward_card.examine(
        scored,
        given.train,
        held_out,
        of=len(given.held_out),
        samples=scores,
        sampled_from=source,
        seed=context.seed,
    )
    if card and negatives:
        card |= {"negatives": list(negatives)}
    if context.processes.is_main:
        write_json(context.out / reward_card.FILE, card, sort_keys=False)
    return card


def encode(
    context: StageContext, rankings: Sequence[RankedAnswers], config: RewardConfig
) -> tuple[Sequence[EncodedRanking], int]:
    """Ids of every ranking that is used, and how many are dropped; see ``encode_rankings``."""
    kept, tally = encode_rankings(context.renderer, rankings, config)
    return kept, sum(tally.dropped.values())


def reference_score(model: RewardModel, rows: Sequence[EncodedRanking]) -> dict[str, Any]:
    """One short training response and its score: what PPO's self-check expects of the loaded model."""
    pairs = [(q, a) for r in rows for q, a in zip(r.queries, r.responses, strict=True)]
    query, response = min(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    return {"query": query, "response": response, "score": model.score_ids([query], [response]).item()}


def evaluate_rankings(scored: ScoredOnce, rows: Sequence[EncodedRanking]) -> dict[str, Any]:
    """Held-out pair accuracy with its interval, and the share of pairs where the longer response is the better one."""
    if not rows:
        return {"pair_accuracy": None, "pairs": 0}
    queries, responses = [q for r in rows for q in r.queries], [a for r in rows for a in r.responses]
    flat = scored.score_ids(queries, responses, reward_card.HELD_OUT_ROWS).tolist()
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
