"""Settings that cannot act: each setting of a recipe does something, or is refused with what stands in its way.

What counts is a value other than the default, so that a resolved recipe, which writes every setting, says nothing that
is refused. Settings of a stage that an explicit ``stages`` leaves out wait for it and are no mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.config import Config
from data.readers.files import is_text
from data.source_settings import as_source
from evaluation.systems import parse
from models.backbone.settings import AdapterConfig
from pipelines.loading.checks import fill_in
from pipelines.recipe.errors import Problem
from pipelines.recipe.rates import SETTING
from pipelines.recipe.schema import Recipe
from reward.settings import READY, GateConfig
from stages.settings import PPOConfig, RewardConfig

Dotted = str
SettingPath = tuple[str | int, ...]
MANY = 8  # settings named in a sentence
OF_EVALUATION = ("reward", "standardise_scores", "score_clip", "missing_eos_penalty", "max_new_tokens")
"""Of PPO's settings, those that evaluation takes as well: its limit, and for best_of_N:ppo.reward what chooses."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Settings, by dotted name or that of their group, and what they need to act."""

    settings: tuple[Dotted, ...]
    acts: Callable[[Recipe], bool]
    why: str  # "has no effect: " + this


def rule(*settings: Dotted, acts: Callable[[Recipe], bool], why: str) -> Rule:
    return Rule(settings, acts, why)


def tunes(setting: str) -> Rule:
    """A setting of ``adapter`` acts with the methods that say so."""
    return rule(
        f"adapter.{setting}",
        acts=lambda r: setting in r.adapter.tuning.settings,
        why=f"adapter.method has no {setting}: docs/reference/methods.md says what each method trains",
    )


def has(recipe: Recipe, *stages: str) -> bool:
    """Whether one of these stages is part of the run, or was left out by name."""
    return "stages" in recipe.model_fields_set or any(s in recipe.stages for s in stages)


def optimises_model(recipe: Recipe) -> bool:
    return any(part.kind == "model" for part in recipe.ppo.reward)


def asks_ready_model(recipe: Recipe) -> bool:
    return any(part.kind in READY for part in recipe.ppo.reward)


def on_policy_backbone(recipe: Recipe) -> bool:
    return recipe.ppo.value.init == "policy_trunk"


def watched(recipe: Recipe) -> bool:
    """A held-out reward model is trained, or may come with a reward model that is given."""
    return recipe.reward.holdout > 0 or "reward" not in recipe.stages


def scored(recipe: Recipe) -> bool:
    """A reward model of the run is asked after its training, or may be given."""
    return has(recipe, "ppo", "evaluate")


def has_held_out(recipe: Recipe) -> bool:
    """Whether rows are kept from training."""
    return recipe.data.held_out != 0


def has_held_out_rankings(recipe: Recipe) -> bool:
    return has_held_out(recipe) and (recipe.rankings is None or recipe.rankings.held_out_prompts > 0)


def files_of(recipe: Recipe) -> list[Path]:
    """Paths of all sources but the demo task."""
    data = recipe.data
    named = (
        *data.demonstrations,
        *data.rankings,
        *data.prompts,
        *data.documents,
        *([] if isinstance(data.held_out, float) else [data.held_out]),
    )
    paths = [Path(as_source(entry).path) for entry in named]
    return [path for path in paths if not path.name.startswith("demo-task")]


def reads_text(recipe: Recipe) -> bool:
    """Whether a source of documents or other records is, or may hold, plain text."""
    return any(is_text(p) or p.suffix.lower() in ("", ".zip") for p in files_of(recipe))  # a folder may hold it


