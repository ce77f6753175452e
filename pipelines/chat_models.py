"""Who talks in ``trivet chat``: a stage of a run, an adapter beside it, or any model folder or name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError, nearest
from data.records import Message
from data.template import Renderer
from models.role_files import load_role
from models.shared_base import SharedBase
from models.streaming import stream
from reward.model import RewardModel

ROLES = {"base": "base", "sft": "sft", "ppo": "policy"}


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """One model that answers."""

    name: str
    base: SharedBase
    role: str
    renderer: Renderer

    def answer(
        self, messages: Sequence[Message], *, temperature: float, max_new_tokens: int, generator: torch.Generator
    ) -> Iterator[tuple[str, bool]]:
        """``(text so far, finished)`` as the answer grows; finished is True when it ended by itself."""
        ids: list[int] = []
        yield "", False
        with self.base.role(self.role) as view:
            for token in stream(
                view,
                self.renderer.prompt_ids(messages),
                generator=generator,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                stop_ids=self.renderer.stop_ids,
            ):
                ids.append(token)
                yield self.renderer.text(ids), token in self.renderer.stop_ids


@dataclass(frozen=True, kw_only=True)
class Room:
    """The speakers, and the reward model where there is one."""

    speakers: tuple[Speaker, ...]
    reward: RewardModel | None
    max_new_tokens: int

    def score(self, messages: Sequence[Message], answer: str, finished: bool) -> float | None:
        """The centred reward of an answer, or None without a reward model (or without an answer)."""
        if self.reward is None or not answer.strip():
            return None
        return float(self.reward.score_texts([messages], [answer], [finished])[0])


def open_room(target: str, stage: str | None = None, beside: str | None = None) -> Room:
    """Load what is needed for a conversation.

    Args:
        target: a run folder (or a stage's folder in one), or a model: registry name, folder or hub id.
        stage: ``base``, ``sft`` or ``ppo`` of a run; by default the last that is finished.
        beside: another stage of the run, another run, or an adapter or model folder.

    Raises:
        UserError: nothing loadable there, or an unknown or unfinished stage.
    """
    path = Path(target)
    if any((folder / "recipe.yaml").is_file() for folder in (path, path.resolve().parent)):
        return _of_run(path, stage, beside)
    if stage is not None:
        raise UserError(f"--stage {stage}: {target} is no run folder; leave --stage out for a plain model")
    return _of_model(target, beside)


def _of_run(path: Path, stage: str | None, beside: str | None) -> Room:
    from pipelines.job import answer_limit
    from pipelines.jobs import STAGES
    from pipelines.opening import find_run, open_run, stage_folder

    run = find_run(path)
    done = ["base", *(s for s in ("sft", "ppo") if (run / STAGES[s].folder / "manifest.json").is_file())]
    stage = stage or (path.resolve().name if path.resolve().name in done else done[-1])
    if stage not in ROLES:
        raise UserError(f"--stage {stage}: no model to talk to.{nearest(stage, ROLES)} One of: {', '.join(ROLES)}")
    pipeline = open_run(run)
    base, renderer = pipeline.bench.base(), pipeline.bench.renderer()

    def speaker(name: str, role: str, folder: Path | None) -> Speaker:
        if folder is not None:
            pipeline.bench.load("sft", role, folder)
        return Speaker(name=name, base=base, role=role, renderer=renderer)

    def of_stage(name: str) -> Speaker:
        folder = None if name == "base" or ROLES[name] in base.roles else stage_folder(run, name)
        return speaker(name, ROLES[name], folder)

    speakers = [of_stage(stage)]
    if beside in ROLES:
        speakers.append(of_stage(beside))
    elif beside is not None:
        speakers.append(speaker(beside, "beside", _model_folder(Path(beside))))
    reward = run / STAGES["reward"].folder
    found = pipeline.bench.load_reward(stage_folder(run, "reward")) if (reward / "manifest.json").is_file() else None
    return Room(speakers=tuple(speakers), reward=found, max_new_tokens=answer_limit(pipeline.recipe))


def _model_folder(path: Path) -> Path:
    """The adapter or model of a path; the last trained stage of a run."""
    if not path.is_dir():
        raise UserError(f"--beside {path}: neither a stage ({', '.join(ROLES)}) nor a folder")
    return next((path / s for s in ("ppo", "sft") if (path / s / "manifest.json").is_file()), path)


def _of_model(target: str, beside: str | None) -> Room:
    from data.strict_json import read_object
    from models.devices import Processes
    from pipelines.recipe import load_recipe
    from pipelines.workbench import Workbench

    adapter = Path(target) / "adapter_config.json"
    source = target
    if adapter.is_file():
        source = str(read_object(adapter).get("base_model_name_or_path") or "")
    settings: dict[str, Any] = {"base": source, "stages": ["sft"], "data": {"demonstrations": ["none.jsonl"]}}
    bench = Workbench(load_recipe(settings), Processes("auto", None), None)
    base, renderer = bench.base(), bench.renderer()
    if adapter.is_file():
        load_role(base, "model", Path(target))
    speakers = [Speaker(name=target, base=base, role="model" if adapter.is_file() else "base", renderer=renderer)]
    if beside is not None:
        if beside == "base":
            speakers.append(Speaker(name="base", base=base, role="base", renderer=renderer))
        else:
            load_role(base, "beside", _model_folder(Path(beside)))
            speakers.append(Speaker(name=beside, base=base, role="beside", renderer=renderer))
    return Room(speakers=tuple(speakers), reward=None, max_new_tokens=256)
