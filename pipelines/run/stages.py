"""STAGES: what each stage needs, what its result depends on, and how it is started. One visible dict.

A new stage is one file in ``stages/``, one settings class and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.common.user_functions import fingerprint_of
from data.splits import Corpus, Split
from evaluation.settings import OPTIMISED
from evaluation.systems import parse
from pipelines.execution.stage_request import StageRequest, choosing, files_of_evaluation, response_limit
from pipelines.recipe.schema import Recipe
from pipelines.workspace.keys import dump
from reward.settings import REMOTE_TRAITS, RewardPart
from stages.stage import StageResult


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An entry of ``STAGES``."""

    run: Callable[[StageRequest], StageResult]
    needs: Callable[[Recipe], tuple[str, ...]]  # stages whose results it takes, where they are part of the run
    settings: Callable[[Recipe], Any]  # the part of the recipe that its result depends on
    data: tuple[str, ...]  # parts of the corpus that it reads
    steps: Callable[[Recipe, Corpus], int | None]
    version: Callable[[], int]
    folder: str


def _pretrain(request: StageRequest) -> StageResult:
    from stages import pretrain

    recipe = request.loaded.recipe
    context = pretrain.PretrainContext(
        out=request.out,
        seed=recipe.seed,
        documents=[d.text for d in request.corpus.documents.train],
        held_out=[d.text for d in request.corpus.documents.held_out][:1000],
        processes=request.loaded.processes,
        log=request.log,
        bar=request.bar,
        checkpoints=request.checkpoints,
        warn=request.loaded.warn,
    )
    return pretrain.run(context, recipe.base.pretrain)  # type: ignore[union-attr]


def _sft(request: StageRequest) -> StageResult:
    from stages import sft

    return sft.run(request.make_context(request.loaded.base(), request.loaded.renderer()), request.loaded.recipe.sft)


def _rankings(request: StageRequest) -> StageResult:
    from stages import rankings

    base, settings = request.loaded.base(), request.loaded.recipe.rankings
    if "sft" in request.inputs:
        request.loaded.load("sft", "sft", request.inputs["sft"])
    assert settings is not None
    return rankings.run(request.make_context(base, request.loaded.renderer()), settings)


def _reward(request: StageRequest) -> StageResult:
    from stages import reward_model
    from stages.rankings import read_rankings

    base, renderer = request.loaded.reward_base()
    if "sft" in request.inputs and not request.loaded.reward_has_own_base:
        request.loaded.load("sft", "sft", request.inputs["sft"])
    corpus = request.corpus
    if "rankings" in request.inputs:
        train, held_out = read_rankings(request.inputs["rankings"])
        corpus = replace(corpus, rankings=Split(train=tuple(train), held_out=tuple(held_out)))
    return reward_model.run(request.make_context(base, renderer, corpus=corpus), request.loaded.recipe.reward)


def _ppo(request: StageRequest) -> StageResult:
    from reward.card import gate as reward_gate
    from stages.ppo import stage as ppo_stage

    if "model" in {part.kind for part in request.loaded.recipe.ppo.reward} and "reward" in request.inputs:
        reward_gate.require(request.inputs["reward"], request.loaded.recipe.reward.gate)
    base, adapter = request.loaded.base(), request.loaded.recipe.adapter
    if "sft" in request.inputs:
        request.loaded.load("sft", "reference", request.inputs["sft"])
    else:  # without SFT the reference is the base itself: an adapter that changes nothing
        base.add_role("reference", adapter, seed=request.loaded.recipe.seed)
    model = request.loaded.load_reward(request.inputs["reward"]) if "reward" in request.inputs else None
    judge = request.loaded.load_holdout_model(request.inputs["reward"]) if "reward" in request.inputs else None
    return ppo_stage.run(request.make_context(base, request.loaded.renderer()), request.loaded.recipe.ppo, model, judge)


def _evaluate(request: StageRequest) -> StageResult:
    from pipelines.evaluate import stage as evaluating

    return evaluating.evaluate(request)


def _base(recipe: Recipe) -> tuple[str, ...]:
    return () if isinstance(recipe.base, str) else ("pretrain",)


