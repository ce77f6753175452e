"""What can be known before the first stage, so that no fault of the start is reported after hours of work.

The base's config and tokenizer are read, never its weights; rows of every part are rendered; evaluation's systems are
checked. `trivet plan` does all of this but run code of the user's, which a run loads before its first stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from data.common.errors import UserError
from data.splits import Corpus
from models.backbone.artifacts import read_artifact
from models.backbone.encoders import check_method, names_encoder
from models.hub.limits import check_rows
from models.hub.registry import resolve_base
from models.hub.spec import BaseModelSpec
from pipelines.execution.progress import Progress
from pipelines.loading.idle import replaced, waiting
from pipelines.recipe.derived import evaluation_prompts
from pipelines.recipe.schema import Recipe
from pipelines.run.base_rehearsal import KnownBase, check_adapter, check_stored_adapter, known_base
from pipelines.run.binding import check_start, doubtful_columns
from pipelines.run.classifier_rehearsal import check_classifiers
from pipelines.run.endpoints import check_keys, unanswered
from pipelines.run.evaluation_rehearsal import EvaluationRehearsal
from pipelines.run.given_results import given_otherwise, results_taken, trained_on_held_out, warn_of_copies
from pipelines.run.learning_rehearsal import check_continued, check_records, check_rendered
from pipelines.run.parts import RunParts
from pipelines.run.rehearsed_rows import check_room, evenly_spaced, partly_rehearsed, ranking_rows, rendered_rows
from pipelines.run.stops_rehearsal import doubtful_ends
from pipelines.stages.table import STAGES, bases_made
from reward.files import HOLDOUT

SHOWN = 5
"""Rejected rows that a run names."""


def before_first_stage(pipeline: RunParts, progress: Progress, chosen: Sequence[str]) -> None:
    """Everything that ``run`` checks before it holds the folder.

    Raises:
        UserError: whatever of it would fail later.
    """
    check_start(pipeline.recipe, pipeline.corpus, chosen, run_code=True, warn=progress.warn)
    if text := pipeline.details.sharding:
        progress.say(text)
    if pipeline.processes.unused_devices:
        progress.say(pipeline.processes.unused_devices)
    corpus = pipeline.corpus
    for line in [*source_lines(corpus), *corpus.remarks, *bad_rows(corpus)]:
        progress.say(line)
    ahead = [name for name in chosen if read_artifact(pipeline.run_dir / STAGES[name].folder) is None]
    check_keys(pipeline.recipe, ahead)
    rehearse(pipeline, chosen, progress.warn)
    for line in partly_rehearsed(corpus, ahead):
        progress.say(line)
    for doubt in unanswered(pipeline.recipe, ahead):
        progress.warn(doubt)


def source_lines(corpus: Corpus) -> list[str]:
    """What became of the rows of each source, and under it what cleaning did."""
    out = []
    for count in corpus.counts:
        out += [str(count), *(f"  {line}" for line in count.cleaning.lines())]
    return out


def bad_rows(corpus: Corpus) -> list[str]:
    """The first rejected rows with their reasons, and how many more there are."""
    rejected = corpus.rejected
    lines = [f"rejected: {row.source}: {row.reason}" for row in rejected[:SHOWN]]
    if len(rejected) > SHOWN:
        lines.append(f"rejected: {len(rejected) - SHOWN:,} more; `trivet data check RECIPE --all` names each")
    return lines


def rehearse(pipeline: RunParts, chosen: Sequence[str], warn: Callable[[str], None]) -> None:
    """Check base, rows and systems of the chosen stages.

    Raises:
        UserError: what a stage would say of them, now.
    """
    recipe, corpus = pipeline.recipe, pipeline.corpus
    check_precision(recipe, chosen)
    for doubt in _doubts(pipeline, chosen):
        warn(doubt)
    check_classifiers(recipe, chosen)
    _check_reference(pipeline, chosen)
    _check_judge(pipeline, chosen)
    check_records(recipe, corpus, chosen)
    check_continued(recipe, chosen, warn)
    evaluation = _evaluation(pipeline, chosen, warn)
    if evaluation is not None:
        evaluation.check()
    if "ppo" in chosen and (text := value_start(recipe)):
        warn(text)
    base, of_reward = _own_base(pipeline), _reward_base(pipeline, chosen)
    check_rendered(recipe, corpus, chosen, base, of_reward)
    if of_reward is not None:
        _check_reward_base(of_reward, recipe, corpus, chosen, warn)
    if base is not None:
        _check_base(base, of_reward, pipeline, chosen, warn)
        if evaluation is not None:
            evaluation.check_models(base)


def _doubts(pipeline: RunParts, chosen: Sequence[str]) -> Iterator[str]:
    """Sentences about settings, results that are given, and columns, which a run goes on with."""
    if left_out := waiting(pipeline.asked, pipeline.given):
        yield left_out
    if without_effect := replaced(pipeline.asked, pipeline.given):
        yield without_effect
    yield from given_otherwise(pipeline, chosen)
    yield from trained_on_held_out(pipeline, chosen)
    yield from doubtful_columns(pipeline.recipe, pipeline.corpus, chosen)


def _check_base(
    base: KnownBase,
    of_reward: KnownBase | None,
    pipeline: RunParts,
    chosen: Sequence[str],
    warn: Callable[[str], None],
) -> None:
    """Check the run's base: what its template says, the adapters that are to stand on it, and rows as it reads them."""
    recipe, corpus = pipeline.recipe, pipeline.corpus
    for doubt in base.doubts():
        warn(doubt)
    if "sft" in chosen:
        for doubt in doubtful_ends(base.renderer.stop_strings, evenly_spaced(corpus.demonstrations.all)):
            warn(doubt)
    check_adapter(base, recipe.adapter, warn)
    for stage, folder in results_taken(pipeline, chosen).items():
        on = of_reward if stage == "reward" and recipe.reward.base != "same" else base
        if on is not None:
            check_stored_adapter(on, folder, f"--input {stage}")
    warn_of_copies(pipeline, base, chosen, warn)
    for what, rows, places, room, cure in rendered_rows(recipe, corpus, base.renderer, chosen):
        if base.limits is not None:
            check_rows(base.limits, rows, what, cure, warn, room, places)
    if "ppo" in chosen:
        check_room(recipe, corpus, base)


