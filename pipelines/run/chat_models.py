"""Who talks in ``trivet chat``: a stage of a run, an adapter next to it, or any model folder or name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.common.errors import UserError, nearest
from data.records import Message
from data.template import Renderer
from evaluation.systems import ROLES
from models.backbone.settings import ADAPTER_CONFIG
from models.hub.download import local_folder
from models.hub.registry import resolve_base
from models.hub.spec import BaseModelSpec
from models.roles.files import new_tokens_of
from models.roles.shared_base import SharedBase
from models.sampling.generate import SamplingParams
from models.sampling.stream import stream
from pipelines.workspace.run_folder import is_run, run_of
from reward.model import RewardModel


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """One model that responds."""

    name: str
    base: SharedBase
    role: str
    renderer: Renderer

    def missing(self, messages: Sequence[Message], max_new_tokens: int) -> int:
        """Positions that the model lacks for these messages and a response; 0 or less where it has enough."""
        limit = self.base.context_length
        return 0 if limit is None else len(self.renderer.prompt_ids(messages)) + max_new_tokens - limit

    def answer(
        self, messages: Sequence[Message], *, temperature: float, max_new_tokens: int, generator: torch.Generator
    ) -> Iterator[tuple[str, bool]]:
        """``(text so far, finished)`` as the response grows; finished is True when it ended by itself."""
        prompt = self.renderer.prompt_ids(messages)
        yield "", False
        for ids in self.tokens(prompt, temperature=temperature, max_new_tokens=max_new_tokens, generator=generator):
            text, ended = self.renderer.text(ids), self.ended(ids)
            over = ended or len(ids) == max_new_tokens
            yield text if over else self.renderer.stop_strings.settled(text), ended

    def tokens(
        self, prompt: Sequence[int], *, temperature: float, max_new_tokens: int, generator: torch.Generator
    ) -> Iterator[list[int]]:
        """The ids of a response so far, as it grows, to a prompt of ids."""
        params = SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop_ids=self.renderer.stop_ids,
            stop_strings=self.renderer.stop_strings,
        )
        ids: list[int] = []
        with self.base.role(self.role) as view:
            for token in stream(view, prompt, generator=generator, params=params):
                ids.append(token)
                yield ids

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a response of these ids ended by itself."""
        return self.renderer.ended(ids)


@dataclass(frozen=True, kw_only=True)
class Room:
    """The speakers, and the reward model where there is one.

    ``left_out`` says what lies there besides and could not be opened, and why.
    """

    speakers: tuple[Speaker, ...]
    reward: RewardModel | None
    max_new_tokens: int
    left_out: tuple[str, ...] = ()

    def fitting(self, messages: Sequence[Message], max_new_tokens: int) -> list[Message]:
        """The newest messages that leave every speaker room for a response; a system prompt stays, a user is first.

        Raises:
            UserError: the last message alone is too long, or no prompt leaves that room.
        """
        system = [m for m in messages[:1] if m.role == "system"]
        turns = list(messages[len(system) :])
        while True:
            over = [(s, n) for s in self.speakers if (n := s.missing([*system, *turns], max_new_tokens)) > 0]
            if not over:
                return [*system, *turns]
            later = [i for i, m in enumerate(turns) if i and m.role == "user"]
            if not later:
                speaker, n = over[0]
                raise UserError(
                    f"{n} tokens too long for {speaker.name}, which has {speaker.base.context_length} positions, "
                    f"{max_new_tokens} of them kept for the response; say less, or /tokens N with a smaller N"
                )
            turns = turns[later[0] :]

    def note(self, messages: Sequence[Message], answer: str, finished: bool) -> str:
        """What stands beside a response: its reward, less its mean and rendered once, and whether it was cut off."""
        parts = []
        if self.reward is not None and answer.strip():
            [row] = self.reward.fitted([messages], [answer], [finished])
            part = " of a part, longer than reward.max_tokens" * row.cut
            parts.append(f"reward {float(self.reward.score_ids([row.query], [row.response])[0]):+.2f}{part}")
        return ", ".join(parts + ([] if finished else ["cut off"])) or "no reward model"


def open_room(target: str, stage: str | None = None, compare_with: str | None = None) -> Room:
    """Load what is needed for a conversation.

    Args:
        target: a run folder (or a stage's folder in one), or a model: registry name, folder or hub id.
        stage: ``base``, ``sft`` or ``ppo`` of a run; by default the last that is finished.
        compare_with: another stage of the run, another run, or an adapter or model folder.

    Raises:
        UserError: nothing loadable there, or an unknown or unfinished stage.
    """
    path = Path(target)
    if run_of(path) is not None:
        return _of_run(path, stage, compare_with)
    if stage is not None:
        raise UserError(f"--stage {stage}: {target} is no run folder; leave --stage out for a plain model")
    _check_there(target)
    return _of_model(target, compare_with)


