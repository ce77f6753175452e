"""Ranked responses of the run's own: sample k responses a prompt from the SFT model and let an annotator score them.

The annotator is a Python function; Gumbel noise on its scores makes it a Plackett-Luce annotator (Luce 1959: the
order of score + Gumbel noise of scale s is a Plackett-Luce sample with utilities score / s).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data.common.errors import StageError, UserError
from data.common.user_functions import columns_of, load_function
from data.counting import log_row, share_warning, warned
from data.records import Message, Prompt, RankedAnswers, ranks_from_scores
from models.backbone.artifacts import atomic_file
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import derived_seed, generator
from models.hub.limits import check_rows
from models.sampling.fast import FastEngine
from models.sampling.generate import generate, sampling_noise
from stages.remote_rollouts import rollout_servers
from stages.safe_points.checkpoints import State
from stages.settings import RankingsConfig
from stages.stage import StageContext, StageResult, prompt_rows

VERSION = 9
FILE = "rankings.jsonl"
FIX = "raise rankings.max_new_tokens, or train longer by SFT so that responses end"


def run(context: StageContext, config: RankingsConfig) -> StageResult:
    """Sample, annotate, rank and write ``rankings.jsonl`` (training and held-out prompts, marked)."""
    train = context.corpus.prompts.train[: config.prompts]
    held_out = context.corpus.prompts.held_out[: config.held_out_prompts]
    if not train:
        raise UserError("data.prompts: the rankings stage needs training prompts, and there are none")
    rows: list[dict[str, object]] = []
    agree = []
    saved = context.checkpoints.resume()
    done: dict[str, Sampled] = {"train": Sampled(), "held_out": Sampled()}
    if saved is not None:
        done = {split: Sampled(**found) for split, found in saved.own_numbers.items()}
    for split, prompts in (("train", train), ("held_out", held_out)):
        sample(context, config, prompts, split, done)
        for row, share in rank(context, config, prompts, split, done[split]):
            rows.append(row | {"split": split})
            agree += [share] if share is not None else []
    if context.processes.is_main:
        with atomic_file(context.out / FILE) as file:
            file.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    scores = [s for row in rows for s in row["scores"]]  # type: ignore[attr-defined]
    ended = [f for row in rows for f in row["finished"]]  # type: ignore[attr-defined]
    unfinished = len(ended) - sum(ended)
    if warning := share_warning(unfinished, len(ended), "sampled responses were cut at the limit", FIX):
        context.warn(f"rankings: {warning}")
    counts = {"answers": len(ended), "unfinished": unfinished, "limit": config.max_new_tokens}
    context.log.note(log_row(counts))
    context.log.write(len(ended), {"annotator_mean": float(np.mean(scores))})
    return StageResult(
        metrics={
            "rankings": len(train),
            "held_out_rankings": len(held_out),
            "counts": counts,
            **warned(warning),
            "annotator_mean": float(np.mean(scores)),
            "labels_agree_with_annotator": float(np.mean(agree)) if agree else None,
        }
    )


@dataclass
class Sampled:
    """Responses of one split so far, those of all processes; the next batch is sampled by its own generator."""

    answers: list[str] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    limit: int | None = None  # rows at once, where memory asked for less than the recipe


def snapshot(done: dict[str, Sampled]) -> State:
    """What a checkpoint holds: the responses so far."""
    return State(tensors={}, own_numbers={split: asdict(found) for split, found in done.items()})


def sample(
    context: StageContext, config: RankingsConfig, prompts: Sequence[Prompt], split: str, done: dict[str, Sampled]
) -> None:
    """``rankings.answers`` responses to each prompt into ``done[split]``, in the order of the prompts.

    Random numbers belong to rows: a batch's table is made whole, and each process samples its share of the rows with
    their part of it, so that responses do not depend on the number of processes.
    """
    asked = prompt_rows(context.renderer, prompts)
    room, cure = config.max_new_tokens, "lower rankings.max_new_tokens, or leave out the longest prompts"
    places = [p.source for p in prompts]
    check_rows(context.base.limits, asked, "data.prompts", cure, context.warn, room, places)
    queries = [ids for ids in asked for _ in range(config.answers)]
    found, memory = done[split], OOMRetry("rankings.batch", context.warn_alone)
    memory.limit = found.limit
    params = context.sampling(config.max_new_tokens, config.temperature)
    name = "sft" if "sft" in context.base.roles else "base"
    if (servers := rollout_servers(context)) is not None and len(found.answers) < len(queries):
        servers.check(max(map(len, queries)), config.max_new_tokens)
        servers.hand_over(name)
    with context.base.role(name) as role:
        for start in range(len(found.answers), len(queries), config.batch * 4):
            part = queries[start : start + config.batch * 4]
            rng = generator(context.seed, f"rankings/{split}/0", start)
            table = sampling_noise(len(part), config.max_new_tokens, rng)
            mine = list(context.processes.share(len(part)))
            own, noise = [part[i] for i in mine], table[mine]
            if servers is not None:
                try:
                    made = servers.respond(role, own, params, noise)
                    servers.verify(role, own, made, params)
                except StageError:
                    context.checkpoints.save_now(sum(len(d.answers) for d in done.values()), snapshot(done))
                    raise
            else:
                work = partial(
                    generate, FastEngine(), role, own, noise=noise, batch=config.batch, params=params, memory=memory
                )
                made = context.processes.together(work)
            new = context.processes.gather(list(zip(made.ids, made.finished, strict=True)))
            found.answers += [context.renderer.text(ids) for ids, _ in new]
            found.finished += [finished for _, finished in new]
            found.limit = memory.limit
            number = sum(len(d.answers) for d in done.values())
            context.bar.advance(number, {}, sum(len(ids) for ids, _ in new))
            context.checkpoints.safe_point(number, partial(snapshot, done))
    if servers is not None:
        servers.close()


def rank(
    context: StageContext, config: RankingsConfig, prompts: Sequence[Prompt], split: str, sampled: Sampled
) -> list[tuple[dict[str, object], float | None]]:
    """One JSON row a prompt, and the share of its pairs on which noisy and true order agree.

    The annotator is asked once, by the main process, for all responses.
    """
    annotator = load_function(config.annotator, context.recipe_folder)
    k, answers, finished = config.answers, sampled.answers, sampled.finished
    repeated = [p for p in prompts for _ in range(k)]
    scores = context.processes.on_main(
        lambda: annotator.call(
            [p.text for p in repeated],
            answers,
            **columns_of(repeated),
            finished=finished,
        )
    )
    noise = np.random.default_rng(derived_seed(context.seed, f"rankings/{split}/0/noise")).gumbel(size=len(scores))
    noisy = np.asarray(scores) + config.noise * noise
    out = []
    for i, prompt in enumerate(prompts):
        at = slice(i * k, (i + 1) * k)
        out.append(_row(prompt, answers[at], list(map(float, scores[at])), noisy[at].tolist(), finished[at]))
    return out


def _row(
    prompt: Prompt, answers: list[str], scores: list[float], noisy: list[float], finished: list[bool]
) -> tuple[dict[str, object], float | None]:
    row: dict[str, object] = {
        "prompt": [m.as_dict() for m in prompt.messages],
        "group": prompt.group,
        "category": prompt.category,
        "responses": answers,
        "scores": scores,
        "ranks": list(ranks_from_scores(noisy)),
        "finished": finished,
    }
    pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if scores[i] > scores[j]]
    right = [noisy[i] > noisy[j] for i, j in pairs]
    return row, sum(right) / len(right) if right else None


def read_rankings(folder: Path) -> tuple[list[RankedAnswers], list[RankedAnswers]]:
    """``(train, held_out)`` of a finished rankings stage."""
    out: dict[str, list[RankedAnswers]] = {"train": [], "held_out": []}
    with (folder / FILE).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            row = json.loads(line)
            messages = tuple(Message.from_dict(m) for m in row["prompt"])
            prompt = Prompt(messages=messages, group=row["group"], source=f"{FILE}:{number}", category=row["category"])
            out[row["split"]].append(
                RankedAnswers(
                    prompt=prompt,
                    answers=tuple(row["responses"]),
                    ranks=tuple(row["ranks"]),
                    scores=tuple(row["scores"]),
                    finished=tuple(row["finished"]),
                )
            )
    return out["train"], out["held_out"]
