"""How each stage is started: what it loads, and the call. Heavy libraries are imported inside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from data.splits import Split

if TYPE_CHECKING:
    from pipelines.execution.loaded_models import LoadedModels
    from stages.stage import StageContext, StageResult


def pretrain(context: StageContext, loaded: LoadedModels) -> StageResult:
    from stages import pretrain as stage

    return stage.run(context, loaded.recipe.base.pretrain)  # type: ignore[union-attr]


def sft(context: StageContext, loaded: LoadedModels) -> StageResult:
    from stages import sft as stage

    return stage.run(context, loaded.recipe.sft)


def rankings(context: StageContext, loaded: LoadedModels) -> StageResult:
    from stages import rankings as stage

    settings = loaded.recipe.rankings
    if "sft" in context.inputs:
        loaded.load("sft", "sft", context.inputs["sft"])
    assert settings is not None
    return stage.run(context, settings)


def reward(context: StageContext, loaded: LoadedModels) -> StageResult:
    from stages import reward_model
    from stages.rankings import read_rankings

    if "sft" in context.inputs and not loaded.reward_has_own_base:
        loaded.load("sft", "sft", context.inputs["sft"])
    if "rankings" in context.inputs:
        train, held_out = read_rankings(context.inputs["rankings"])
        sampled = Split(train=tuple(train), held_out=tuple(held_out))
        context = replace(context, corpus=replace(context.corpus, rankings=sampled))
    return reward_model.run(context, loaded.recipe.reward)


def ppo(context: StageContext, loaded: LoadedModels) -> StageResult:
    from reward.card import gate as reward_gate
    from stages.ppo import stage as ppo_stage

    if "model" in {part.kind for part in loaded.recipe.ppo.reward} and "reward" in context.inputs:
        reward_gate.require(context.inputs["reward"], loaded.recipe.reward.gate, context.warn)
    if "sft" in context.inputs:
        loaded.load("sft", "reference", context.inputs["sft"])
    else:  # without SFT the reference is the base itself: an adapter that changes nothing
        context.base.add_role("reference", context.adapter, seed=context.seed)
    model = loaded.load_reward(context.inputs["reward"]) if "reward" in context.inputs else None
    judge = loaded.load_holdout_model(context.inputs["reward"]) if "reward" in context.inputs else None
    return ppo_stage.run(context, loaded.recipe.ppo, model, judge)


def evaluate(context: StageContext, loaded: LoadedModels) -> StageResult:
    from pipelines.evaluate import stage as evaluating

    return evaluating.evaluate(context, loaded)
