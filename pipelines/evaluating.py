"""The evaluate stage: systems of a run on held-out prompts, ``results.json`` and ``samples.jsonl``."""

from __future__ import annotations

import json
from dataclasses import asdict

from data.errors import UserError
from data.functions import load_function
from evaluation.held_out import ROLES, Evaluator
from evaluation.results import SystemAnswers, assemble, samples_rows
from models.artifacts import write_json
from pipelines.job import Job, answer_limit, evaluation_prompts
from stages.checkpoints import State
from stages.stage import StageResult

VERSION = 6


def evaluate(job: Job) -> StageResult:
    """Every system of the recipe that the run can offer, sampled and (where asked) greedily."""
    evaluator = make_evaluator(job)
    systems = available(job, evaluator)
    answers = answers_of(job, evaluator, systems)
    results = assemble(
        answers,
        judge="gold" if evaluator.gold is not None else "reward",
        against="sft" if "sft" in systems else systems[0],
        score=evaluator.judge if evaluator.gold is not None or evaluator.reward is not None else None,
        resamples=job.bench.recipe.evaluation.bootstrap,
        seed=evaluator.seed,
    )
    if job.bench.processes.is_main:
        write_json(job.out / "results.json", results, sort_keys=False)  # systems in the recipe's order
        with (job.out / "samples.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in samples_rows(answers))
    return StageResult(metrics={"prompts": results["prompts"], "systems": list(results["systems"])})


def answers_of(job: Job, evaluator: Evaluator, systems: list[str]) -> list[SystemAnswers]:
    """Every system's answers, sampled and (where asked) greedily; those that a checkpoint knows are not made again."""
    saved = job.checkpoints.resume()
    answers = [SystemAnswers(**found) for found in saved.own_numbers["answers"]] if saved is not None else []
    wanted = [(system, "sampled") for system in systems]
    if job.bench.recipe.evaluation.greedy:
        wanted += [(system, "greedy") for system in systems if not system.startswith("best_of_")]
    for system, decoding in wanted[len(answers) :]:
        answers.append(evaluator.run(system, decoding))
        done = len(answers)
        job.bar.advance(done, {}, sum(len(ids) for ids in answers[-1].token_ids))
        job.checkpoints.safe_point(done, lambda: captured(answers), done)
    return answers


def captured(answers: list[SystemAnswers]) -> State:
    return State(tensors={}, own_numbers={"answers": [asdict(a) for a in answers]})


def make_evaluator(job: Job) -> Evaluator:
    """Roles loaded, prompts chosen, reward and gold ready."""
    recipe, bench = job.bench.recipe, job.bench
    settings = recipe.evaluation
    prompts = evaluation_prompts(recipe, job.corpus)
    if not prompts:
        raise UserError("data.held_out: no held-out prompt is left for evaluation; raise the share or name a file")
    base = bench.base()
    if "sft" in job.inputs:
        bench.load("sft", "reference", job.inputs["sft"])
    if "ppo" in job.inputs:
        bench.load("ppo", "policy", job.inputs["ppo"])
    return Evaluator(
        base=base,
        renderer=bench.renderer(),
        config=settings,
        prompts=[p for p in prompts for _ in range(settings.samples_per_prompt)],
        max_new_tokens=answer_limit(recipe),
        seed=recipe.seed if settings.seed is None else settings.seed,
        reward=bench.load_reward(job.inputs["reward"]) if "reward" in job.inputs else None,
        gold=load_function(settings.gold, recipe.base_dir) if settings.gold else None,
    )


def available(job: Job, evaluator: Evaluator) -> list[str]:
    """Systems of the recipe whose stages are there, in the recipe's order.

    Raises:
        UserError: nothing can be judged.
    """
    if evaluator.gold is None and evaluator.reward is None:
        raise UserError("evaluation: neither a reward model nor evaluation.gold is there to judge answers by")
    roles = {"base", *evaluator.base.roles}
    systems = []
    for system in job.bench.recipe.evaluation.systems:
        if system.startswith("best_of_"):
            there = "reference" in roles and evaluator.reward is not None
        else:
            there = ROLES.get(system, system) in roles
        if there:
            systems.append(system)
    if not systems:
        raise UserError("evaluation.systems: none of them is in this run")
    return systems
