"""What must fit together across a recipe's groups, and the defaults that depend on other settings.

Each problem is a path and a sentence that names the setting to change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data.common.errors import nearest
from data.common.redaction import has_secret
from evaluation.systems import problem_of, problem_of_metric
from models.backbone.settings import DIVIDED, METHODS
from pipelines.loading.lists import idle_terms, repeated_names
from pipelines.loading.nothing_learnt import nothing_learnt
from pipelines.recipe import rates
from pipelines.recipe.errors import Problem
from pipelines.recipe.schema import Recipe
from pipelines.stages.table import STAGES

LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of normal numbers in single precision
AMOUNTS = (
    *(f"{stage}.{name}" for stage in STAGES if STAGES[stage].learns for name in ("epochs", "batch")),
    *(f"{stage}.max_new_tokens" for stage in ("rankings", "ppo")),
)
"""Settings that follow from the data where a recipe leaves them out, or says ``auto`` (``pipelines.run.amounts``)."""
NEW_TOKENS, PROMPT_TOKENS, CONVERSATION = 64, 512, 1024  # the settings' own defaults


def default_stages(recipe: Recipe) -> tuple[str, ...]:
    """The stages that the settings call for."""
    wanted: set[str] = set()
    for name, stage in STAGES.items():
        if stage.wanted(recipe, wanted):
            wanted.add(name)
    return tuple(s for s in STAGES if s in wanted)


def fill_in(data: dict[str, Any], folder: Path | None) -> None:
    """Defaults that follow from other settings, so that the resolved recipe says them.

    Limits shrink to the context of a base from scratch; a value role that does not start from the reward model starts
    with a zero head; ``reward: [model]`` is short for ``[{source: model}]`` (also in ``best_of_by``), ``gate: off`` for
    ``{enabled: false}``. Learning rates that are not given, or ``auto``, follow from the base (``recipe.rates``);
    what follows from the data stays out (``AMOUNTS``).
    Works on plain values, before anything is checked, so every type is possible. Relative paths start in ``folder``;
    None: trivet wrote the recipe, with every rate that it chose.
    """
    for dotted in AMOUNTS:
        group, name = dotted.split(".")
        if _group(data, group).get(name, 0) in (None, "auto"):
            _group(data, group).pop(name)
    ppo, choosing = _group(data, "ppo"), _group(_group(data, "evaluation"), "best_of_by")
    _spell_out_terms(ppo, "reward")
    for name in choosing:
        _spell_out_terms(choosing, name)
    reward = _group(data, "reward")
    if reward.get("gate") in (False, "off"):  # YAML 1.1 reads off as false
        reward["gate"] = {"enabled": False}
    value = _group(ppo, "value")
    if value.get("init") not in (None, "reward"):
        value.setdefault("head", "zero")
    context = _group(_group(_group(data, "base"), "pretrain"), "model").get("context", 256)
    adapter = _group(data, "adapter")
    method, virtual = METHODS.get(str(adapter.get("method"))), adapter.get("virtual_tokens", 20)
    if method is not None and method.virtual and isinstance(virtual, int) and isinstance(context, int):
        context = max(1, context - virtual)
    if isinstance(data.get("base"), dict) and isinstance(context, int) and not isinstance(context, bool):
        _shrink_limits(data, context)
    if folder is not None:
        _choose_rates(data, folder)


def _choose_rates(data: dict[str, Any], folder: Path) -> None:
    """Learning rates that the recipe leaves open; where the base says nothing of them, the settings' own defaults."""
    chosen = rates.chosen_rates(data, folder)
    for stage in rates.DIVISORS:
        wanted = Recipe.model_fields[stage].default is not None or data.get(stage)
        if not wanted or not isinstance(group := data.setdefault(stage, {}), dict):
            continue
        if group.get(rates.SETTING) in (None, "auto"):
            group.pop(rates.SETTING, None)
            if stage in chosen:
                group[rates.SETTING] = chosen[stage]


def _spell_out_terms(group: dict[str, Any], key: str) -> None:
    """Terms of a reward that are given as names become objects."""
    if isinstance(terms := group.get(key), str | list):
        listed = [terms] if isinstance(terms, str) else terms
        group[key] = [{"source": term} if isinstance(term, str) else term for term in listed]


def _shrink_limits(data: dict[str, Any], context: int) -> None:
    """Limits that are not given fit into the ``context`` of a base from scratch."""
    for stage in ("sft", "reward", *(("distil",) if data.get("distil") else ())):
        if isinstance(data.setdefault(stage, {}), dict):
            data[stage].setdefault("max_tokens", max(8, min(CONVERSATION, context)))
    new = _group(data, "ppo").get("max_new_tokens", NEW_TOKENS)
    if isinstance(data.setdefault("ppo", {}), dict) and isinstance(new, int) and 0 < new < context:
        data["ppo"].setdefault("max_prompt_tokens", min(PROMPT_TOKENS, context - new))


