"""``trivet score``: rewards of prompts and responses in a file, by the same path as in training and PPO."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.errors import RowError, UserError
from data.common.strict_json import read_object
from data.counting import MANY, NO_TOKEN, unknown_text
from data.local_files import why_absent
from data.records import Message, Prompt
from data.source_counts import Loaded
from data.source_settings import Source
from data.sources import DataConfig, load_records
from data.template import Renderer
from models.backbone.artifacts import atomic_file, check_destination, keep_previous
from models.backbone.processes import Processes
from models.hub.load import load_tokenizer
from models.roles.classifier import Classifier, is_classifier
from models.roles.files import CONFIG, HEAD, SCORING, new_tokens_of
from pipelines.run.open_run import open_run, stage_folder
from pipelines.workspace.run_folder import RUN, check_outside, run_of
from reward.files import load_reward
from reward.model import RewardModel, Samples
from reward.settings import RemoteConfig
from reward.terms.remote import RemoteReward

SHOWN = 5  # rejected rows that are named
Scoring = Callable[[Sequence[Sequence[Message]], Sequence[str], Sequence[bool]], list[float]]


def load_scorer(run_or_model: Path | str, label: str | None = None) -> Scoring:
    """From conversations, responses and whether they ended to one number each.

    Args:
        run_or_model: a run folder, or its reward stage; an exported reward adapter (or any LoRA adapter with our
            ``head.safetensors`` next to it); a Transformers folder for sequence classification; or the address of a
            scorer that speaks trivet's protocol.
        label: of a classifier with several labels, the one whose log-odds are the score.

    Raises:
        UserError: none of these is there.
    """
    if str(run_or_model).startswith(("http://", "https://")):
        return _remote(str(run_or_model))
    path = Path(run_or_model)
    if run_of(path) is not None:
        pipeline = open_run(path, stage="reward")
        return OfRewardModel(pipeline.loaded.load_reward(stage_folder(pipeline, "reward")))
    if (path / CONFIG).is_file():
        return OfRewardModel(exported_reward(path))
    if is_classifier(path):
        return Classifier(path, Processes("auto").device, label)
    raise UserError(
        f"{path}: neither a run ({RUN}), nor a reward adapter ({CONFIG} and {HEAD}), nor a Transformers folder "
        "for sequence classification, nor an address (http://...)"
    )


@dataclass(frozen=True, slots=True)
class OfRewardModel:
    """A reward model as ``Scoring``, which can also say what of the rows its limit cuts."""

    model: RewardModel

    @property
    def longest(self) -> int:
        """The limit in tokens."""
        return self.model.max_tokens

    def __call__(
        self, asked: Sequence[Sequence[Message]], answers: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        return self.with_cuts(asked, answers, finished)[0]

    def with_cuts(
        self, asked: Sequence[Sequence[Message]], answers: Sequence[str], finished: Sequence[bool]
    ) -> tuple[list[float], list[int]]:
        """The scores, and the rows (from 0) of which the model's limit leaves a part: their scores are those of it."""
        rows = self.model.fitted(asked, answers, finished, prove=True)
        scores = self.model.score_ids([row.query for row in rows], [row.response for row in rows]).tolist()
        return scores, [i for i, row in enumerate(rows) if row.cut]


def _remote(address: str) -> Scoring:
    ask = RemoteReward(address, RemoteConfig())

    def score(asked: Sequence[Sequence[Message]], answers: Sequence[str], finished: Sequence[bool]) -> list[float]:
        prompts = [Prompt(messages=tuple(messages), group="") for messages in asked]
        ids: list[list[int]] = [[] for _ in prompts]  # a server gets texts
        samples = Samples(prompts=prompts, queries=ids, responses=ids, texts=answers, finished=finished)
        return ask(samples).tolist()

    return score


