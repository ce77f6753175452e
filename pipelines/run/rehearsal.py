"""What can be known before the first stage, so that no fault of the start is reported after hours of work.

The base's config and tokenizer are read, never its weights; rows of every part are rendered; evaluation's systems are
checked. `trivet plan` does all of this but run code of the user's, which a run loads before its first stage.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig

from data.common.errors import UserError, located
from data.common.function_binding import overlooked
from data.common.strict_json import read_object
from data.common.user_functions import RESERVED, parameters_read
from data.records import Prompt
from data.splits import Corpus
from data.storage.views import Chain
from data.template import Renderer
from evaluation.prompting import asking
from evaluation.systems import Named, parse
from models.backbone.architecture import check_architecture, linear_layers, reach_sentence, without_weights
from models.backbone.artifacts import read_artifact
from models.hub.download import local_folder
from models.hub.limits import Limits, check_rows, check_stops, check_vocabulary, limits_of_folder
from models.hub.load import tokenizer_of
from models.hub.registry import resolve_base
from models.hub.spec import BaseModelSpec
from models.hub.validate import check_model
from models.roles.files import ADAPTER, CONFIG
from models.roles.lora import differences, lora_config
from pipelines.execution.progress import Progress
from pipelines.loading.idle import replaced, waiting
from pipelines.recipe.derived import evaluation_prompts, response_limit
from pipelines.recipe.schema import Recipe
from pipelines.run.binding import check_start, offers
from pipelines.run.parts import RunParts
from pipelines.stages.keys import differences as changes
from pipelines.stages.keys import rendering_key
from pipelines.stages.table import STAGES
from reward.files import SCORING
from stages.stage import copy_sentence, prompt_rows

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
    if pipeline.processes.unused_devices:
        progress.say(pipeline.processes.unused_devices)
    corpus = pipeline.corpus
    for line in [*source_lines(corpus), *corpus.remarks, *bad_rows(corpus)]:
        progress.say(line)
    rehearse(pipeline, chosen, progress.warn)


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
    if left_out := waiting(recipe, pipeline.given):
        warn(left_out)
    if without_effect := replaced(recipe, pipeline.given):
        warn(without_effect)
    for doubt in (*given_otherwise(pipeline, chosen), *doubtful_columns(recipe, corpus, chosen)):
        warn(doubt)
    if "evaluate" in chosen:
        check_systems(recipe, corpus, {*recipe.stages, *pipeline.given})
    if "ppo" in chosen and (text := value_start(recipe)):
        warn(text)
    spec = _base_of(pipeline)
    folder = None if spec is None else local_folder(spec.source, spec.revision)
    if spec is None or folder is None:
        return
    check_model(folder)
    config = _config_of(folder, spec)
    renderer, limits = _opened(spec, folder, config, recipe)
    for doubt in renderer.doubts():
        warn(doubt)
    _check_adapter(spec, config, recipe, warn)
    _tell_copies(pipeline, config, chosen, warn)
    for what, rows, places, room, cure in _rows(recipe, corpus, renderer, chosen):
        if limits is not None:
            check_rows(limits, rows, what, cure, warn, room, places)


def check_precision(recipe: Recipe, chosen: Sequence[str]) -> None:
    """Refuse to train adapters through a float16 base: what a loss of many tokens sends back to one of them is smaller
    than float16 can tell apart, and the loss is not scaled. A full copy of such a base computes in float32.

    Raises:
        UserError: a chosen stage would.
    """
    trains = [name for name in chosen if STAGES[name].on_base and STAGES[name].role is not None]
    if recipe.runtime.dtype == "float16" and recipe.adapter.method == "lora" and trains:
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
    rendering = {"file": None} | rendering_key(recipe.template, recipe.stop, recipe.base_dir)
    taken = {need for name in chosen for need in pipeline.inputs_of(name) if need in pipeline.given}
    for stage in sorted(taken):
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


def _made_with(folder: Path) -> dict[str, Any]:
    """Rendering and limit of a stage's result, and the limit of an exported reward model; as far as they are known."""
    found = read_artifact(folder)
    if found is None:
        limit = read_object(folder / SCORING).get("max_tokens") if (folder / SCORING).is_file() else None
        return {} if limit is None else {"reward.max_tokens": limit}
    described = found.manifest.get("described") or {}
    settings = described.get("settings") or {}
    limit = {"reward.max_tokens": settings["max_tokens"]} if "max_tokens" in settings else {}
    return {"file": None} | (described.get("rendering") or {}) | limit


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
    recipe = pipeline.recipe
    if isinstance(recipe.base, str):
        return resolve_base(recipe.base, base_dir=recipe.base_dir)
    made = pipeline.given.get("pretrain", pipeline.run_dir / STAGES["pretrain"].folder) / "model"
    return resolve_base(str(made), base_dir=recipe.base_dir) if (made / "config.json").is_file() else None


