"""STAGES: what each stage needs, what its result depends on, and how it is started. One visible dict.

A new stage is one file in ``stages/``, one settings class and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.common.user_functions import fingerprint_of
from data.splits import Corpus, Split
from evaluation.settings import PAID
from evaluation.systems import parse
from pipelines.execution.stage_request import Job, answer_limit, choosing, files_of_evaluation
from pipelines.recipe.schema import Recipe
from pipelines.workspace.keys import dump
from reward.settings import REMOTE_TRAITS, RewardPart
from stages.stage import StageResult


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An entry of ``STAGES``."""

    run: Callable[[Job], StageResult]
    needs: Callable[[Recipe], tuple[str, ...]]  # stages whose results it takes, where they are part of the run
    settings: Callable[[Recipe], Any]  # the part of the recipe that its result depends on
    data: tuple[str, ...]  # parts of the corpus that it reads
    steps: Callable[[Recipe, Corpus], int | None]
    version: Callable[[], int]
    folder: str


def _pretrain(job: Job) -> StageResult:
    from stages import pretrain

    recipe = job.bench.recipe
    context = pretrain.PretrainContext(
        out=job.out,
        seed=recipe.seed,
        documents=[d.text for d in job.corpus.documents.train],
        held_out=[d.text for d in job.corpus.documents.held_out][:1000],
        processes=job.bench.processes,
        log=job.log,
        bar=job.bar,
        checkpoints=job.checkpoints,
        warn=job.bench.warn,
    )
    return pretrain.run(context, recipe.base.pretrain)  # type: ignore[union-attr]


def _sft(job: Job) -> StageResult:
    from stages import sft

    return sft.run(job.make_context(job.bench.base(), job.bench.renderer()), job.bench.recipe.sft)


def _rankings(job: Job) -> StageResult:
    from stages import rankings

    base, settings = job.bench.base(), job.bench.recipe.rankings
    if "sft" in job.inputs:
        job.bench.load("sft", "sft", job.inputs["sft"])
    assert settings is not None
    return rankings.run(job.make_context(base, job.bench.renderer()), settings)


def _reward(job: Job) -> StageResult:
    from stages import reward_model
    from stages.rankings import read_rankings

    base, renderer = job.bench.reward_base()
    if "sft" in job.inputs and not job.bench.reward_stands_apart:
        job.bench.load("sft", "sft", job.inputs["sft"])
    corpus = job.corpus
    if "rankings" in job.inputs:
        train, held_out = read_rankings(job.inputs["rankings"])
        corpus = replace(corpus, rankings=Split(train=tuple(train), held_out=tuple(held_out)))
    return reward_model.run(job.make_context(base, renderer, corpus=corpus), job.bench.recipe.reward)


def _ppo(job: Job) -> StageResult:
    from reward.card import gate as reward_gate
    from stages.ppo import stage as ppo_stage

    if "model" in {part.kind for part in job.bench.recipe.ppo.reward} and "reward" in job.inputs:
        reward_gate.require(job.inputs["reward"], job.bench.recipe.reward.gate)
    base, adapter = job.bench.base(), job.bench.recipe.adapter
    if "sft" in job.inputs:
        job.bench.load("sft", "reference", job.inputs["sft"])
    else:  # without SFT the reference is the base itself: an adapter that changes nothing
        base.add_role("reference", adapter, seed=job.bench.recipe.seed)
    model = job.bench.load_reward(job.inputs["reward"]) if "reward" in job.inputs else None
    judge = job.bench.load_watcher(job.inputs["reward"]) if "reward" in job.inputs else None
    return ppo_stage.run(job.make_context(base, job.bench.renderer()), job.bench.recipe.ppo, model, judge)


def _evaluate(job: Job) -> StageResult:
    from pipelines.evaluate import stage as evaluating

    return evaluating.evaluate(job)


def _base(recipe: Recipe) -> tuple[str, ...]:
    return () if isinstance(recipe.base, str) else ("pretrain",)


def _needs_reward(recipe: Recipe) -> tuple[str, ...]:
    parts = {part.kind for part in recipe.ppo.reward}
    watched = recipe.ppo.keep == "best" or recipe.reward.holdout > 0
    return ("reward",) if "model" in parts or recipe.ppo.value.init == "reward" or watched else ()


BOUND = ("max_skipped_steps",)  # changes no finished stage, so that another one may resume
SPEED: dict[str, tuple[str, ...]] = {
    "sft": ("micro_batch", "batch_tokens"),
    "reward": ("micro_batch",),
    "ppo": ("micro_batch", "micro_tokens", "share_lower_layers"),
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
    drawn = stage in ("sft", "reward") and recipe.adapter.dropout > 0
    return () if drawn else SPEED.get(stage, ())


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
    if any(parse(name).by == PAID for name in chosen):
        chosen[PAID] = recipe.ppo.model_dump(include={"standardise_scores", "score_clip", "missing_eos_penalty"})
    return settings | ({"best_of_by": chosen} if chosen else {})


def _batches(rows: int, batch: int, epochs: float) -> int:
    return max(1, round(-(-rows // batch) * epochs))


def _reward_steps(recipe: Recipe, corpus: Corpus) -> int:
    """Of all reward models that are trained: an ensemble's, and the one that watches."""
    settings = recipe.reward
    rows = len(corpus.rankings.train)
    if recipe.rankings:
        rows = min(recipe.rankings.prompts, len(corpus.prompts.train))
    apart = round(rows * settings.holdout)
    each = _batches(rows - apart, settings.batch, settings.epochs)
    return settings.ensemble * each + (_batches(apart, settings.batch, settings.epochs) if apart else 0)


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
            "max_new_tokens": answer_limit(r),
            "files": files_of_evaluation(r),
        },
        data=("prompts", "demonstrations", "rankings"),  # for worked examples, references, the reward model's card
        steps=lambda r, c: None,
        version=_version("pipelines.evaluate.stage"),
        folder="evaluation",
    ),
}