def _needs_reward(recipe: Recipe) -> tuple[str, ...]:
    parts = {part.kind for part in recipe.ppo.reward}
    holds_out = recipe.ppo.keep == "best" or recipe.reward.holdout > 0
    return ("reward",) if "model" in parts or recipe.ppo.value.init == "reward" or holds_out else ()


BOUND = ("max_skipped_steps",)  # changes no finished stage, so that another one may resume
SPEED: dict[str, tuple[str, ...]] = {
    "sft": ("micro_batch", "batch_tokens"),
    "reward": ("micro_batch",),
    "ppo": ("micro_batch", "micro_tokens", "share_prefix_layers"),
    "evaluate": ("batch",),
}
GROUPS = {"evaluate": "evaluation"}  # the recipe's group of a stage, where it has another name
"""Settings of a stage that cut the same sums into other parts: they change memory and time, and nothing beyond the
rounding of sums. They are in no key; the manifest has them under ``made_with``."""
RUNTIME_SPEED = ("gradient_checkpointing",)


def speed_settings(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The settings of a stage that no key holds.

    With dropout in the adapters, SFT and the reward stage draw its masks by forward pass: how batches are cut then
    changes the result.
    """
    random_masks = stage in ("sft", "reward") and recipe.adapter.dropout > 0
    return () if random_masks else SPEED.get(stage, ())


def made_with(recipe: Recipe, stage: str, threads: int) -> dict[str, Any]:
    """How a stage is computed, as far as that changes rounding alone: written down, and in no key.

    Args:
        threads: CPU threads of this process.
    """
    group = GROUPS.get(stage, stage)
    own = {f"{group}.{name}": getattr(getattr(recipe, group), name) for name in speed_settings(recipe, stage)}
    general = {f"runtime.{name}": getattr(recipe.runtime, name) for name in RUNTIME_SPEED}
    return own | general | ({"threads": threads} if recipe.runtime.threads is None else {})


def without_speed(described: Mapping[str, Any], recipe: Recipe, stage: str) -> dict[str, Any]:
    """A stage's description as it was written before those settings left the keys, without them."""
    out = dict(described)
    settings = out.get("settings")
    if isinstance(settings, Mapping):
        left_out = speed_settings(recipe, stage)
        group = GROUPS.get(stage, stage)
        out["settings"] = {k: v for k, v in settings.items() if k not in left_out}
        if isinstance(inner := settings.get(group), Mapping):
            out["settings"][group] = {k: v for k, v in inner.items() if k not in left_out}
    if isinstance(out.get("runtime"), Mapping):
        out["runtime"] = {k: v for k, v in out["runtime"].items() if k not in RUNTIME_SPEED}
    return out


def functions_of(recipe: Recipe, stage: str) -> list[str]:
    """The user's functions that a stage calls: their source is part of its key."""
    if stage == "rankings" and recipe.rankings is not None:
        return [recipe.rankings.annotator]
    if stage == "ppo":
        return [part.source for part in recipe.ppo.reward if part.kind == "function"]
    if stage != "evaluate":
        return []
    own = [name for name in recipe.evaluation.metrics if ":" in name and not name.startswith(("hub:", "folder:"))]
    own += [part.source for parts in choosing(recipe).values() for part in parts if part.kind == "function"]
    return [*([recipe.evaluation.gold] if recipe.evaluation.gold else []), *own]


def functions_in_key(recipe: Recipe, stage: str, corpus: Corpus) -> dict[str, Any]:
    """Fingerprints of a stage's functions and, where it has any, of the data's other columns that they are given."""
    found = {source: fingerprint_of(source, recipe.base_dir) for source in functions_of(recipe, stage)}
    return {"functions": found} | ({"columns": corpus.columns_fingerprint("prompts")} if found else {})


def _ppo_settings(recipe: Recipe) -> dict[str, Any]:
    """PPO's settings without those that say how a remote scorer is asked, so that a longer time-out may resume."""
    left_out = (*BOUND, *speed_settings(recipe, "ppo"))  # keep_every changes nothing where it is unset
    settings = dump(recipe.ppo, left_out if recipe.ppo.keep_every else ("keep_every", *left_out))
    return settings | {"reward": _parts(recipe.ppo.reward)}


def _parts(parts: Sequence[RewardPart]) -> list[dict[str, Any]]:
    remote = {"remote": set(REMOTE_TRAITS)}
    return [part.model_dump(mode="json", exclude=remote) for part in parts]


def _evaluation_settings(recipe: Recipe) -> dict[str, Any]:
    """Evaluation's settings, and of the rewards that choose for a best-of-n those that it has."""
    settings = dump(recipe.evaluation, ("best_of_by", *speed_settings(recipe, "evaluate")))
    chosen: dict[str, Any] = {n: _parts(parts) for n, parts in choosing(recipe).items() if parse(n).by != "model"}
    if any(parse(name).by == OPTIMISED for name in chosen):
        chosen[OPTIMISED] = recipe.ppo.model_dump(include={"standardise_scores", "score_clip", "missing_eos_penalty"})
    return settings | ({"best_of_by": chosen} if chosen else {})


def _batches(rows: int, batch: int, epochs: float) -> int:
    return max(1, round(-(-rows // batch) * epochs))


def _reward_steps(recipe: Recipe, corpus: Corpus) -> int:
    """Of all reward models that are trained: an ensemble's, and the one that watches."""
    settings = recipe.reward
    rows = len(corpus.rankings.train)
    if recipe.rankings:
        rows = min(recipe.rankings.prompts, len(corpus.prompts.train))
    holdout_rows = round(rows * settings.holdout)
    each = _batches(rows - holdout_rows, settings.batch, settings.epochs)
    return settings.ensemble * each + (_batches(holdout_rows, settings.batch, settings.epochs) if holdout_rows else 0)


def _version(module: str) -> Callable[[], int]:
    def find() -> int:
        import importlib

        return int(importlib.import_module(module).VERSION)

    return find


STAGES: dict[str, Stage] = {
    "pretrain": Stage(
        run=_pretrain,
        needs=lambda r: (),
        settings=lambda r: dump(None if isinstance(r.base, str) else r.base.pretrain, BOUND),
        data=("documents",),
        steps=lambda r, c: None if isinstance(r.base, str) else r.base.pretrain.steps,
        version=_version("stages.pretrain"),
        folder="pretrain",
    ),
    "sft": Stage(
        run=_sft,
        needs=_base,
        settings=lambda r: dump(r.sft, (*BOUND, *speed_settings(r, "sft"))),
        data=("demonstrations",),
        steps=lambda r, c: _batches(len(c.demonstrations.train), r.sft.batch, r.sft.epochs),
        version=_version("stages.sft"),
        folder="sft",
    ),
    "rankings": Stage(
        run=_rankings,
        needs=lambda r: (*_base(r), "sft"),
        settings=lambda r: dump(r.rankings),
        data=("prompts",),
        steps=lambda r, c: None,
        version=_version("stages.rankings"),
        folder="rankings",
    ),
    "reward": Stage(
        run=_reward,
        needs=lambda r: (*_base(r), "sft", *(("rankings",) if r.rankings else ())),
        settings=lambda r: dump(r.reward, ("gate", *BOUND, *speed_settings(r, "reward"))),  # the gate comes later
        data=("rankings", "prompts"),
        steps=_reward_steps,
        version=_version("stages.reward_model"),
        folder="reward",
    ),
    "ppo": Stage(
        run=_ppo,
        needs=lambda r: (*_base(r), "sft", *_needs_reward(r)),
        settings=lambda r: {"ppo": _ppo_settings(r), "reward_max_tokens": r.reward.max_tokens},
        data=("prompts",),
        steps=lambda r, c: r.ppo.updates,
        version=_version("stages.ppo.update"),
        folder="ppo",
    ),
    "evaluate": Stage(
        run=_evaluate,
        needs=lambda r: (*_base(r), "sft", "reward", "ppo"),
        settings=lambda r: {
            "evaluation": _evaluation_settings(r),
            "max_new_tokens": response_limit(r),
            "files": files_of_evaluation(r),
        },
        data=("prompts", "demonstrations", "rankings"),  # for worked examples, references, the reward model's card
        steps=lambda r, c: None,
        version=_version("pipelines.evaluate.stage"),
        folder="evaluation",
    ),
}
