"""How each stage is started: what it loads, and the call. Heavy libraries are imported inside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from data.splits import Split

if TYPE_CHECKING:
    from pipelines.execution.stage_request import Job
    from stages.stage import StageResult


def pretrain(job: Job) -> StageResult:
    from stages import pretrain as stage

    recipe = job.bench.recipe
    context = stage.PretrainContext(
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
    return stage.run(context, recipe.base.pretrain)  # type: ignore[union-attr]


def sft(job: Job) -> StageResult:
    from stages import sft as stage

    return stage.run(job.make_context(job.bench.base(), job.bench.renderer()), job.bench.recipe.sft)


def rankings(job: Job) -> StageResult:
    from stages import rankings as stage

    base, settings = job.bench.base(), job.bench.recipe.rankings
    if "sft" in job.inputs:
        job.bench.load("sft", "sft", job.inputs["sft"])
    assert settings is not None
    return stage.run(job.make_context(base, job.bench.renderer()), settings)


def reward(job: Job) -> StageResult:
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


def ppo(job: Job) -> StageResult:
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


def evaluate(job: Job) -> StageResult:
    from pipelines.evaluate import stage as evaluating

    return evaluating.evaluate(job)
