"""How each stage is started: what it loads, and the call. Heavy libraries are imported inside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from data.splits import Split

if TYPE_CHECKING:
    from pipelines.execution.stage_request import StageRequest
    from stages.stage import StageResult


def pretrain(request: StageRequest) -> StageResult:
    from stages import pretrain as stage

    recipe = request.loaded.recipe
    context = stage.PretrainContext(
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
    return stage.run(context, recipe.base.pretrain)  # type: ignore[union-attr]


def sft(request: StageRequest) -> StageResult:
    from stages import sft as stage

    return stage.run(request.make_context(request.loaded.base(), request.loaded.renderer()), request.loaded.recipe.sft)


def rankings(request: StageRequest) -> StageResult:
    from stages import rankings as stage

    base, settings = request.loaded.base(), request.loaded.recipe.rankings
    if "sft" in request.inputs:
        request.loaded.load("sft", "sft", request.inputs["sft"])
    assert settings is not None
    return stage.run(request.make_context(base, request.loaded.renderer()), settings)


def reward(request: StageRequest) -> StageResult:
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


def ppo(request: StageRequest) -> StageResult:
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


def evaluate(request: StageRequest) -> StageResult:
    from pipelines.evaluate import stage as evaluating

    return evaluating.evaluate(request)