STAGES = (
    rule("sft", acts=lambda r: has(r, "sft"), why="no stage sft: there are no data.demonstrations"),
    rule(
        *("reward.base", "reward.max_tokens"),
        acts=lambda r: has(r, "reward") or scored(r),
        why="no stage trains or asks a reward model",
    ),
    rule(
        "reward.gate",
        acts=lambda r: has(r, "ppo") and (optimises_model(r) or (asks_ready_model(r) and bool(r.data.rankings))),
        why="the gate stands before a ppo stage that the reward model scores ({source: model} in ppo.reward), or a "
        "ready one that data.rankings can examine",
    ),
    rule(
        *(f"reward.{key}" for key in RewardConfig.model_fields if key not in ("base", "max_tokens", "gate")),
        acts=lambda r: has(r, "reward"),
        why="no stage reward: there are no rankings to learn from",
    ),
    rule(
        *(f"ppo.{key}" for key in OF_EVALUATION),
        acts=lambda r: has(r, "ppo", "evaluate"),
        why="neither a stage ppo nor an evaluation: add them to stages",
    ),
    rule(
        *(f"ppo.{key}" for key in PPOConfig.model_fields if key not in OF_EVALUATION),
        acts=lambda r: has(r, "ppo"),
        why="no stage ppo: add it to stages",
    ),
    rule("evaluation", acts=lambda r: has(r, "evaluate"), why="no stage evaluate: add it to stages"),
    rule("adapter", acts=lambda r: has(r, "sft", "distil", "reward", "ppo"), why="no stage trains an adapter"),
    rule(
        "runtime.gradient_checkpointing",
        acts=lambda r: has(r, "continued", "sft", "distil", "reward", "ppo"),
        why="it is for the stages continued, sft, distil, reward and ppo, and there are none",
    ),
    rule(
        "runtime.offload_activations",
        acts=lambda r: (
            r.runtime.gradient_checkpointing is not False and has(r, "continued", "sft", "distil", "reward", "ppo")
        ),
        why="it is for stages that compute layers again: set runtime.gradient_checkpointing to true",
    ),
    rule(
        "runtime.dtype",
        acts=lambda r: has(r, "continued", "sft", "distil", "rankings", "reward", "ppo", "evaluate"),
        why="pretraining is in fp32, and there is no other stage",
    ),
    rule(
        *("runtime.quantize", "runtime.sharding", "runtime.fit", "runtime.engine"),
        *("template", "template_args", "stop", "stop_strings"),
        acts=lambda r: has(r, "sft", "distil", "rankings", "reward", "ppo", "evaluate"),
        why="pretraining is in fp32, of documents as they are, and there is no other stage",
    ),
)
SAMPLED = (
    rule(
        "runtime.rollouts",
        acts=lambda r: has(r, "rankings", "ppo", "evaluate"),
        why="no stage samples: it is for the stages rankings, ppo and evaluate",
    ),
)
DATA = (
    rule(
        "data.documents",
        acts=lambda r: r.base_stage is not None or (r.ppo.ptx_coef > 0 and r.ppo.ptx_data == "documents"),
        why="documents are for pretraining, and there is neither base: {pretrain: ...} nor continued: {...} nor "
        "ppo.ptx_coef",
    ),
    rule(
        "data.text_unit",
        acts=reads_text,
        why="it parts text files (.txt, .md), and data names none",
    ),
    rule(
        "data.clean",
        acts=lambda r: bool(files_of(r)),
        why="it cleans rows of files and hub data sets, and data names none",
    ),
    rule(
        "data.annotators",
        acts=lambda r: bool(r.data.rankings or r.evaluation.rankings),
        why="it joins several people's rankings, and there are no data.rankings",
    ),
    rule(
        "rankings.held_out_prompts",
        acts=lambda r: r.data.held_out != 0,
        why="data.held_out is 0, so that there are no held-out prompts",
    ),
)
ADAPTER = (
    *(tunes(name) for name in AdapterConfig.model_fields if name != "method"),
    rule(
        "adapter.dropout",
        acts=lambda r: has(r, "sft", "reward"),
        why="dropout is for the stages sft and reward, and there are none; PPO uses none",
    ),
)
TRAINING = (
    rule(
        "sft.micro_batch",
        acts=lambda r: r.sft.batch_tokens is None,
        why="sft.batch_tokens cuts the batches instead",
    ),
    *(
        rule(
            *(f"{key}.{name}" for name in ("held_out_every", "held_out_rows", "keep", "patience")),
            acts=held_out,
            why="nothing is held out: set data.held_out, or (with sampled rankings) rankings.held_out_prompts",
        )
        for key, held_out in (("sft", has_held_out), ("reward", has_held_out_rankings))
    ),
    rule(
        *("sft.held_out_rows", "sft.keep", "sft.patience"),
        acts=lambda r: r.sft.held_out_every != 0,
        why="sft.held_out_every is 0, so that held-out rows are not evaluated in training",
    ),
    rule(
        *("reward.held_out_rows", "reward.keep", "reward.patience"),
        acts=lambda r: r.reward.held_out_every != 0,
        why="reward.held_out_every is 0, so that held-out rows are not evaluated in training",
    ),
    rule(
        "reward.init",
        acts=lambda r: r.reward.base == "same",
        why="on a base of its own (reward.base) there is no SFT adapter to start from",
    ),
    rule("reward.combine", acts=lambda r: r.reward.ensemble > 1, why="reward.ensemble is 1: one model is not combined"),
    rule(
        "reward.uncertainty_penalty",
        acts=lambda r: r.reward.ensemble > 1 and r.reward.combine == "mean_minus_std",
        why="it belongs to reward.combine 'mean_minus_std' of a reward.ensemble of two or more",
    ),
    rule(
        *(f"reward.gate.{key}" for key in GateConfig.model_fields if key != "enabled"),
        acts=lambda r: r.reward.gate.enabled,
        why="reward.gate is off",
    ),
)
PPO = (
    rule("ppo.micro_batch", acts=lambda r: r.ppo.micro_tokens is None, why="ppo.micro_tokens cuts the batches instead"),
    rule(
        *("ppo.kl_target", "ppo.kl_horizon"),
        acts=lambda r: r.ppo.kl == "adaptive",
        why="it steers the adaptive controller, and ppo.kl is 'fixed'",
    ),
    rule(
        *("ppo.kl", "ppo.kl_target", "ppo.kl_horizon"),
        acts=lambda r: r.ppo.kl_coef > 0,
        why="the controller multiplies ppo.kl_coef, which is 0 and stays so",
    ),
    rule(
        "ppo.final_learning_rate",
        acts=lambda r: r.ppo.schedule != "constant",
        why="ppo.schedule is 'constant', so that the rate never falls",
    ),
    rule(
        "ppo.value_learning_rate",
        acts=lambda r: not on_policy_backbone(r) or r.ppo.value_head_learning_rate is None,
        why="on the policy's trunk the value role is a head alone, whose rate is ppo.value_head_learning_rate",
    ),
    rule(
        "ppo.value_coef",
        acts=on_policy_backbone,
        why="it weighs the value loss on the policy's trunk (value.init policy_trunk)",
    ),
    rule(
        "ppo.value",
        acts=lambda r: r.reward.base == "same" or r.ppo.value.init == "policy_trunk",
        why="with a reward model on another base the value role starts from the SFT adapter with a zero head anyway",
    ),
    rule(
        "ppo.standardise_scores",
        acts=optimises_model,
        why="it is for the reward model's scores, and ppo.reward has no part {source: model}",
    ),
    rule(
        "ppo.importance_cap",
        acts=lambda r: r.runtime.rollouts.engine == "vllm",
        why="trivet itself samples from the policy that it trains (runtime.rollouts), so that every weight is 1",
    ),
    rule(
        "ppo.sampling_batch",
        acts=lambda r: r.runtime.rollouts.engine == "own",
        why="servers sample (runtime.rollouts), runtime.rollouts.concurrency responses at a time",
    ),
    rule(
        "ppo.share_prefix_layers",
        acts=lambda r: not r.adapter.tuning.copies and r.adapter.layers != "all",
        why="every layer carries adapters (adapter.layers), so that there are none below them",
    ),
    rule(
        "ppo.share_prefix_layers",
        acts=lambda r: not r.adapter.embeddings_setting,
        why="every role has embeddings of its own (adapter.modules_to_save, adapter.new_tokens), so that no layer has "
        "the same input in all of them",
    ),
    rule(
        *("ppo.holdout_every", "ppo.holdout_prompts"),
        acts=watched,
        why="nothing watches: reward.holdout is 0",
    ),
    rule(
        "ppo.keep_every",
        acts=lambda r: (r.ppo.keep_every or 0) <= r.ppo.updates,
        why="it is more than ppo.updates, so that no policy would be kept on the way",
    ),
    rule(
        "ppo.critic_warmup",
        acts=lambda r: r.ppo.critic_warmup < r.ppo.updates,
        why="all ppo.updates would train the value role only and the policy never: lower it",
    ),
)
EVALUATION = (
    rule(
        "evaluation.labels", acts=lambda r: "labels" in r.evaluation.metrics, why="evaluation.metrics has no 'labels'"
    ),
    rule(
        "evaluation.hub_metrics",
        acts=lambda r: any(m.startswith("hub:") for m in r.evaluation.metrics),
        why="evaluation.metrics has no 'hub:NAME'",
    ),
    rule(
        *(f"evaluation.lm_eval.{key}" for key in ("tasks_dir", "systems", "shots", "limit", "chat_template", "batch")),
        acts=lambda r: bool(r.evaluation.lm_eval.tasks),
        why="evaluation.lm_eval.tasks names no task",
    ),
    rule(
        "evaluation.rankings",
        acts=lambda r: has(r, "reward"),
        why="it is for the reward model's report card, and no stage trains one",
    ),
)
PTX = (
    rule(
        *(f"ppo.{key}" for key in ("ptx_data", "ptx_batch", "ptx_max_tokens")),
        acts=lambda r: r.ppo.ptx_coef > 0,
        why="ppo.ptx_coef is 0, so that no pretraining loss is mixed in",
    ),
)
DISTIL = (
    rule(
        "distil.temperature",
        acts=lambda r: r.distil is None or r.distil.loss == "logits",
        why="it softens distributions, and distil.loss 'sequence' compares none",
    ),
    rule(
        *(f"distil.{key}" for key in ("prompts", "held_out_prompts", "sampling_temperature", "max_new_tokens")),
        "distil.sampling_batch",
        acts=lambda r: r.distil is None or r.distil.responses == "teacher",
        why="the teacher does not respond: distil.responses is 'demonstrations'",
    ),
    rule(
        "distil.supervise",
        acts=lambda r: r.distil is None or r.distil.responses == "demonstrations",
        why="the teacher responds once to a prompt: distil.responses is 'teacher'",
    ),
    rule(
        "distil.init",
        acts=lambda r: r.distil is None or has(r, "sft"),
        why="there is no stage sft, so that it starts from the base",
    ),
)
OTHER = (
    rule(
        "checkpoint.keep",
        acts=lambda r: r.checkpoint.every_minutes is not None or r.checkpoint.every_steps is not None,
        why="neither checkpoint.every_minutes nor every_steps is set, so that nothing is saved",
    ),
    rule(
        "base.pretrain.vocabulary",
        acts=lambda r: (
            isinstance(r.base, str) or r.base.pretrain.tokenizer != "bpe" or r.base.pretrain.vocabulary >= 260
        ),
        why="byte-level BPE has 260 tokens at least (256 bytes and 4 special ones): raise it to 260 or more",
    ),
)
RULES = (*STAGES, *SAMPLED, *DISTIL, *PTX, *DATA, *ADAPTER, *TRAINING, *PPO, *EVALUATION, *OTHER)