def _opened(spec: BaseModelSpec, folder: Path, config: Any, recipe: Recipe) -> tuple[Renderer, Limits | None]:
    """The renderer that the stages will use, and what the base takes; both compared."""
    tokenizer, stops = tokenizer_of(spec.model_copy(update={"source": str(folder)})), _generation_stops(folder, config)
    limits = limits_of_folder(folder, spec.name)
    if limits is not None:
        check_vocabulary(limits, tokenizer)
    renderer = Renderer(tokenizer, template=recipe.template_source, stop=recipe.stop or spec.stop, extra_stop_ids=stops)
    if limits is not None:
        check_stops(limits, renderer.stop_ids)
    return renderer, limits


def _config_of(folder: Path, spec: BaseModelSpec) -> Any:
    """The config of a causal language model.

    Raises:
        UserError: it is of another kind, which no stage can use.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # damaged configs make the library raise anything
        raise UserError(f"base {spec.name}: its config.json cannot be read ({str(error).splitlines()[0]})") from error
    if config.model_type not in CAUSAL:
        raise UserError(
            f"base {spec.name}: '{config.model_type}' is no causal language model, which every stage needs; choose "
            "another base (`trivet models` lists some)"
        )
    return config


def _check_adapter(spec: BaseModelSpec, config: Any, recipe: Recipe, warn: Callable[[str], None]) -> None:
    """Whether the architecture can carry roles and the adapter finds its layers, by names and shapes alone."""
    try:
        lm = without_weights(config)
    except Exception as error:  # a config of impossible sizes makes the library raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"base {spec.name}: its config.json describes no model ({first})") from error
    check_architecture(lm, spec.name)
    if recipe.adapter.method == "lora":
        names = linear_layers(lm)
        lora_config(lm, names, recipe.adapter)
        if recipe.adapter.targets == "all-linear" and (said := reach_sentence(lm, names)):
            warn(said)


def copied_roles(recipe: Recipe, chosen: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Roles that the chosen stages start as a copy of a finished stage's role, each with that stage."""
    shares = recipe.reward.base == "same"
    if "reward" in chosen and shares and recipe.reward.init == "sft":
        yield "reward", "sft"
    if "ppo" in chosen:
        yield "policy", "sft"
        if recipe.ppo.value.init != "policy_trunk":
            yield "value", "reward" if shares and recipe.ppo.value.init == "reward" else "sft"


def _tell_copies(pipeline: RunParts, config: Any, chosen: Sequence[str], warn: Callable[[str], None]) -> None:
    """Tell of roles that keep the settings of an adapter that the run is given, or has, and not the recipe's."""
    if pipeline.recipe.adapter.method != "lora":
        return
    lm = without_weights(config)
    asked = lora_config(lm, linear_layers(lm), pipeline.recipe.adapter)
    for role, stage in copied_roles(pipeline.recipe, chosen):
        there = (
            None
            if stage in chosen
            else _stored_adapter(pipeline.given.get(stage, pipeline.run_dir / STAGES[stage].folder))
        )
        if there is not None and (differ := differences(lm, asked, there, stage)):
            warn(copy_sentence(role, stage, differ))