def _check_there(target: str) -> None:
    """Refuse a path below a folder of runs, where nothing is, which would be asked for on the hub.

    Raises:
        UserError: names the path.
    """
    path = Path(target)
    if path.exists():
        return
    spec, folder = resolve_base(target, base_dir=Path.cwd()), Path(path.parts[0])
    if spec.family == "hub" and folder.is_dir() and local_folder(spec.source, spec.revision) is None:
        runs = sorted(one.name for one in folder.iterdir() if is_run(one))
        if runs:
            raise UserError(
                f"{target}: there is no such run or folder.{nearest(path.name, runs)} `trivet ls {folder}` lists the "
                "runs there; a model of the hub is fetched by this name where its first part is no folder of runs"
            )


def open_speakers(target: str, stage: str | None = None) -> Room:
    """Every model of a run that can be talked to, or the one of ``stage``; a plain model is alone. The default is last.

    Raises:
        UserError: nothing loadable there, or an unknown or unfinished stage.
    """
    path = Path(target)
    if run_of(path) is None:
        return open_room(target, stage)
    run = _OpenRun(path, stage)
    asked, others, left_out = run.speaker(run.stage), list[Speaker](), list[str]()
    for name in _finished(run.pipeline) if stage is None else ():
        if name != run.stage:
            try:
                others.append(run.speaker(name))
            except UserError as error:
                left_out.append(f"{name} is left out: {error}")
    limit = _longest(run.pipeline)
    return Room(speakers=(*others, asked), reward=None, max_new_tokens=limit, left_out=tuple(left_out))


def _of_run(path: Path, stage: str | None, compare_with: str | None) -> Room:
    run = _OpenRun(path, stage)
    speakers, found, left_out = [run.speaker(run.stage)], None, list[str]()
    if compare_with in ROLES:
        speakers.append(run.speaker(compare_with))
    elif compare_with is not None:
        first = speakers[0]
        speakers.append(_guest(compare_with, first.base, first.renderer, _identity(run.pipeline)))
    try:
        found = run.reward()
    except UserError as error:
        left_out.append(f"no reward stands beside responses: {error}")
    limit = _longest(run.pipeline)
    return Room(speakers=tuple(speakers), reward=found, max_new_tokens=limit, left_out=tuple(left_out))


def _longest(pipeline: Any) -> int:
    from pipelines.recipe.derived import response_limit

    return response_limit(pipeline.recipe)


class _OpenRun:
    """A run whose results are opened each with its own recipe, in memory on one base where they stand on the same.

    Args:
        path: as for ``stage_of``, like ``stage``.

    Raises:
        UserError: an unknown stage.
    """

    def __init__(self, path: Path, stage: str | None) -> None:
        from pipelines.run.open_run import open_run

        self.stage = stage_of(path, open_run(path), stage)
        self.pipeline = open_run(path, stage=self.stage)

    def speaker(self, name: str) -> Speaker:
        """A stage's model, or the base.

        Raises:
            UserError: it cannot be loaded.
        """
        from pipelines.run.open_run import stage_folder

        pipeline = self._opened(name)
        base, renderer = pipeline.loaded.base(), pipeline.loaded.renderer()
        if name != "base" and ROLES[name] not in base.roles:
            pipeline.loaded.load("sft", ROLES[name], stage_folder(pipeline, name))
        return Speaker(name=name, base=base, role=ROLES[name], renderer=renderer)

    def reward(self) -> RewardModel | None:
        """The reward model, where the run has one.

        Raises:
            UserError: it cannot be loaded.
        """
        from pipelines.run.open_run import is_done, stage_folder

        if not is_done(self.pipeline, "reward"):
            return None
        pipeline = self._opened("reward")
        made: RewardModel = pipeline.loaded.load_reward(stage_folder(pipeline, "reward"))
        return made

    def _opened(self, stage: str) -> Any:
        """The run with the recipe of a stage's result; where that has none of its own, as the stage that is asked."""
        from pipelines.run.open_run import open_run
        from pipelines.workspace.kept_recipes import kept_file

        own = stage not in ("base", self.stage) and stage not in self.pipeline.given
        if not own or kept_file(self.pipeline.run_dir, stage) is None:
            return self.pipeline
        other = open_run(self.pipeline.run_dir, stage=stage)
        if _base_of(other) == _base_of(self.pipeline):
            other.loaded.stand_on(self.pipeline.loaded.base())
        return other


def _base_of(pipeline: Any) -> tuple[Any, ...]:
    """All that says whether results of one run can stand on one base in memory."""
    recipe, device = pipeline.recipe, pipeline.processes.device
    return _identity(pipeline), device, recipe.runtime.dtype, recipe.runtime.quantize, recipe.adapter.positions


