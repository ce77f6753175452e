"""Ranked answers of the run's own: sample k answers a prompt from the SFT model and let an annotator score them.

The annotator is a Python function; Gumbel noise on its scores makes it a Plackett-Luce annotator (Luce 1959: the
order of score + Gumbel noise of scale s is a Plackett-Luce draw with utilities score / s).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data.common.errors import UserError
from data.common.user_functions import columns_of, load_function
from data.counting import share_warning, warned
from data.records import Message, Prompt, RankedAnswers, ranks_from_scores
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import derived_seed, generator
from models.sampling.fast import FastEngine
from models.sampling.generate import generate, uniforms_for
from stages.safe_points.checkpoints import State
from stages.settings import RankingsConfig
from stages.stage import StageContext, StageResult

VERSION = 7
FILE = "rankings.jsonl"
MEND = "raise rankings.max_new_tokens, or train longer by SFT so that answers end"


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
        mine = [prompts[i] for i in context.processes.share(len(prompts))]
        made = context.processes.gather(sample_and_rank(context, config, mine, split, done))
        rows += [row | {"split": split} for row, _ in made]
        agree += [share for _, share in made if share is not None]
    if context.processes.is_main:
        with (context.out / FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    scores = [s for row in rows for s in row["scores"]]  # type: ignore[attr-defined]
    ended = [f for row in rows for f in row["finished"]]  # type: ignore[attr-defined]
    unfinished = len(ended) - sum(ended)
    if told := share_warning(unfinished, len(ended), "sampled answers were cut at the limit", MEND):
        context.warn(f"rankings: {told}")
    return StageResult(
        metrics={
            "rankings": len(train),
            "held_out_rankings": len(held_out),
            "counts": {"answers": len(ended), "unfinished": unfinished, "limit": config.max_new_tokens},
            **warned(told),
            "annotator_mean": float(np.mean(scores)),
            "labels_agree_with_annotator": float(np.mean(agree)) if agree else None,
        }
    )


@dataclass
class Sampled:
    """Answers of one split so far; the next batch is sampled by its own generator."""

    answers: list[str] = field(default_factory=list)
    finished: list[bool] = field(default_factory=list)
    limit: int | None = None  # rows at once, where memory asked for less than the recipe


def captured(done: dict[str, Sampled]) -> State:
    return State(tensors={}, own_numbers={split: asdict(found) for split, found in done.items()})


def sample_and_rank(
    context: StageContext, config: RankingsConfig, prompts: Sequence[Prompt], split: str, done: dict[str, Sampled]
) -> list[tuple[dict[str, object], float | None]]:
    """One JSON row a prompt, and the share of its pairs on which noisy and true order agree."""
    annotator = load_function(config.annotator, context.recipe_folder)
    k = config.answers
    repeated = [p for p in prompts for _ in range(k)]
    purpose = f"rankings/{split}/{context.processes.rank}"
    queries = [context.renderer.prompt_ids(p.messages) for p in prompts for _ in range(k)]
    answers, finished = done[split].answers, done[split].finished
    memory = OOMRetry("rankings.batch", context.warn)
    memory.limit = done[split].limit
    with context.base.role("sft" if "sft" in context.base.roles else "base") as role:
        for start in range(len(answers), len(queries), config.batch * 4):
            part = queries[start : start + config.batch * 4]
            made = generate(
                FastEngine(),
                role,
                part,
                uniforms=uniforms_for(len(part), config.max_new_tokens, generator(context.seed, purpose, start)),
                batch=config.batch,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                stop_ids=context.renderer.stop_ids,
                pad_id=context.pad_id,
                memory=memory,
            )
            answers += [context.renderer.text(ids) for ids in made.ids]
            finished += made.finished
            done[split].limit = memory.limit
            context.bar.advance(len(answers), {}, sum(len(ids) for ids in made.ids))
            if context.processes.world == 1:  # shares differ by a row: others may have a batch less
                number = sum(len(d.answers) for d in done.values())
                context.checkpoints.safe_point(number, partial(captured, done))
    scores = context.processes.together(
        lambda: annotator.call(
            [p.text for p in repeated],
            answers,
            **columns_of(repeated),
            finished=finished,
        )
    )
    noise = np.random.default_rng(derived_seed(context.seed, purpose + "/noise")).gumbel(size=len(scores))
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
            messages = tuple(Message(role=m["role"], content=m["content"]) for m in row["prompt"])
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