def idle(recipe: Recipe, resolved: bool = False) -> list[Problem]:
    """Every setting that is not as by default and cannot act.

    Args:
        resolved: trivet wrote the recipe with every setting; rates that it chose, perhaps for a base that has moved,
            are nobody's mistake.
    """
    found: dict[tuple[str | int, ...], str] = {}
    for path, value, default in leaves(recipe, defaults(recipe)):
        if value == default or (resolved and path[-1] == SETTING):
            continue
        for one in RULES:
            if any(covers(name, path) for name in one.settings) and not one.acts(recipe):
                found.setdefault(path, f"has no effect: {one.why}. Remove it, or change what it needs")
    return [*found.items(), *_unused(recipe)]


def waiting(recipe: Recipe, given: Collection[str] = ()) -> str:
    """A sentence about settings of stages that an explicit ``stages`` leaves out; empty where there are none.

    Those of a stage whose result is given say how it was made, and wait for nothing.
    """
    if "stages" not in recipe.model_fields_set:
        return ""
    here = {path for path, _ in idle(recipe)}
    names = [path for path, _ in idle(_called_for(recipe, [*recipe.stages, *given])) if path not in here]
    if not names:
        return ""
    return f"settings that wait, since `stages` does not name the stage that takes them: {_some(names)}"