def _finished(pipeline: Any) -> list[str]:
    """The base and the stages of a run that can be talked to."""
    from pipelines.run.open_run import is_done
    from pipelines.stages.table import STAGES

    return ["base", *(name for name, one in STAGES.items() if one.asked_in_chat and is_done(pipeline, name))]


def stage_of(path: Path, pipeline: Any, asked: str | None) -> str:
    """The stage that is asked for or that the path names, else the last one that is finished."""
    done = _finished(pipeline)
    here = path.resolve()
    stage = asked or (here.name if here != pipeline.run_dir and here.name in done else done[-1])
    if stage not in ROLES:
        raise UserError(f"--stage {stage}: no model to talk to.{nearest(stage, ROLES)} One of: {', '.join(ROLES)}")
    return stage


def _identity(pipeline: Any) -> str:
    """What says whether two runs stand on the same base."""
    from models.backbone.artifacts import read_artifact

    if (stage := pipeline.recipe.base_stage) is None:
        return _named(pipeline.loaded.spec)
    folder = pipeline.loaded.made[stage]
    found = read_artifact(folder)
    made = found.key if found is not None else str(folder)
    return " ".join([made, *pipeline.recipe.adapter.new_tokens])


def _named(spec: BaseModelSpec) -> str:
    """A base's source, and the tokens that are added to it."""
    return " ".join([spec.source, *spec.new_tokens])


def _guest(compare_with: str, base: SharedBase, renderer: Renderer, identity: str) -> Speaker:
    """The second speaker: another run's model, an adapter, or any model; on this base where it is made for it.

    Args:
        compare_with: what the user named.
        base, renderer: of the first speaker.
        identity: of its base; a run's as `_identity` has it, else the source.
    """
    path = Path(compare_with)
    if run_of(path) is not None:
        from pipelines.run.open_run import stage_folder

        run = _OpenRun(path, None)
        if run.stage == "base" or _identity(run.pipeline) != identity:
            return replace(run.speaker(run.stage), name=compare_with)
        run.pipeline.loaded.stand_on(base)
        base.load_role("compared", stage_folder(run.pipeline, run.stage))
        return Speaker(name=compare_with, base=base, role="compared", renderer=run.pipeline.loaded.renderer())
    adapter = next((f for f in (path, path / "adapter") if (f / ADAPTER_CONFIG).is_file()), None)
    if adapter is not None and _fits(adapter, identity):
        from pipelines.execution.loaded_models import renderer_of_adapter

        base.load_role("compared", adapter)
        own = renderer_of_adapter(adapter, base)
        return Speaker(name=compare_with, base=base, role="compared", renderer=own or renderer)
    try:
        return _of_model(str(adapter or compare_with), None).speakers[0]
    except UserError as error:
        kinds = f"a stage ({', '.join(ROLES)}), a run, an adapter or a model"
        raise UserError(f"--compare-with {compare_with}: cannot be opened as {kinds}: {error}") from error


def _fits(adapter: Path, identity: str) -> bool:
    """Whether an adapter is made for a base, as far as it says: one that names none, or none that is known, is."""
    from data.common.strict_json import read_object

    named = str(read_object(adapter / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    if not named:
        return True
    try:
        return _named(resolve_base(named, base_dir=Path.cwd(), new_tokens=new_tokens_of(adapter))) == identity
    except UserError:
        return True


def _of_model(target: str, compare_with: str | None) -> Room:
    from data.common.strict_json import read_object
    from models.backbone.processes import Processes
    from pipelines.execution.loaded_models import LoadedModels, renderer_of_adapter
    from pipelines.loading.load import load_recipe

    adapter = Path(target) / ADAPTER_CONFIG
    source = target
    if adapter.is_file():
        source = str(read_object(adapter).get("base_model_name_or_path") or "")
        if not source:
            raise UserError(f"{adapter}: names no base; give the base (or a run) and --compare-with {target}")
    settings: dict[str, Any] = {"base": source, "stages": ["sft"], "data": {"demonstrations": ["none.jsonl"]}}
    settings["adapter"] = {"new_tokens": list(new_tokens_of(Path(target)))}
    loaded = LoadedModels(load_recipe(settings), Processes("auto", None), {})
    base, renderer = loaded.base(), loaded.renderer()
    first = Speaker(name=target, base=base, role="base", renderer=renderer)
    if adapter.is_file():
        base.load_role("model", Path(target))
        first = replace(first, role="model", renderer=renderer_of_adapter(Path(target), base) or renderer)
    speakers = [first]
    if compare_with == "base":
        speakers.append(Speaker(name="base", base=base, role="base", renderer=renderer))
    elif compare_with is not None:
        speakers.append(_guest(compare_with, base, renderer, _named(loaded.spec)))
    longest = min((s.base.context_length or 512) // 2 for s in speakers)
    return Room(speakers=tuple(speakers), reward=None, max_new_tokens=min(256, longest))