def _check_reference(pipeline: RunParts, chosen: Sequence[str]) -> None:
    """Refuse a PPO whose reference would not be the base, since fresh virtual tokens change what it says.

    Raises:
        UserError: names what is missing.
    """
    recipe = pipeline.recipe
    if "ppo" in chosen and recipe.adapter.tuning.virtual and "sft" not in {*recipe.stages, *pipeline.given}:
        raise UserError(
            f"adapter.method: PPO by '{recipe.adapter.method}' starts from SFT, since a fresh adapter of virtual "
            "tokens is not the base: add the sft stage, or give its result by --input sft=PATH"
        )


def _check_judge(pipeline: RunParts, chosen: Sequence[str]) -> None:
    """Refuse a PPO whose best policy is to be chosen by a held-out reward model that the given result does not have.

    Raises:
        UserError: as the stage would.
    """
    config, given = pipeline.recipe.ppo, pipeline.given.get("reward")
    if "ppo" not in chosen:
        return
    if config.keep == "best" and given is not None and not (given / HOLDOUT).is_dir():
        raise UserError(
            f"ppo.keep: 'best' is chosen by a held-out reward model, and {given}, which is given, has none: use "
            "'last', or train that one with reward.holdout, for example 0.2"
        )


def _evaluation(pipeline: RunParts, chosen: Sequence[str], warn: Callable[[str], None]) -> EvaluationRehearsal | None:
    if "evaluate" not in chosen:
        return None
    recipe, corpus = pipeline.recipe, pipeline.corpus
    stages, prompts = {*recipe.stages, *pipeline.given}, evenly_spaced(evaluation_prompts(recipe, corpus))
    return EvaluationRehearsal(recipe=recipe, corpus=corpus, stages=stages, prompts=prompts, warn=warn)


