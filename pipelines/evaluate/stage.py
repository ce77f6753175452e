"""The evaluate stage: systems on held-out prompts, ``results.json`` and ``samples.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.common.user_functions import columns_of, load_function
from data.counting import log_row
from evaluation.answers import SystemResponses
from evaluation.generations import Generations
from evaluation.held_out import Decoding, Evaluator
from evaluation.judges.judging import judged_in_pairs
from evaluation.metrics.compare import compare_metrics
from evaluation.metrics.registry import NO_REFERENCES, References, compute_metrics, needs_references, summarised
from evaluation.results import assemble, samples_rows
from evaluation.systems import Named, parse
from models.backbone.artifacts import atomic_file, read_artifact, write_json
from models.backbone.oom_retry import OOMRetry
from pipelines.evaluate.lm_eval import harness_results
from pipelines.evaluate.references import references_for
from pipelines.evaluate.reward_card import card_for, in_short
from pipelines.evaluate.systems import open_system
from pipelines.execution.loaded_models import LoadedModels
from pipelines.recipe.derived import evaluation_prompts, lacking, names_systems, offered, response_limit
from reward.card.examine import FILE
from reward.model import RewardModel
from stages import lineage
from stages.remote_rollouts import rollout_servers
from stages.safe_points.checkpoints import State
from stages.stage import StageContext, StageResult

VERSION = 21


def evaluate(context: StageContext, loaded: LoadedModels) -> StageResult:
    """Every system of the recipe that the run can offer, sampled and (where asked) greedily."""
    evaluator = make_evaluator(context, loaded)
    systems = available(context, loaded, evaluator)
    references = _references(context, loaded, evaluator)
    answers = responses_of(context, loaded, evaluator, systems, references)
    doubts = unread(evaluator)
    judges = evaluator.judges()
    judge = next(iter(judges), None)
    names = [s.name for s in answers if s.decoding == "sampled"]
    settings = loaded.recipe.evaluation
    against = "sft" if "sft" in names else names[0]
    results = assemble(
        answers,
        judge=judge,  # type: ignore[arg-type]
        against=against,
        score=judges[judge] if judge else None,
        others={name: score for name, score in judges.items() if name != judge},
        accuracy=accuracy_of(context),
        optimised=optimised_judge(context, loaded),
        resamples=settings.bootstrap,
        seed=evaluator.seed,
    ) | {"settings": evaluator.settings()}
    compared = compare_metrics(answers, against, references, resamples=settings.bootstrap, seed=evaluator.seed)
    results |= {"metric_comparisons": compared} if compared else {}
    if settings.judges:
        join(results, chat_verdicts(context, loaded, answers, against, evaluator.seed))
    card, cut = card_for(context, loaded, evaluator, answers)
    results |= {"reward_card": in_short(card)} if card else {}
    results["warnings"] += [*doubts, *cut, *trained_on(context, loaded, evaluator)]
    if settings.lm_eval.tasks:
        results["lm_eval"] = harness_results(context, loaded, evaluator, settings.lm_eval)
    if evaluator.servers is not None:
        evaluator.servers.close()
    if loaded.processes.is_main:
        write(context.out, results, answers)
        if card:
            write_json(context.out / FILE, card)
    counts = counts_of(evaluator, answers)
    context.log.note(log_row(counts))
    context.log.write(len(answers), {})
    return StageResult(metrics={"prompts": results["prompts"], "systems": list(results["systems"]), "counts": counts})


def accuracy_of(context: StageContext) -> dict[str, dict[str, Any]]:
    """How the run's reward models order held-out pairs, by the names that they have as judges.

    A model that was tested on none, or of whose test its folder says nothing (a reward model from elsewhere), has no
    share and 0 pairs.
    """
    made = read_artifact(context.inputs["reward"]) if "reward" in context.inputs else None
    own = dict(made.metrics) if made else {}
    known = {"reward": own, "held_out_reward": own.get("watcher") or {}}
    return {
        judge: {"share": m.get("pair_accuracy"), "ci95": m.get("pair_accuracy_ci95"), "n": m.get("pairs", 0)}
        for judge, m in known.items()
    }


def optimised_judge(context: StageContext, loaded: LoadedModels) -> bool:
    """Whether the policy was trained on the reward model that judges here; so it is held to be where nothing says."""
    if "ppo" not in context.inputs or all(part.kind != "model" for part in loaded.recipe.ppo.reward):
        return False
    policy = read_artifact(context.inputs["ppo"])
    judge = read_artifact(context.inputs["reward"]) if "reward" in context.inputs else None
    optimised = (policy.manifest.get("parents") or {}).get("reward") if policy is not None else None
    return optimised is None or judge is None or optimised == judge.key


def unread(evaluator: Evaluator) -> list[str]:
    """Sentences about reward models on another base that could not read the responses as they are."""
    models = {"the reward model": evaluator.reward, "the held-out reward model": evaluator.held_out_reward}
    return [
        f"{what}, on a base of its own: {text}"
        for what, model in models.items()
        if model is not None and not model.takes_ids and (text := model.texts.warning())
    ]


def trained_on(context: StageContext, loaded: LoadedModels, evaluator: Evaluator) -> list[str]:
    """Sentences about results whose training had prompts of this evaluation."""
    named = [parse(name) for name in loaded.recipe.evaluation.systems]
    folders = {f"the {stage} result": folder for stage, folder in context.inputs.items()}
    folders |= {n.name: context.recipe_folder / Path(n.value).expanduser() for n in named if n.kind == "path"}
    found = {what: len(lineage.seen(folder, evaluator.prompts)) for what, folder in folders.items()}
    return [
        f"{what} was trained on {count:,} of the {len(evaluator.prompts):,} prompts of this evaluation: its "
        "responses to them are no held-out ones"
        for what, count in found.items()
        if count
    ]


def counts_of(evaluator: Evaluator, answers: Sequence[SystemResponses]) -> dict[str, int | None]:
    """Prompts, those that with a response go beyond the base's positions, and responses that were cut at the limit."""
    positions, room = evaluator.base.limits.positions, evaluator.max_new_tokens
    ended = [bool(f) for a in answers for f in a.finished]
    longer = None if positions is None else sum(len(q) + room > positions for q in evaluator.queries)
    return {
        "prompts": len(evaluator.prompts),
        "longer_than_positions": longer,
        "answers": len(ended),
        "unfinished": len(ended) - sum(ended),
        "limit": room,
    }