def _group(data: dict[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _model_part(recipe: Recipe) -> bool:
    return any(part.kind == "model" for part in recipe.ppo.reward)


def problems_across(recipe: Recipe) -> list[Problem]:
    """Everything that does not fit together."""
    found = [*_secrets(recipe.model_dump(mode="json")), *_name(recipe), *_stages(recipe), *_missing(recipe)]
    found += numbers_out_of_range(recipe.model_dump(mode="python", exclude={"data", "base_dir"}))
    return [
        *found,
        *_systems(recipe),
        *repeated_names(recipe),
        *idle_terms(recipe),
        *nothing_learnt(recipe),
        *_context(recipe),
        *_adapter(recipe),
        *_four_bits(recipe),
        *_pretraining(recipe),
        *_sharding(recipe),
        *_servers(recipe),
    ]


def numbers_out_of_range(value: Any, path: tuple[str | int, ...] = ()) -> list[Problem]:
    """Settings that single precision, in which everything is trained, takes for 0 or for infinity."""
    if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
        taken = "0" if abs(value) < SMALLEST else "infinity"
        return [(path, f"{value:g} is {taken} in single precision, in which it is used: write one nearer to 1")]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [problem for key, inner in inside for problem in numbers_out_of_range(inner, (*path, key))]


def _four_bits(recipe: Recipe) -> list[Problem]:
    """What a base in four bits asks for."""
    if recipe.runtime.quantize is None:
        return []
    if not recipe.adapter.tuning.four_bits:
        does = (
            "trains the base, which is frozen"
            if recipe.adapter.tuning.copies
            else "is not tried with a base that is"
            if recipe.adapter.tuning.virtual
            else "reads the base's matrices, which are"
        )
        why = f"adapter.method '{recipe.adapter.method}' {does} in four bits: use 'lora', or remove this"
    elif find_spec("bitsandbytes") is None:
        why = "needs bitsandbytes: pip install 'trivet[nf4]'"
    else:
        return []
    return [(("runtime", "quantize"), why)]


def _pretraining(recipe: Recipe) -> list[Problem]:
    """What a base of the run's own, and its tokenizer, ask for."""
    kind, out = "" if isinstance(recipe.base, str) else recipe.base.pretrain.tokenizer, list[Problem]()
    if kind == "unigram" and find_spec("sentencepiece") is None:
        why = "'unigram' needs SentencePiece: pip install 'trivet[unigram]', or use 'bpe'"
        out.append((("base", "pretrain", "tokenizer"), why))
    if kind in ("wordpiece", "unigram") and recipe.continued is not None and recipe.continued.added_vocabulary:
        why = f"base.pretrain.tokenizer '{kind}' takes no further tokens (bpe, words and characters do): set it to 0"
        out.append((("continued", "added_vocabulary"), why))
    masked = not isinstance(recipe.base, str) and recipe.base.pretrain.objective == "masked"
    if masked and recipe.continued is not None and recipe.continued.added_vocabulary:
        why = "base.pretrain.objective 'masked' makes an encoder, whose vocabulary is not extended here: set it to 0"
        out.append((("continued", "added_vocabulary"), why))
    others = [name for name in recipe.stages if name not in ("pretrain", "continued")]
    if masked and others:
        why = (
            f"'masked' makes an encoder, on which {', '.join(others)} cannot stand: write stages: [pretrain], and give "
            "its folder to another recipe as reward.base"
        )
        out.append((("base", "pretrain", "objective"), why))
    return out


def _sharding(recipe: Recipe) -> list[Problem]:
    """What a base in parts asks for."""
    if recipe.runtime.sharding != "fsdp2":
        return []
    if not recipe.adapter.tuning.divided:
        method = recipe.adapter.method
        why = f"'fsdp2' goes with adapter.method {' and '.join(DIVIDED)}, not with '{method}': use 'none'"
        return [(("runtime", "sharding"), why)]
    if key := recipe.adapter.embeddings_setting or ("new_tokens" if recipe.adapter.new_tokens else ""):
        why = f"'fsdp2' has embeddings and output layer in parts, and adapter.{key} trains them: use 'none'"
        return [(("runtime", "sharding"), why)]
    if recipe.runtime.quantize is None:
        return []
    why = "'fsdp2' divides no base in four bits: use 'none', or remove runtime.quantize"
    return [(("runtime", "sharding"), why)]


def _servers(recipe: Recipe) -> list[Problem]:
    """What rollouts by servers ask for."""
    rollouts, out = recipe.runtime.rollouts, list[Problem]()
    if rollouts.engine == "own":
        return out
    method = recipe.adapter.method
    if not recipe.adapter.tuning.plain:
        what = "trains a whole copy" if recipe.adapter.tuning.copies else "writes adapters that vLLM does not run"
        why = f"servers are given adapters, and adapter.method '{method}' {what}: use 'lora', or engine 'own'"
        out.append((("runtime", "rollouts", "engine"), why))
    if key := recipe.adapter.embeddings_setting:
        why = f"servers are given LoRA adapters alone, and adapter.{key} trains more: remove it, or use engine 'own'"
        out.append((("runtime", "rollouts", "engine"), why))
    if recipe.ppo.old_logprobs == "sampler":
        why = "servers sample by other kernels than those that train (runtime.rollouts): use 'auto' or 'recompute'"
        out.append((("ppo", "old_logprobs"), why))
    for i, url in enumerate(rollouts.servers):
        if not re.fullmatch(r"https?://[^\s/@]+(/.*)?", url):
            out.append((("runtime", "rollouts", "servers", i), f"{url!r} is no address: write http://host:8000"))
    if len(set(rollouts.servers)) < len(rollouts.servers):
        out.append((("runtime", "rollouts", "servers"), "names a server twice"))
    return out


def _adapter(recipe: Recipe) -> list[Problem]:
    """Where adapters go, as far as the recipe alone can say."""
    adapter, out = recipe.adapter, list[Problem]()
    for key, named in (("layers", adapter.layers), ("targets", adapter.targets)):
        if named in ((), ""):
            out.append((("adapter", key), "names nothing that an adapter could stand on: remove it, or name some"))
    if adapter.method == "adalora" and adapter.first_rank <= adapter.rank:
        out.append((("adapter", "init_rank"), f"must be more than adapter.rank, {adapter.rank}, to which ranks fall"))
    if adapter.tuning.past and recipe.runtime.gradient_checkpointing is True:
        why = f"layers that are computed again lose the keys and values of '{adapter.method}': use auto or false"
        out.append((("runtime", "gradient_checkpointing"), why))
    asked = recipe.evaluation.lm_eval
    if adapter.tuning.virtual and asked.tasks and set(asked.systems) != {"base"}:
        why = f"lm-eval is given whole models, and the virtual tokens of '{adapter.method}' are no weights of one"
        out.append((("evaluation", "lm_eval", "systems"), f"{why}: write [base], or use another adapter.method"))
    if adapter.tuning.residual:
        trained = [key for key in Recipe.model_fields if key != "continued"]  # which trains no adapter
        decays = [key for key in trained if getattr(getattr(recipe, key), "weight_decay", 0.0)]
        why = f"would shrink the half of a '{adapter.method}' adapter that is never trained: remove it, or use 'lora'"
        out += [((key, "weight_decay"), why) for key in decays]
    if isinstance(recipe.base, str) or isinstance(adapter.layers, str) or "layers" not in adapter.tuning.settings:
        return out
    count = recipe.base.pretrain.model.layers
    if wrong := [n for n in adapter.layers if not 0 <= n < count]:
        out.append((("adapter", "layers"), f"{wrong} is outside the {count} layers (0 to {count - 1}) of the base"))
    return out


def _secrets(value: Any, path: tuple[str | int, ...] = ()) -> list[Problem]:
    """A recipe is copied into run folders and shared: no value of it may be a secret. The value is not repeated."""
    if isinstance(value, str):
        bad = has_secret(value)
        return [(path, "holds what looks like a secret; keep it in an environment variable")] if bad else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in inner for p in _secrets(item, (*path, key))]


def _name(recipe: Recipe) -> list[Problem]:
    if re.fullmatch(r"[\w][\w. -]*", recipe.name):
        return []
    return [(("name",), f"{recipe.name!r} names the run folder: use letters, digits, '-', '_' and '.'")]


def _stages(recipe: Recipe) -> list[Problem]:
    stages = recipe.stages
    unknown = [s for s in stages if s not in STAGES]
    if unknown:
        hint = nearest(unknown[0], STAGES) or f" Stages: {', '.join(STAGES)}."
        return [(("stages",), f"no stage '{unknown[0]}'.{hint}")]
    if len(set(stages)) < len(stages):
        return [(("stages",), "names a stage twice")]
    right = [s for s in STAGES if s in stages]
    if list(stages) != right:
        return [(("stages",), f"must be in the order in which they run: [{', '.join(right)}]")]
    if not stages:
        return [(("data",), "calls for no stage: give demonstrations, rankings or prompts, or name `stages`")]
    return []


def _missing(recipe: Recipe) -> list[Problem]:
    return [*_own_settings(recipe), *_sources(recipe), *_of_ppo(recipe)]


def _own_settings(recipe: Recipe) -> Iterator[Problem]:
    """Stages without the settings that call for them, and settings without their stage."""
    if "pretrain" in recipe.stages and isinstance(recipe.base, str):
        yield (
            ("stages",),
            f"'pretrain' makes a base, but base is '{recipe.base}': "
            "write base: {pretrain: {...}} or leave the stage out",
        )
    for name, stage in STAGES.items():
        if stage.required_settings is None:
            continue
        there = getattr(recipe, stage.group) is not None
        if name in recipe.stages and not there:
            yield ("stages",), f"'{name}' needs the settings `{stage.group}` ({stage.required_settings})"
        if name not in recipe.stages and there:
            yield (stage.group,), f"there are settings, but stages has no '{name}': add the stage or remove them"


def _sources(recipe: Recipe) -> Iterator[Problem]:
    """Stages without the data that they are trained on."""
    stages, data = recipe.stages, recipe.data
    if recipe.continued is not None and not data.documents:
        yield ("continued",), "trains on data.documents, and there are none: give some, or remove it"
    if recipe.distil is not None and recipe.distil.responses == "demonstrations" and not data.demonstrations:
        yield ("distil", "responses"), "there are no data.demonstrations: give some, or use 'teacher'"
    if "sft" in stages and not data.demonstrations:
        yield ("data",), "the sft stage needs data.demonstrations: give them, or leave 'sft' out of stages"
    if recipe.rankings is not None and data.rankings:
        yield ("rankings",), "the reward model would have two sources: remove `rankings` or data.rankings"
    if "reward" in stages and recipe.rankings is None and not data.rankings:
        yield ("data",), "the reward stage needs data.rankings, or `rankings` to sample and rank answers"
    evaluates_a_file = not isinstance(data.held_out, float) and not {"ppo", "rankings"} & set(stages)
    if (
        any(stage.asks for name, stage in STAGES.items() if name in stages)
        and not (data.prompts or data.demonstrations or data.rankings)
        and not evaluates_a_file
    ):
        yield ("data",), "ppo and evaluation need data.prompts (or demonstrations, whose prompts they take)"


def _of_ppo(recipe: Recipe) -> Iterator[Problem]:
    """What PPO's settings name and the run does not have."""
    if "ppo" not in recipe.stages:
        return
    config, data = recipe.ppo, recipe.data
    if config.ptx_coef and not getattr(data, config.ptx_data):
        yield ("ppo", "ptx_data"), f"there are no data.{config.ptx_data}: give some, or leave out ptx_coef"
    if "reward" not in recipe.stages and not _model_part(recipe) and config.value.init == "reward":
        yield ("ppo", "value"), "there is no reward model to start the value role from: set ppo.value.init to 'sft'"
    if "reward" in recipe.stages and config.keep == "best" and not recipe.reward.holdout:
        yield ("ppo", "keep"), "'best' is chosen by a held-out reward model: set reward.holdout, such as 0.2"


def _systems(recipe: Recipe) -> list[Problem]:
    out: list[Problem] = []
    config = recipe.evaluation
    if not config.systems:
        why = "names no system to evaluate: remove it for those that the run has, or name some, such as [base, sft]"
        out.append((("evaluation", "systems"), why))
    for key, names, check in (("systems", config.systems, problem_of), ("metrics", config.metrics, problem_of_metric)):
        out += [(("evaluation", key, i), problem) for i, name in enumerate(names) if (problem := check(name, config))]
    return out


def _context(recipe: Recipe) -> list[Problem]:
    if isinstance(recipe.base, str):
        return []
    taken, out = recipe.adapter.positions, list[Problem]()
    context = recipe.base.pretrain.model.context - taken
    less = f", less {taken} virtual tokens," if taken else ""
    where = f"the base's context of {context + taken}{less} (base.pretrain.model.context)"
    ppo = recipe.ppo
    if "ppo" in recipe.stages and ppo.max_prompt_tokens + ppo.max_new_tokens > context:
        key = "max_new_tokens" if ppo.max_new_tokens >= context else "max_prompt_tokens"
        out.append(
            (
                ("ppo", key),
                f"prompt ({ppo.max_prompt_tokens}) and response ({ppo.max_new_tokens}) together are "
                f"longer than {where}: lower it or raise the context",
            )
        )
    limits = {("sft", "max_tokens"): recipe.sft.max_tokens}
    if recipe.distil is not None:
        limits[("distil", "max_tokens")] = recipe.distil.max_tokens
    if recipe.continued is not None:
        limits[("continued", "context")] = recipe.continued.context or 0
    if recipe.reward.base == "same":
        limits[("reward", "max_tokens")] = recipe.reward.max_tokens
    if recipe.rankings is not None:
        limits[("rankings", "max_new_tokens")] = recipe.rankings.max_new_tokens
    limits[("evaluation", "max_new_tokens")] = recipe.evaluation.max_new_tokens or 0
    return [
        *out,
        *(
            (path, f"{n} tokens do not fit into {where}: lower it or raise the context")
            for path, n in limits.items()
            if n > context
        ),
    ]
