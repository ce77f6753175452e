"""What each setting of a recipe needs to act, as a table: settings, a condition on the recipe, and the reason in words.

A setting without effect is refused with the reason of the first rule here that covers it (``pipelines.loading.idle``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.readers.files import is_text
from data.source_settings import as_source
from models.backbone.settings import AdapterConfig
from pipelines.recipe.schema import Recipe
from reward.settings import GateConfig, is_examined
from stages.settings import PPOConfig, RewardConfig

Dotted = str
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


def examines_terms(recipe: Recipe) -> bool:
    return is_examined(recipe.ppo.reward) and bool(recipe.data.rankings)


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


def has_held_out_responses(recipe: Recipe) -> bool:
    """Whether distillation keeps responses from training."""
    config = recipe.distil
    return config is None or (
        has_held_out(recipe) and (config.responses == "demonstrations" or config.held_out_prompts > 0)
    )


def trains_value(recipe: Recipe) -> bool:
    """Whether the value role has a rate above 0, as ``stages.ppo.optimizer`` gives it."""
    config = recipe.ppo
    rate = config.learning_rate if config.value_learning_rate is None else config.value_learning_rate
    head = rate if config.value_head_learning_rate is None else config.value_head_learning_rate
    return head > 0 or (rate > 0 and not on_policy_backbone(recipe))


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


WHOLE_STAGES = (
    rule("sft", acts=lambda r: has(r, "sft"), why="no stage sft: there are no data.demonstrations"),
    rule(
        *("reward.base", "reward.max_tokens"),
        acts=lambda r: has(r, "reward") or scored(r),
        why="no stage trains or asks a reward model",
    ),
    rule(
        "reward.gate",
        acts=lambda r: has(r, "ppo") and (optimises_model(r) or examines_terms(r)),
        why="the gate stands before a ppo stage that the reward model scores ({source: model} in ppo.reward), or a "
        "ready one or a function that data.rankings can examine",
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
    rule(
        "runtime.rollouts",
        acts=lambda r: has(r, "rankings", "ppo", "evaluate"),
        why="no stage samples: it is for the stages rankings, ppo and evaluate",
    ),
)
"""Groups of settings, and single ones, that wait for a stage."""
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
        "data.ignore",
        "data.group_by",
        acts=lambda r: bool(files_of(r) or r.evaluation.rankings),
        why="it names columns of files and hub data sets, and data names none",
    ),
    rule(
        "data.annotators",
        acts=lambda r: bool(r.data.rankings or r.evaluation.rankings),
        why="it joins several people's rankings, and there are no data.rankings",
    ),
    rule(
        *("rankings.held_out_prompts", "distil.held_out_prompts"),
        acts=lambda r: r.data.held_out != 0,
        why="data.held_out is 0, so that there are no held-out prompts",
    ),
)
ADAPTER = (
    *(tunes(name) for name in AdapterConfig.model_fields if name != "method"),
    rule(
        "adapter.dropout",
        acts=lambda r: has(r, "sft", "distil", "reward"),
        why="dropout is for the stages sft, distil and reward, and there are none; PPO uses none",
    ),
)
WATCHED = ("held_out_rows", "keep", "patience")  # of the evaluations of held-out rows in training
TRAINING = (
    rule(
        "sft.micro_batch",
        acts=lambda r: r.sft.batch_tokens is None,
        why="sft.batch_tokens cuts the batches instead",
    ),
    rule(
        "distil.micro_batch",
        acts=lambda r: r.distil is None or r.distil.batch_tokens is None,
        why="distil.batch_tokens cuts the batches instead",
    ),
    *(
        rule(
            *(f"{key}.{name}" for name in ("held_out_every", *WATCHED)),
            acts=held_out,
            why=f"nothing is held out: set data.held_out{more}",
        )
        for key, held_out, more in (
            ("sft", has_held_out, ""),
            ("distil", has_held_out_responses, " and (with the teacher's responses) distil.held_out_prompts"),
            ("reward", has_held_out_rankings, ", or (with sampled rankings) rankings.held_out_prompts"),
        )
    ),
    rule(
        *(f"sft.{name}" for name in WATCHED),
        acts=lambda r: r.sft.held_out_every != 0,
        why="sft.held_out_every is 0, so that held-out rows are not evaluated in training",
    ),
    rule(
        *(f"distil.{name}" for name in WATCHED),
        acts=lambda r: r.distil is None or r.distil.held_out_every != 0,
        why="distil.held_out_every is 0, so that held-out rows are not evaluated in training",
    ),
    rule(
        *(f"reward.{name}" for name in WATCHED),
        acts=lambda r: r.reward.held_out_every != 0,
        why="reward.held_out_every is 0, so that held-out rows are not evaluated in training",
    ),
    rule(
        "continued.final_learning_rate",
        acts=lambda r: r.continued is None or r.continued.schedule != "constant",
        why="continued.schedule is 'constant', so that the rate never falls",
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
        "reward.negatives_share",
        acts=lambda r: bool(r.reward.negatives),
        why="it is a share of the rankings that get reward.negatives, and there are none",
    ),
    rule(
        *(f"reward.gate.{key}" for key in GateConfig.model_fields if key != "enabled"),
        acts=lambda r: r.reward.gate.enabled,
        why="reward.gate is off",
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
    rule(
        "ppo.critic_warmup",
        acts=trains_value,
        why="the value role's rate is 0 (ppo.value_learning_rate, ppo.value_head_learning_rate), so that these updates "
        "would train nothing",
    ),
    rule(
        *(f"ppo.{key}" for key in ("ptx_data", "ptx_batch", "ptx_max_tokens")),
        acts=lambda r: r.ppo.ptx_coef > 0,
        why="ppo.ptx_coef is 0, so that no pretraining loss is mixed in",
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
OTHER = (
    rule(
        "checkpoint.keep",
        acts=lambda r: r.checkpoint.every_minutes is not None or r.checkpoint.every_steps is not None,
        why="neither checkpoint.every_minutes nor every_steps is set, so that nothing is saved",
    ),
    rule(
        *("base.pretrain.tokenizer", "base.pretrain.vocabulary"),
        acts=lambda r: isinstance(r.base, str) or r.base.pretrain.given_tokenizer is None,
        why="no tokenizer is trained: base.pretrain.given_tokenizer names one",
    ),
    rule(
        "base.pretrain.vocabulary",
        acts=lambda r: (
            isinstance(r.base, str) or r.base.pretrain.tokenizer != "bpe" or r.base.pretrain.vocabulary >= 260
        ),
        why="byte-level BPE has 260 tokens at least (256 bytes and 4 special ones): raise it to 260 or more",
    ),
)
RULES = (*WHOLE_STAGES, *DATA, *ADAPTER, *TRAINING, *DISTIL, *PPO, *EVALUATION, *OTHER)