def exported_reward(folder: Path) -> RewardModel:
    """A reward model as ``trivet export --stage reward`` writes it, on the base that its adapter names."""
    from pipelines.execution.loaded_models import LoadedModels
    from pipelines.loading.load import load_recipe

    try:
        base_name = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: does not say which base the adapter is for ({error!r})") from error
    settings: dict[str, Any] = {"base": str(base_name), "stages": ["sft"], "data": {"demonstrations": ["none.jsonl"]}}
    settings["adapter"] = {"new_tokens": list(new_tokens_of(folder))}
    loaded = LoadedModels(load_recipe(settings), Processes("auto"), {})
    base = loaded.base(writes=False)
    tokenizer = load_tokenizer(str(folder)) if (folder / "tokenizer_config.json").is_file() else base.tokenizer
    own = read_object(folder / SCORING) if (folder / SCORING).is_file() else {}
    try:
        limit = int(own.get("max_tokens", min(1024, base.context_length or 1024)))
        stop = tuple(int(i) for i in own.get("stop_ids", ()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / SCORING}: not as `trivet export` writes it ({error})") from error
    renderer = Renderer(tokenizer, template="auto", stop=stop, extra_stop_ids=base.extra_stop_ids)
    return load_reward(base, folder, renderer, max_tokens=limit)


def answers_in(
    file: Path, reading: Source | None = None, say: Callable[[str], None] = lambda text: None
) -> list[tuple[Prompt, str, bool]]:
    """Prompts and answers of a file of demonstrations or of rankings (each answer a row).

    Args:
        file: where they are.
        reading: how the file is read, its path aside.
        say: hears of rows that cannot be scored.

    Raises:
        UserError: the file holds neither.
    """
    config, folder = DataConfig(), file.parent
    source = file.name if reading is None else reading.model_copy(update={"path": file.name})
    try:
        ranked = load_records((source,), "rankings", config, seed=0, base_dir=folder)
        left_out(ranked, say)
        return [(r.prompt, a, f) for r in ranked.records for a, f in zip(r.answers, r.finished, strict=True)]
    except UserError as error:
        first = error
    try:
        shown = load_records((source,), "demonstrations", config, seed=0, base_dir=folder)
    except UserError as error:
        raise UserError(f"{error} (as rankings: {first})") from error
    left_out(shown, say)
    return [(d.prompt, d.answer, d.finished) for d in shown.records]


def left_out(loaded: Loaded, say: Callable[[str], None]) -> None:
    """Tell of rows that were rejected, the first by their places, and of what was read otherwise than it stands."""
    rejected = loaded.rejected
    for row in rejected[:SHOWN]:
        say(f"not scored: {row.source}: {row.reason}")
    if rejected:
        more = f", {len(rejected) - SHOWN:,} of them not shown" if len(rejected) > SHOWN else ""
        say(f"warning: {len(rejected):,} of {loaded.read:,} rows cannot be scored{more}; the output lacks them")
    for remark in loaded.remarks:
        say(remark)


def score_file(
    run_or_model: Path | str,
    file: Path | str,
    out: Path | str | None = None,
    label: str | None = None,
    reading: Source | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Write one JSON line a response: ``{"prompt", "answer", "reward"}``; to ``out`` or standard output.

    A line has ``"cut": true`` besides where the model's limit left only a part of the row to score.

    Args:
        run_or_model, label: see ``load_scorer``.
        file: prompts and responses in any format that ``trivet data check`` knows.
        out: a JSONL file; by default standard output.
        reading: how the file is read, its path aside.
        say: hears of rows that cannot be scored or are cut, and of an older file that is kept.

    Returns:
        The number of responses scored.
    """
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{file} {why_absent(file)}")
    if out is not None:
        check_destination(Path(out), "--out")
        check_outside(Path(out), "--out")
        if Path(out).exists() and Path(out).samefile(file):
            raise UserError(f"--out {out}: is the file that is scored; choose another name")
    rows = answers_in(file, reading, say)
    score = load_scorer(run_or_model, label)
    asked, answers, finished = [p.messages for p, _, _ in rows], [a for _, a, _ in rows], [f for _, _, f in rows]
    cut: list[int] = []
    try:
        if isinstance(score, OfRewardModel | Classifier):
            rewards, cut = score.with_cuts(asked, answers, finished)
        else:
            rewards = score(asked, answers, finished)
    except RowError as error:
        raise UserError(f"{rows[error.row][0].source}: {str(error).partition(': ')[2]}") from error
    if cut and isinstance(score, OfRewardModel | Classifier):
        say(
            f"warning: {len(cut):,} of {len(rows):,} rows are longer than the {score.longest:,} tokens "
            f"that the reward model reads, and what is left of them is scored; the first is {rows[cut[0]][0].source}"
        )
    if isinstance(score, OfRewardModel):
        texts = score.model.texts
        if texts.unknown > MANY * texts.tokens:
            say(f"warning: in the rows {unknown_text(texts.unknown, texts.tokens)}{NO_TOKEN}")

    # What reads standard output gets the same JSON whatever the locale's character set holds.
    escaped = out is None and codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"

    def lines() -> Iterator[str]:
        parts = set(cut)
        for i, ((prompt, answer, _), reward) in enumerate(zip(rows, rewards, strict=True)):
            row = {"prompt": prompt.text, "answer": answer, "reward": round(reward, 6)} | (
                {"cut": True} if i in parts else {}
            )
            yield json.dumps(row, ensure_ascii=escaped) + "\n"

    if out is None:
        sys.stdout.writelines(lines())
    else:
        if Path(out).is_file():
            keep_previous(Path(out), say)
        with atomic_file(Path(out)) as stream:
            stream.writelines(lines())
    return len(rows)