def chat_verdicts(
    context: StageContext, loaded: LoadedModels, answers: Sequence[SystemResponses], against: str, seed: int
) -> dict[str, Any]:
    """What judges of pairs say; one process asks, all know.

    Raises:
        RemoteError: an endpoint gives no usable reply; in the other processes as ``StageError``.
    """
    settings = loaded.recipe.evaluation

    def ask() -> dict[str, Any]:
        folder = None if context.generations is None else context.generations / "judgements"
        return judged_in_pairs(
            settings.judges,
            answers,
            against,
            folder=folder,
            resamples=settings.bootstrap,
            seed=seed,
            say=context.say,
            phase=context.bar.phase,
        )

    return loaded.processes.on_main(ask)


def join(results: dict[str, Any], found: dict[str, Any]) -> None:
    """Comparisons, judges and warnings of other judges added to those of the first."""
    results["comparisons"] += found["comparisons"]
    results["judges"] = results.get("judges", {}) | found["judges"]
    results["warnings"] += found["warnings"]


def write(out: Path, results: dict[str, Any], answers: Sequence[SystemResponses]) -> None:
    write_json(out / "results.json", results, sort_keys=False)  # systems in the recipe's order
    with atomic_file(out / "samples.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in samples_rows(answers))


def responses_of(
    context: StageContext,
    loaded: LoadedModels,
    evaluator: Evaluator,
    systems: Sequence[Named],
    references: References | None,
) -> list[SystemResponses]:
    """Responses, the sampled ones of all systems first; those that a checkpoint knows are not made again.

    A system is loaded once, for both decodings, and let go before the next.
    """
    recipe, settings = loaded.recipe, loaded.recipe.evaluation
    saved = context.checkpoints.resume()
    known = [] if saved is None else json.loads(saved.own_numbers["answers"])
    answers = [SystemResponses(**found) for found in known]
    labels = _labels(systems)
    wanted: list[tuple[Named, Decoding]] = []
    for named in systems:
        wanted += [(named, "sampled")]
        wanted += [(named, "greedy")] if settings.greedy and named.kind != "best_of" else []
    open_name, system = "", None
    for named, decoding in wanted[len(answers) :]:
        if named.name != open_name or system is None:
            open_name, system = named.name, None  # the one before goes first
            system = open_system(context, loaded, evaluator, named, labels[named.name])
        found = evaluator.run(system, decoding)
        work = partial(
            compute_metrics,
            found,
            settings,
            references,
            base_dir=recipe.base_dir,
            seed=evaluator.seed,
            columns=columns_of(evaluator.prompts),
        )
        metrics, scores = loaded.processes.on_main(work)
        if decoding == "sampled" and references is not None and "perplexity" in settings.metrics:
            metrics |= evaluator.perplexity(system, references) if system.best_of == 1 else {}
        if "base_perplexity" in settings.metrics:
            made, of_each = summarised(evaluator.base_perplexity(found), found, settings, evaluator.seed)
            metrics, scores = metrics | made, scores | of_each
        answers.append(replace(found, metrics=metrics, response_scores=scores))
        context.bar.advance(len(answers), {}, sum(len(ids) for ids in found.token_ids))
        context.checkpoints.safe_point(len(answers), lambda: snapshot(answers), len(answers))
    return sorted(answers, key=lambda a: a.decoding != "sampled")


def snapshot(answers: Sequence[SystemResponses]) -> State:
    """As text: a checkpoint sorts the keys of what it holds, and metrics stand in the order of the recipe."""
    return State(tensors={}, own_numbers={"answers": json.dumps([asdict(a) for a in answers])})


def _references(context: StageContext, loaded: LoadedModels, evaluator: Evaluator) -> list[tuple[str, ...]] | None:
    """References of every row where a metric asks for them.

    Raises:
        UserError: none of the prompts has one.
    """
    names = loaded.recipe.evaluation.metrics
    if not needs_references(names) and not any(":" in name for name in names):
        return None
    found = references_for(loaded.recipe, context.corpus, evaluator.prompts)
    if needs_references(names) and not any(found):
        first = next(name for name in names if needs_references([name]))
        raise UserError(f"evaluation.metrics: {NO_REFERENCES.format(name=first)}")
    return found


def _labels(systems: Sequence[Named]) -> dict[str, str]:
    """Folders by their own name, or as they were written where two would be called the same."""
    labels = [s.label for s in systems]
    return {s.name: s.label if labels.count(s.label) == 1 else s.name for s in systems}


def make_evaluator(context: StageContext, loaded: LoadedModels) -> Evaluator:
    """Roles loaded, prompts chosen, reward and gold ready."""
    recipe = loaded.recipe
    settings = recipe.evaluation
    prompts = evaluation_prompts(recipe, context.corpus)
    if not prompts:
        raise UserError("data.held_out: no held-out prompt is left for evaluation; raise the share or name a file")
    base = loaded.base()
    if "sft" in context.inputs:
        loaded.load("sft", "reference", context.inputs["sft"])
    if "distil" in context.inputs:
        loaded.load("distil", "distilled", context.inputs["distil"])
    if "ppo" in context.inputs:
        loaded.load("ppo", "policy", context.inputs["ppo"])
    return Evaluator(
        base=base,
        renderer=loaded.renderer(),
        config=settings,
        prompts=[p for p in prompts for _ in range(settings.samples_per_prompt)],
        max_new_tokens=response_limit(recipe),
        seed=recipe.seed if settings.seed is None else settings.seed,
        reward=loaded.load_reward(context.inputs["reward"]) if "reward" in context.inputs else None,
        held_out_reward=_independent(context, loaded),
        gold=load_function(settings.gold, recipe.base_dir) if settings.gold else None,
        generations=Generations(context.generations, loaded.processes.is_main),
        memory=OOMRetry("evaluation.batch", context.warn_alone),
        phase=context.bar.phase,
        processes=loaded.processes,
        servers=rollout_servers(context),
    )


def _independent(context: StageContext, loaded: LoadedModels) -> RewardModel | None:
    """The run's held-out reward model, where PPO chose no checkpoint by it: then it is no stranger to the policy."""
    if "reward" not in context.inputs or loaded.recipe.ppo.keep == "best":
        return None
    return loaded.load_holdout_model(context.inputs["reward"])


def available(context: StageContext, loaded: LoadedModels, evaluator: Evaluator) -> list[Named]:
    """Systems of the recipe, in its order; of the default ones those whose stages are there.

    Raises:
        UserError: a stage of one that the recipe names is not in this run, or none is left.
    """
    there = {stage for stage in context.inputs if stage != "reward" or evaluator.reward is not None}
    recipe = loaded.recipe
    missing = lacking(recipe, there)
    if missing and names_systems(recipe):
        raise UserError(f"evaluation.systems: {next(iter(missing.values()))}")
    if not (found := offered(recipe, there)):
        raise UserError("evaluation.systems: none of them is in this run")
    return found
