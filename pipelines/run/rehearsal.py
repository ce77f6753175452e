"""What can be known before the first stage, so that no fault of the start is reported after hours of work.

The base's config and tokenizer are read, never its weights; rows of every part are rendered; evaluation's systems are
checked. `trivet plan` does all of this but run code of the user's, which a run loads before its first stage.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig

from data.common.errors import UserError, located
from data.common.function_binding import overlooked
from data.common.strict_json import read_object
from data.common.user_functions import RESERVED, parameters_read
from data.leaks import source_of
from data.records import Prompt
from data.splits import Corpus
from data.storage.views import Chain
from data.template import Renderer
from evaluation.systems import parse
from models.backbone.architecture import without_weights
from models.backbone.artifacts import read_artifact
from models.backbone.encoders import check_method, names_encoder
from models.hub.limits import check_rows
from models.hub.registry import resolve_base
from models.hub.spec import BaseModelSpec
from models.roles.files import ADAPTER, CONFIG, SCORING
from models.roles.lora import differences
from pipelines.execution.progress import Progress
from pipelines.loading.idle import replaced, waiting
from pipelines.recipe.derived import evaluation_prompts, response_limit
from pipelines.recipe.schema import Recipe
from pipelines.run.base_rehearsal import KnownBase, adapter_settings, check_adapter, check_stored_adapter, known_base
from pipelines.run.binding import check_start, offers
from pipelines.run.classifier_rehearsal import check_classifiers
from pipelines.run.endpoints import check_keys, unanswered
from pipelines.run.evaluation_rehearsal import EvaluationRehearsal
from pipelines.run.parts import RunParts
from pipelines.run.stops_rehearsal import doubtful_ends
from pipelines.stages.depends_on import rendering_of
from pipelines.stages.keys import differences as changes
from pipelines.stages.table import STAGES, bases_made
from stages import lineage
from stages.ppo.stage import none_fits, prompt_limit
from stages.stage import copy_sentence, prompt_rows
from stages.training.held_out_curve import require_held_out

SHOWN = 5
"""Rejected rows that a run names."""
ROWS = 2000
"""Rows of a part that are rendered: all of a small one, every n-th of a large one."""


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
    if left_out := waiting(pipeline.asked, pipeline.given):
        warn(left_out)
    if without_effect := replaced(pipeline.asked, pipeline.given):
        warn(without_effect)
    doubts = (given_otherwise(pipeline, chosen), trained_on_held_out(pipeline, chosen))
    for doubt in (*chain(*doubts), *doubtful_columns(recipe, corpus, chosen)):
        warn(doubt)
    check_classifiers(recipe, chosen)
    _check_reference(pipeline, chosen)
    _check_held_out(recipe, corpus, chosen)
    evaluation = _evaluation(pipeline, chosen, warn)
    if evaluation is not None:
        evaluation.check()
    if "ppo" in chosen and (text := value_start(recipe)):
        warn(text)
    spec = _base_of(pipeline)
    base = (
        None
        if spec is None
        else known_base(spec, recipe.template_source, recipe.stop, recipe.stop_strings, recipe.adapter.positions)
    )
    if (of_reward := _reward_base(pipeline, chosen)) is not None:
        _check_reward_base(of_reward, recipe, corpus, chosen, warn)
    if base is None:
        return
    for doubt in base.renderer.doubts():
        warn(doubt)
    if "sft" in chosen:
        for doubt in doubtful_ends(base.renderer.stop_strings, _some(corpus.demonstrations.all)):
            warn(doubt)
    check_adapter(base, recipe.adapter, warn)
    for stage, folder in _taken(pipeline, chosen).items():
        on = of_reward if stage == "reward" and recipe.reward.base != "same" else base
        if on is not None:
            check_stored_adapter(on, folder, f"--input {stage}")
    _tell_copies(pipeline, base, chosen, warn)
    for what, rows, places, room, cure in _rows(recipe, corpus, base.renderer, chosen):
        if base.limits is not None:
            check_rows(base.limits, rows, what, cure, warn, room, places)
    if "ppo" in chosen:
        _check_room(recipe, corpus, base)
    if evaluation is not None:
        evaluation.check_models(base)


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


def _check_held_out(recipe: Recipe, corpus: Corpus, chosen: Sequence[str]) -> None:
    """Refuse what is decided by held-out rows that are not there.

    Raises:
        UserError: as the stage would.
    """
    if "sft" in chosen:
        require_held_out(recipe.sft, "sft", "demonstrations", len(corpus.demonstrations.held_out))
    if "reward" in chosen:
        given = corpus.rankings.held_out if recipe.rankings is None else corpus.prompts.held_out
        require_held_out(recipe.reward, "reward", "rankings", len(given))


def _evaluation(pipeline: RunParts, chosen: Sequence[str], warn: Callable[[str], None]) -> EvaluationRehearsal | None:
    if "evaluate" not in chosen:
        return None
    recipe, corpus = pipeline.recipe, pipeline.corpus
    stages, prompts = {*recipe.stages, *pipeline.given}, _some(evaluation_prompts(recipe, corpus))
    return EvaluationRehearsal(recipe=recipe, corpus=corpus, stages=stages, prompts=prompts, warn=warn)


def _taken(pipeline: RunParts, chosen: Sequence[str]) -> dict[str, Path]:
    """Results that the chosen stages are given, with their folders."""
    needs = {need for name in chosen for need in pipeline.inputs_of(name)}
    return {name: folder for name, folder in pipeline.given.items() if name in needs}


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
        rows, places = _ranking_rows(recipe, corpus, base.renderer)
        check_rows(limits, rows, "data.rankings", "lower reward.max_tokens", warn, where=places)


def _check_room(recipe: Recipe, corpus: Corpus, base: KnownBase) -> None:
    """Refuse a PPO that would leave out every prompt.

    Raises:
        UserError: as the stage would.
    """
    limit = prompt_limit(recipe.ppo, None if base.limits is None else base.limits.positions)
    prompts = corpus.prompts.train
    if len(prompts) <= ROWS and all(len(row) > limit for row in prompt_rows(base.renderer, prompts)):
        raise none_fits(len(prompts), limit)


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


def doubtful_columns(recipe: Recipe, corpus: Corpus, chosen: Sequence[str]) -> Iterator[str]:
    """Sentences about columns that a function reads and some rows lack, or that it overlooks by a letter."""
    read: dict[str, list[str]] = {}
    for reference, offered in {r: names for _, r, names in offers(recipe, corpus, chosen)}.items():
        parameters = parameters_read(reference, recipe.base_dir) or []
        for name, column in overlooked(parameters, offered):
            yield f"{reference}: its parameter '{name}' keeps its default; the column is called '{column}'"
        read[reference] = sorted({p.name for p in parameters} & offered - RESERVED)
    if not (names := {name for columns in read.values() for name in columns}):
        return
    prompts, lacking = corpus.prompts.all, Counter[str]()
    for prompt in prompts:
        lacking.update(name for name in names if prompt.columns.get(name) is None)
    for reference, columns in read.items():
        for name in columns:
            if 0 < lacking[name] < len(prompts):
                lack = f"{lacking[name]:,} of {len(prompts):,} prompts have no '{name}'"
                yield f"{reference}: {lack}; it gets None for them"


def given_otherwise(pipeline: RunParts, chosen: Sequence[str]) -> Iterator[str]:
    """Sentences about results that the chosen stages are given, and that were made with another rendering or limit."""
    recipe = pipeline.recipe
    rendering = {"file": None, "args": {}} | rendering_of(recipe)
    for stage in sorted(_taken(pipeline, chosen)):
        then, now = _made_with(pipeline.given[stage]), dict[str, Any]()
        if STAGES[stage].on_base and not (stage == "reward" and recipe.reward.base != "same"):
            now = dict(rendering)
        if stage == "reward":
            now["reward.max_tokens"] = recipe.reward.max_tokens
        both = now.keys() & then.keys()
        if differ := changes({k: then[k] for k in both}, {k: now[k] for k in both}):
            yield f"{stage}, which is given, was made otherwise than it is used here: {', '.join(differ)}"
    named = [parse(name) for name in recipe.evaluation.systems] if "evaluate" in chosen else []
    for folder, name in ((recipe.base_dir / Path(n.value).expanduser(), n.name) for n in named if n.kind == "path"):
        then = {k: v for k, v in _made_with(folder).items() if k in rendering} if folder.is_dir() else {}
        if differ := changes(then, {k: rendering[k] for k in then}):
            yield f"evaluation.systems: {name} was made otherwise than it is asked here: {', '.join(differ)}"


def trained_on_held_out(pipeline: RunParts, chosen: Sequence[str]) -> Iterator[str]:
    """Sentences about results that the chosen stages take and do not make, and that were trained on prompts which this
    run holds out, or on nobody knows what."""
    needs = {need: folder for name in chosen for need, folder in pipeline.inputs_of(name).items()}
    taken = {n: folder for n, folder in needs.items() if n not in chosen and STAGES[n].training_data is not None}
    held = {part: getattr(pipeline.corpus, part).held_out for part in ("prompts", "rankings", "demonstrations")}
    for stage, folder in sorted(taken.items()):
        for part, records in held.items():
            if places := lineage.seen(folder, records):
                yield (
                    f"leak: {stage}, which is taken from {folder}, was trained on {len(places):,} of the "
                    f"{len(records):,} held-out records of data.{part} (the first is {source_of(records[places[0]])}): "
                    "what is found out about it on them is too good. Hold out what it was not trained on, as with the "
                    "data, data.held_out and data.group_by of its own run"
                )
        if "evaluate" in chosen and stage in pipeline.given and not lineage.is_known(folder):
            yield (
                f"{stage}, which is given: not all that it was trained on is known, and held-out prompts of this run "
                "may be among it"
            )


def _made_with(folder: Path) -> dict[str, Any]:
    """Rendering and limit of a stage's result, and the limit of an exported reward model; as far as they are known."""
    found = read_artifact(folder)
    if found is None:
        limit = read_object(folder / SCORING).get("max_tokens") if (folder / SCORING).is_file() else None
        return {} if limit is None else {"reward.max_tokens": limit}
    described = found.manifest.get("described") or {}
    settings = described.get("settings") or {}
    limit = {"reward.max_tokens": settings["max_tokens"]} if "max_tokens" in settings else {}
    return {"file": None, "args": {}} | (described.get("rendering") or {}) | limit