def replaced(recipe: Recipe, given: Collection[str]) -> str:
    """A sentence about settings of the recipe's stages whose results it is given; empty where there are none."""
    if not (stages := [name for name in recipe.stages if name in given]):
        return ""
    whole = {group for name, group in WHOLE.items() if name in stages}
    names = [p for p, value, usual in leaves(recipe, defaults(recipe)) if value != usual and _begins(p, whole)]
    acting = {path for path, _ in idle(_called_for(recipe, recipe.stages))} | {CARD}
    left = [name for name in recipe.stages if name not in given]
    names += [path for path, _ in idle(_called_for(recipe, left)) if path not in acting and path not in names]
    if not names:
        return ""
    options = " ".join(f"{name}=..." for name in stages)
    are = "is" if len(stages) == 1 else "are"
    return f"settings without effect, since {' and '.join(stages)} {are} given (--input {options}): {_some(names)}"


OPTIONAL = [name for name, field in Recipe.model_fields.items() if field.default is None]
WHOLE = {"pretrain": ("base", "pretrain")} | {name: (name,) for name in OPTIONAL}
"""Stages all of whose settings are their own; what is needed of the others' without them, ``RULES`` says."""
CARD = ("evaluation", "rankings")  # a given reward model is examined on them as well


def _called_for(recipe: Recipe, stages: Sequence[str]) -> Recipe:
    """The recipe as if its settings had called for these stages alone."""
    made = recipe.model_copy(update={"stages": tuple(stages)})
    made.model_fields_set.discard("stages")
    return made