def _stored_adapter(folder: Path) -> LoraConfig | None:
    """The configuration of a stage's adapter or of a plain one; None where there is none to compare."""
    found = next((f for f in (folder / ADAPTER, folder) if (f / CONFIG).is_file()), None)
    if found is None:
        return None
    with contextlib.suppress(Exception):  # what is wrong with it is told where it is loaded
        settings = read_object(found / CONFIG)
        if settings.get("peft_type") == "LORA":
            return LoraConfig(**{k: v for k, v in settings.items() if k in LoraConfig.__dataclass_fields__})
    return None


def _generation_stops(folder: Path, config: Any) -> tuple[int, ...]:
    """Stop ids of the generation config, as the loaded model will have them."""
    file = folder / "generation_config.json"
    # where there is no such file, the model makes one of its config
    found = read_object(file).get("eos_token_id") if file.is_file() else config.get_text_config().eos_token_id
    return () if found is None else (found,) if isinstance(found, int) else tuple(found)


# -- rows ------------------------------------------------------------------------------------------------------------


def _some(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[:: max(1, -(-len(rows) // ROWS))]


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
        rankings = _some(corpus.rankings.all)
        pairs, places = [], []
        for r in rankings:
            with located(r.prompt.source):
                both = [
                    renderer.prompt_and_answer(r.prompt.messages, a, max_tokens=recipe.reward.max_tokens)
                    for a in r.answers
                ]
            pairs += [query + answer for query, answer in both]
            places += [r.prompt.source] * len(both)
        yield "data.rankings", pairs, places, 0, "lower reward.max_tokens"
    for what, prompts, room, cure in _asked(recipe, corpus, chosen):
        some = _some(prompts)
        yield what, prompt_rows(renderer, some), [p.source for p in some], room, cure


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


# -- systems ---------------------------------------------------------------------------------------------------------


def check_systems(recipe: Recipe, corpus: Corpus, stages: set[str]) -> None:
    """Check evaluation's prompts and systems, with the stages that the run has or is given.

    Raises:
        UserError: no prompt is left, or a system that cannot be.
    """
    if not corpus.prompts.held_out[: recipe.evaluation.prompts]:
        raise UserError("data.held_out: no held-out prompt is left for evaluation; raise the share or name a file")
    for name in recipe.evaluation.systems:
        _check_system(parse(name), recipe, corpus, stages)


def _check_system(named: Named, recipe: Recipe, corpus: Corpus, stages: set[str]) -> None:
    text = f"evaluation.systems: {named.name}"
    if named.kind == "checkpoint" and "ppo" in recipe.stages:
        every, update = recipe.ppo.keep_every, int(named.value)
        if not every or update % every or not 0 < update <= recipe.ppo.updates:
            kept = f"every {every}th of {recipe.ppo.updates} is" if every else "none is, without ppo.keep_every,"
            raise UserError(f"{text}: that policy will not be kept ({kept} kept); change ppo.keep_every or the system")
    if named.kind == "checkpoint" and "ppo" not in stages:
        raise UserError(f"{text}: there is no ppo stage in this run; add it, or give --input ppo=PATH")
    if named.kind == "path" and not (folder := (recipe.base_dir / Path(named.value).expanduser())).is_dir():
        raise UserError(f"{text}: no such folder ({folder})")
    if named.kind == "prompted":
        config = recipe.evaluation.asked(named.value)
        assert config is not None  # the recipe's own check
        seed = recipe.seed if recipe.evaluation.seed is None else recipe.evaluation.seed
        asking(named.value, config, corpus.demonstrations.train, seed)
        _check_system(parse(config.model), recipe, corpus, stages)