def value_start(recipe: Recipe) -> str | None:
    """A sentence where the value role cannot start as the reward model, because that stands on another base."""
    if recipe.reward.base == "same" or recipe.ppo.value.init != "reward":
        return None
    return (
        "ppo.value: the reward model stands on another base (reward.base), so the value role starts from the SFT "
        "adapter, with a head of zeros"
    )


# -- the base --------------------------------------------------------------------------------------------------------


def _base_of(pipeline: RunParts) -> BaseModelSpec | None:
    """The base, if it is there: one that is made by the run itself is not before its stage."""
    recipe, tokens, stage = pipeline.recipe, pipeline.recipe.adapter.new_tokens, pipeline.recipe.base_stage
    if stage is None:
        return resolve_base(str(recipe.base), base_dir=recipe.base_dir, new_tokens=tokens)
    made = bases_made(pipeline.run_dir, pipeline.given)[stage] / "model"
    there = (made / "config.json").is_file()
    return resolve_base(str(made), base_dir=recipe.base_dir, new_tokens=tokens) if there else None


def copied_roles(recipe: Recipe, chosen: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Roles that the chosen stages start as a copy of a finished stage's role, each with that stage."""
    shares = recipe.reward.base == "same"
    if "reward" in chosen and shares and recipe.reward.init == "sft":
        yield "reward", "sft"
    if "ppo" in chosen:
        yield "policy", "sft"
        if recipe.ppo.value.init != "policy_trunk":
            yield "value", "reward" if shares and recipe.ppo.value.init == "reward" else "sft"


def _tell_copies(pipeline: RunParts, base: KnownBase, chosen: Sequence[str], warn: Callable[[str], None]) -> None:
    """Tell of roles that keep the settings of an adapter that the run is given, or has, and not the recipe's."""
    if pipeline.recipe.adapter.tuning.copies:
        return
    lm = without_weights(base.config)
    for role, stage in copied_roles(pipeline.recipe, chosen):
        there = (
            None
            if stage in chosen
            else _stored_adapter(pipeline.given.get(stage, pipeline.run_dir / STAGES[stage].folder))
        )
        if there is None:
            continue
        asked = adapter_settings(base, lm, pipeline.recipe.adapter, head=stage == "reward")
        if differ := differences(lm, asked, there, stage):
            warn(copy_sentence(role, stage, differ))


def _stored_adapter(folder: Path) -> PeftConfig | None:
    """The configuration of a stage's adapter or of a plain one; None where there is none to compare."""
    found = next((f for f in (folder / ADAPTER, folder) if (f / CONFIG).is_file()), None)
    if found is None:
        return None
    with contextlib.suppress(Exception):  # what is wrong with it is told where it is loaded
        settings = read_object(found / CONFIG)
        kinds: dict[Any, Any] = {"LORA": LoraConfig, "ADALORA": AdaLoraConfig, "IA3": IA3Config}
        if (kind := kinds.get(settings.get("peft_type"))) is not None:
            return cast(PeftConfig, kind(**{k: v for k, v in settings.items() if k in kind.__dataclass_fields__}))
    return None


# -- rows ------------------------------------------------------------------------------------------------------------


def _some(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[:: max(1, -(-len(rows) // ROWS))]


def partly_rehearsed(corpus: Corpus, chosen: Sequence[str]) -> list[str]:
    """Sentences about parts of the data of which only some rows are rendered before the first stage."""
    parts = dict.fromkeys(part for name in chosen for part in STAGES[name].data if part != "documents")
    found = {part: getattr(corpus, part).all for part in parts}
    return [
        f"data.{part}: {len(_some(rows)):,} of {len(rows):,} rows are rendered ahead, evenly spaced; one of the others "
        "that the template refuses, or that is too long for the base, is found by the stage"
        for part, rows in found.items()
        if len(rows) > ROWS
    ]


Rendered = tuple[str, Sequence[list[int]], list[str], int, str]


def _rows(recipe: Recipe, corpus: Corpus, renderer: Renderer, chosen: Sequence[str]) -> Iterator[Rendered]:
    """Rendered rows of each chosen stage: what they are, ids, places, new tokens behind them, what makes them fit."""
    if "sft" in chosen:
        shown = _some(corpus.demonstrations.all)
        encoded = []
        for d in shown:
            with located(d.prompt.source):
                encoded.append(
                    renderer.conversation(
                        d.prompt.messages, d.answer, d.finished, recipe.sft.supervise, recipe.sft.max_tokens
                    ).ids
                )
        yield "data.demonstrations", encoded, [d.prompt.source for d in shown], 0, "lower sft.max_tokens"
    if "reward" in chosen and recipe.reward.base == "same":
        pairs, places = _ranking_rows(recipe, corpus, renderer)
        yield "data.rankings", pairs, places, 0, "lower reward.max_tokens"
    for what, prompts, room, cure in _asked(recipe, corpus, chosen):
        some = _some(prompts)
        yield what, prompt_rows(renderer, some), [p.source for p in some], room, cure


def _ranking_rows(recipe: Recipe, corpus: Corpus, renderer: Renderer) -> tuple[list[list[int]], list[str]]:
    """Every response with its prompt as ids, within the limit, and its place."""
    pairs, places = [], []
    for r in _some(corpus.rankings.all):
        with located(r.prompt.source):
            both = [
                renderer.prompt_and_answer(r.prompt.messages, a, max_tokens=recipe.reward.max_tokens) for a in r.answers
            ]
        pairs += [query + answer for query, answer in both]
        places += [r.prompt.source] * len(both)
    return pairs, places


def _asked(recipe: Recipe, corpus: Corpus, chosen: Sequence[str]) -> Iterator[tuple[str, Sequence[Prompt], int, str]]:
    """Prompts that are responded to: of rankings and evaluation; PPO leaves out by itself those that do not fit."""
    if "rankings" in chosen and recipe.rankings is not None:
        r = recipe.rankings
        prompts = Chain(corpus.prompts.train[: r.prompts], corpus.prompts.held_out[: r.held_out_prompts])
        yield "data.prompts", prompts, r.max_new_tokens, "lower rankings.max_new_tokens"
    if "ppo" in chosen:
        yield "data.prompts", corpus.prompts.train, 0, "leave out the longest prompts"
    if "evaluate" in chosen:
        held_out = evaluation_prompts(recipe, corpus)
        yield "evaluation", held_out, response_limit(recipe), "lower evaluation.max_new_tokens"