def _begins(path: SettingPath, groups: Collection[tuple[str, ...]]) -> bool:
    return any(path[: len(group)] == group for group in groups)


def _some(paths: Sequence[SettingPath]) -> str:
    """The first few of many settings."""
    more = f" and {len(paths) - MANY} more" if len(paths) > MANY else ""
    return ", ".join(".".join(map(str, path)) for path in paths[:MANY]) + more


def covers(name: Dotted, path: tuple[str | int, ...]) -> bool:
    parts = tuple(name.split("."))
    return path[: len(parts)] == parts


def leaves(config: Config, default: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, Any, Any]]:
    """Path, value and default of every setting; groups inside groups are opened, lists are not."""
    for name, field in type(config).model_fields.items():
        if field.exclude:
            continue
        value = getattr(config, name)
        usual = default.get(name, ...) if isinstance(default, dict) else ...
        if isinstance(value, Config):
            yield from leaves(value, usual, (*path, name))
        else:
            yield (*path, name), value, field.get_default(call_default_factory=True) if usual is ... else usual


def defaults(recipe: Recipe) -> dict[str, Any]:
    """Defaults that follow from other settings, as ``fill_in`` gives them."""
    base = (
        recipe.base
        if isinstance(recipe.base, str)
        else {"pretrain": {"model": recipe.base.pretrain.model.model_dump()}}
    )
    value = {"init": recipe.ppo.value.init}
    made: dict[str, Any] = {"base": base, "ppo": {"max_new_tokens": recipe.ppo.max_new_tokens, "value": value}}
    made |= {"adapter": {"method": recipe.adapter.method}, "reward": {"base": recipe.reward.base}}
    fill_in(made, recipe.base_dir)
    made["reward"].pop("base")
    kept = {k: v for k, v in made["ppo"].items() if k in ("max_prompt_tokens", SETTING)}
    return {k: v for k, v in made.items() if k in ("sft", "reward")} | {
        "ppo": kept | {"value": {k: v for k, v in value.items() if k == "head"}}
    }


def _unused(recipe: Recipe) -> list[Problem]:
    """Declared by name, and named by nothing."""
    config, out = recipe.evaluation, list[Problem]()
    if not has(recipe, "evaluate"):
        return []
    named = [parse(name) for name in (*config.systems, *config.lm_eval.systems)]
    choosing, asked = {n.by for n in named if n.kind == "best_of"}, {n.value.replace("-", "_") for n in named}
    for name in config.best_of_by:
        if name not in choosing:
            path = ("evaluation", "best_of_by", name)
            out.append((path, f"has no effect: no system chooses by it; add best_of_4:{name} to evaluation.systems"))
    for name in config.prompted:
        if name not in asked:
            path = ("evaluation", "prompted", name)
            out.append((path, f"has no effect: no system asks so; add prompted:{name} to evaluation.systems"))
    return out