def _own_base(pipeline: RunParts) -> KnownBase | None:
    """The run's base, if it is there."""
    recipe, spec = pipeline.recipe, _base_of(pipeline)
    if spec is None:
        return None
    writes, reserved = set(recipe.stages) != {"continued"}, recipe.adapter.positions
    return known_base(spec, recipe.template_source, recipe.stop, recipe.stop_strings, reserved, writes)


def _reward_base(pipeline: RunParts, chosen: Sequence[str]) -> KnownBase | None:
    """The reward model's base of its own, where a chosen stage trains or asks one on it."""
    recipe = pipeline.recipe
    there = "reward" in recipe.stages or "reward" in pipeline.given
    asked = any("reward" in (name, *STAGES[name].needs(recipe)) for name in chosen)
    if recipe.reward.base == "same" or not (there and asked):
        return None
    tokens = recipe.adapter.new_tokens
    spec = resolve_base(recipe.reward.base, base_dir=recipe.base_dir, new_tokens=tokens)
    return known_base(spec, "auto", reserved=recipe.adapter.positions, writes=False)


def _check_reward_base(
    base: KnownBase, recipe: Recipe, corpus: Corpus, chosen: Sequence[str], warn: Callable[[str], None]
) -> None:
    """Check a base of the reward model's own as the run's: its kind, its layers, and the rankings as it reads them."""
    if names_encoder(base.config.to_dict()):
        check_method(base.name, recipe.adapter.method, recipe.adapter.tuning.virtual)
    check_adapter(base, recipe.adapter, warn)
    limits, longest = base.limits, recipe.reward.max_tokens
    if limits is None:
        return
    if limits.table and limits.positions is not None and longest > limits.positions:
        warn(
            f"reward.max_tokens: {longest:,} is more than the {limits.positions:,} positions of base {base.name}: what "
            f"it scores is cut to {limits.positions:,} tokens"
        )
    if "reward" in chosen:
        rows, places = ranking_rows(recipe, corpus, base.renderer)
        check_rows(limits, rows, "data.rankings", "lower reward.max_tokens", warn, where=places)


def check_precision(recipe: Recipe, chosen: Sequence[str]) -> None:
    """Refuse to train adapters through a float16 base: what a loss of many tokens sends back to one of them is smaller
    than float16 can tell apart, and the loss is not scaled. A full copy of such a base computes in float32.

    Raises:
        UserError: a chosen stage would.
    """
    trains = [name for name in chosen if STAGES[name].on_base and STAGES[name].role is not None]
    if recipe.runtime.dtype == "float16" and recipe.adapter.method != "full" and trains:
        raise UserError(
            f"runtime.dtype: float16 loses gradients of adapters without a word ({', '.join(trains)} would train "
            "some): write bfloat16, float32 or auto; a run that trains nothing, such as evaluation, takes float16"
        )


def value_start(recipe: Recipe) -> str | None:
    """A sentence where the value role cannot start as the reward model, because that stands on another base."""
    if recipe.reward.base == "same" or recipe.ppo.value.init != "reward":
        return None
    return (
        "ppo.value: the reward model stands on another base (reward.base), so the value role starts from the SFT "
        "adapter, with a head of zeros"
    )


def _base_of(pipeline: RunParts) -> BaseModelSpec | None:
    """Where the base is, if it is there: one that is made by the run itself is not before its stage."""
    recipe, tokens, stage = pipeline.recipe, pipeline.recipe.adapter.new_tokens, pipeline.recipe.base_stage
    if stage is None:
        return resolve_base(str(recipe.base), base_dir=recipe.base_dir, new_tokens=tokens)
    made = bases_made(pipeline.run_dir, pipeline.given)[stage] / "model"
    there = (made / "config.json").is_file()
    return resolve_base(str(made), base_dir=recipe.base_dir, new_tokens=tokens) if there else None


# -- rows ------------------------------------------------------------------------------------------------------------
