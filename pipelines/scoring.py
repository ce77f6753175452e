"""``trivet score``: rewards of prompts and answers in a file, by the same path as in training and PPO."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data.errors import UserError
from data.records import Message, Prompt
from data.sources import DataConfig, load_records
from models.devices import Processes
from pipelines.opening import open_run, stage_folder

Scoring = Callable[[Sequence[Sequence[Message]], Sequence[str], Sequence[bool]], list[float]]


def load_scorer(run_or_model: Path | str) -> Scoring:
    """From conversations, answers and whether they ended to one number each.

    Raises:
        UserError: no run with a finished reward stage there.
    """
    pipeline = open_run(Path(run_or_model))
    folder = stage_folder(pipeline.run_dir, "reward")
    model = pipeline.bench.load_reward(folder)
    assert isinstance(pipeline.processes, Processes)
    return lambda asked, answers, finished: model.score_texts(asked, answers, finished).tolist()


def answers_in(file: Path) -> list[tuple[Prompt, str, bool]]:
    """Prompts and answers of a file of demonstrations or of rankings (each answer a row).

    Raises:
        UserError: the file holds neither.
    """
    config, folder = DataConfig(), file.parent
    try:
        ranked = load_records((file.name,), "rankings", config, seed=0, base_dir=folder)
        return [(r.prompt, a, f) for r in ranked.records for a, f in zip(r.answers, r.finished, strict=True)]
    except UserError as error:
        first = error
    try:
        shown = load_records((file.name,), "demonstrations", config, seed=0, base_dir=folder)
    except UserError as error:
        raise UserError(f"{error} (as rankings: {first})") from error
    return [(d.prompt, d.answer, d.finished) for d in shown.records]


def score_file(run_or_model: Path | str, file: Path | str, out: Path | str | None = None) -> int:
    """Write one JSON line an answer: ``{"prompt", "answer", "reward"}``; to ``out`` or standard output.

    Args:
        run_or_model: a run folder, or the reward stage's folder inside one.
        file: prompts and answers in any format that ``trivet data check`` knows.
        out: a JSONL file; by default standard output.

    Returns:
        The number of answers scored.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    rows = answers_in(file)
    score = load_scorer(run_or_model)
    rewards = score([p.messages for p, _, _ in rows], [a for _, a, _ in rows], [f for _, _, f in rows])

    def lines() -> Iterator[str]:
        for (prompt, answer, _), reward in zip(rows, rewards, strict=True):
            row = {"prompt": prompt.text, "answer": answer, "reward": round(reward, 6)}
            yield json.dumps(row, ensure_ascii=False) + "\n"

    if out is None:
        sys.stdout.writelines(lines())
    else:
        with Path(out).open("w", encoding="utf-8") as stream:
            stream.writelines(lines())
    return len(rows)
