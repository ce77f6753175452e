"""Every setting of a recipe acts or is refused: a walk over all of them, so that a new one cannot be left out.

``ACTS`` holds for each setting a value that changes what its stage is described by (its key, hence its result), or the
test that shows it acting where it is no part of a key. ``IDLE`` holds for each rule recipes in which a setting
cannot act, and what the message says.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.common.errors import UserError
from data.source_settings import Source
from models.backbone.settings import METHODS, RESIDUAL
from pipelines.loading.idle import covers, leaves, replaced
from pipelines.loading.load import load_recipe
from pipelines.loading.needs import RULES
from pipelines.recipe.errors import models_in
from pipelines.recipe.schema import Recipe, resolved_yaml
from pipelines.stages.depends_on import rendering_of
from pipelines.stages.described import Here, made_with
from pipelines.stages.table import STAGES

ROOT = Path(__file__).parents[2]
DATA = {
    "demonstrations": "demo-task?rows=60",
    "rankings": "demo-task?rows=60",
    "prompts": "demo-task?rows=80",
}
PLAIN = {"base": "gpt2", "data": DATA}
FILES = {"base": "gpt2", "data": {"demonstrations": "chats.jsonl"}}
SCRATCH = {"base": {"pretrain": {}}, "data": DATA | {"documents": ["notes.txt"]}}
SAMPLED = {
    "base": "gpt2",
    "data": {k: v for k, v in DATA.items() if k != "rankings"},
    "rankings": {"annotator": "data.demo.task:gold"},
}
FURTHER = {"base": "gpt2", "data": DATA | {"documents": ["notes.txt"]}, "continued": {}}
TAUGHT = {"base": "gpt2", "data": DATA, "distil": {"teacher": "gpt2"}}
SERVERS = {"runtime.rollouts.engine": "vllm", "runtime.rollouts.servers": ["http://localhost:1"]}
JUDGE = {"name": "j", "url": "http://localhost:1/v1", "model": "m"}


def with_settings(recipe, settings):
    """A copy with dotted settings written in."""
    made = yaml.safe_load(yaml.safe_dump(recipe))
    for dotted, value in settings.items():
        *groups, last = dotted.split(".")
        at = made
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = value
    return made


def described(recipe):
    """What the keys and manifests of all stages take in of a recipe, and how conversations are written."""
    stages = {name: STAGES[name].settings(recipe) for name in STAGES if name in recipe.stages}
    made = {f"{name} made with": made_with(recipe, name, Here(1)) for name in stages}
    return (
        stages
        | made
        | {
            "adapter": recipe.adapter.model_dump(),
            "rendering": rendering_of(recipe),
            "data": recipe.data.model_dump(),
            "base": recipe.base,
            "seed": recipe.seed,
            "stages": recipe.stages,
        }
    )


def setting_names(model=Recipe, prefix=""):
    """Dotted names of all settings; those of groups in lists and mappings stand under the list's name."""
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        inner = models_in(field.annotation)
        if inner:
            for one in inner:
                yield from setting_names(one, f"{prefix}{name}.")
        if not inner or Source in inner or any(part in str(field.annotation) for part in ("tuple", "dict")):
            yield f"{prefix}{name}"


def also(more: Any) -> dict[str, Any]:
    """What a setting needs beside it."""
    return dict(more)


def of_part(key, value, source="length", **more):
    """A term of PPO's reward with one setting of its own."""
    usual = {"length": {"max_length": 40}, "regex": {"pattern": "a"}}.get(source, {})
    return {"ppo.reward": ["model", {"source": source, **usual, **more, key: value}]}


def of_remote(key, value, **more):
    return of_part("remote", {**more, key: value}, source="http://localhost:1/")


def of_chooser(key, value, source="length", **more):
    (parts,) = of_part(key, value, source, **more).values()
    return {"evaluation.systems": ["sft", "best_of_2:mine"], "evaluation.best_of_by": {"mine": parts[1:]}}


def of_asking(key, value):
    return {"evaluation.systems": ["prompted:mine"], "evaluation.prompted": {"mine": {key: value}}}


def of_judge(key, value):
    return {"evaluation.judges": [JUDGE | {key: value}]}


SHOT = {"prompt": "a", "answer": "b"}
OTHER = "distilgpt2"
ACTS = {  # setting: (recipe, settings written into it)
    "seed": (PLAIN, {"seed": 1}),
    "template": (PLAIN, {"template": "dialogue"}),
    "template_args": (PLAIN, {"template_args": {"enable_thinking": False}}),
    "stop": (PLAIN, {"stop": ["x"]}),
    "stop_strings": (PLAIN, {"stop_strings": ["x y"]}),
    "stages": (PLAIN, {"stages": ["sft", "reward"]}),
    **{
        f"base.pretrain.{k}": (SCRATCH, {f"base.pretrain.{k}": v})
        for k, v in {
            "tokenizer": "words",
            "vocabulary": 300,
            "model.layers": 1,
            "model.width": 64,
            "model.feed_forward": 32,
            "model.heads": 2,
            "model.context": 128,
            "model.init_std": 0.2,
            "steps": 9,
            "batch": 5,
            "shuffle": False,
            "learning_rate": 0.5,
            "matrix_learning_rate": 0.5,
        }.items()
    },
    "base.pretrain.objective": (
        {"base": {"pretrain": {}}, "data": {"documents": "notes.txt"}},
        {"base.pretrain.objective": "masked"},
    ),
    **{
        f"data.{k}": (recipe, {f"data.{k}": v})
        for k, recipe, v in [
            ("demonstrations", PLAIN, "demo-task?rows=9"),
            ("rankings", PLAIN, "demo-task?rows=9"),
            ("prompts", PLAIN, "demo-task?rows=9"),
            ("documents", SCRATCH, "more.txt"),
            ("held_out", PLAIN, 0.2),
            ("group_by", FILES, "topic"),
            ("annotators", PLAIN, "mean"),
            ("ignore", FILES, ["note"]),
            ("text_unit", SCRATCH, "line"),
        ]
    },
    **{
        f"data.clean.{k}": (FILES, {f"data.clean.{k}": v})
        for k, v in {
            "mojibake": True,
            "unicode": "nfkc",
            "control": True,
            "markup": True,
            "mask": ["email"],
            "min_characters": 2,
            "max_characters": 9,
            "languages": ["en"],
            "duplicates": "exact",
        }.items()
    },
    "data.clean.phone_region": (FILES, {"data.clean.mask": ["phone"], "data.clean.phone_region": "US"}),
    **{
        f"adapter.{k}": (PLAIN, {f"adapter.{k}": v})
        for k, v in {
            "method": "full",
            "rank": 4,
            "alpha": 4,
            "dropout": 0.1,
            "targets": ["c_attn"],
            "layers": [0],
            "rslora": True,
            "init": "gaussian",
            "modules_to_save": ["wte"],
            "new_tokens": ["<a>"],
        }.items()
    },
    **{
        f"adapter.{k}": (PLAIN, {"adapter.method": "adalora", f"adapter.{k}": v})
        for k, v in {"init_rank": 40, "orthogonality": 0.1, "budget": [0.2, 0.6]}.items()
    },
    **{
        f"adapter.{k}": (PLAIN, {"adapter.method": "p_tuning", f"adapter.{k}": v})
        for k, v in {"virtual_tokens": 5, "encoder": "lstm", "encoder_width": 16}.items()
    },
    **{
        f"sft.{k}": (PLAIN, {f"sft.{k}": v})
        for k, v in {
            "epochs": 2.0,
            "learning_rate": 1e-3,
            "batch": 8,
            "micro_batch": 4,
            "batch_tokens": 64,
            "warmup": 0.1,
            "schedule": "linear",
            "max_tokens": 64,
            "supervise": "last",
            "max_grad_norm": 2.0,
            "weight_decay": 0.1,
            "keep": "best",
            "patience": 3,
        }.items()
    },
    **{
        f"{group}.{k}": (PLAIN, {f"{group}.{k}": 7, f"{group}.keep": "best"})
        for group in ("sft", "reward")
        for k in ("held_out_every", "held_out_rows")
    },
    **{
        f"continued.{k}": (FURTHER, {f"continued.{k}": v})
        for k, v in {
            "steps": 9,
            "batch": 5,
            "context": 64,
            "shuffle": False,
            "learning_rate": 0.5,
            "warmup": 0.3,
            "schedule": "linear",
            "final_learning_rate": 0.5,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "added_vocabulary": 9,
        }.items()
    },
    **{
        f"distil.{k}": (TAUGHT, {f"distil.{k}": v})
        for k, v in {
            "teacher": "smollm2-135m",
            "loss": "logits",
            "init": "base",
            "prompts": 9,
            "held_out_prompts": 9,
            "sampling_temperature": 0.5,
            "max_new_tokens": 9,
            "sampling_batch": 9,
            "epochs": 2.0,
            "learning_rate": 1e-3,
            "batch": 8,
            "micro_batch": 4,
            "batch_tokens": 64,
            "warmup": 0.1,
            "schedule": "linear",
            "max_tokens": 64,
            "max_grad_norm": 0.5,
            "weight_decay": 0.1,
            "keep": "best",
            "patience": 3,
        }.items()
    },
    **{f"distil.{k}": (TAUGHT, {"distil.keep": "best", f"distil.{k}": 7}) for k in ("held_out_every", "held_out_rows")},
    "distil.temperature": (TAUGHT, {"distil.loss": "logits", "distil.temperature": 2.0}),
    "distil.responses": (TAUGHT, {"distil.loss": "logits", "distil.responses": "demonstrations"}),
    "distil.supervise": (
        TAUGHT,
        {"distil.loss": "logits", "distil.responses": "demonstrations", "distil.supervise": "last"},
    ),
    "ppo.ptx_coef": (FURTHER, {"ppo.ptx_coef": 2.0}),
    **{
        f"ppo.{k}": (FURTHER, {"ppo.ptx_coef": 2.0, f"ppo.{k}": v})
        for k, v in {"ptx_data": "demonstrations", "ptx_batch": 9, "ptx_max_tokens": 64}.items()
    },
    **{
        f"rankings.{k}": (SAMPLED, {f"rankings.{k}": v})
        for k, v in {
            "annotator": "data.demo.task:other",
            "prompts": 9,
            "held_out_prompts": 9,
            "answers": 2,
            "noise": 0.1,
            "temperature": 0.5,
            "max_new_tokens": 9,
            "batch": 9,
        }.items()
    },
    **{
        f"reward.{k}": (PLAIN, {f"reward.{k}": v, **also(more)})
        for k, v, more in [
            ("base", OTHER, {}),
            ("loss", "plackett_luce", {}),
            ("margin", 0.1, {}),
            ("label_smoothing", 0.1, {}),
            ("pooling", "mean", {}),
            ("ensemble", 2, {}),
            ("combine", "min", {"reward.ensemble": 2}),
            ("uncertainty_penalty", 2.0, {"reward.ensemble": 2, "reward.combine": "mean_minus_std"}),
            ("negatives", ["cut short"], {}),
            ("negatives_share", 0.5, {"reward.negatives": ["cut short"]}),
            ("holdout", 0.2, {}),
            ("init", "base", {}),
            ("epochs", 2.0, {}),
            ("learning_rate", 1e-3, {}),
            ("head_learning_rate", 1e-3, {}),
            ("batch", 8, {}),
            ("micro_batch", 4, {}),
            ("warmup", 0.1, {}),
            ("schedule", "linear", {}),
            ("max_tokens", 64, {}),
            ("max_grad_norm", 2.0, {}),
            ("weight_decay", 0.1, {}),
            ("calibration_samples", 9, {}),
            ("keep", "best", {}),
            ("patience", 3, {}),
        ]
    },
    **{
        f"ppo.{k}": (PLAIN, {f"ppo.{k}": v, **also(more)})
        for k, v, more in [
            *(
                (k, v, {})
                for k, v in {
                    "updates": 9,
                    "rollouts": 32,
                    "epochs": 2,
                    "minibatches": 2,
                    "micro_batch": 8,
                    "micro_tokens": 64,
                    "sampling_batch": 8,
                    "learning_rate": 1e-3,
                    "value_learning_rate": 1e-3,
                    "value_head_learning_rate": 1e-3,
                    "schedule": "cosine",
                    "final_learning_rate": 0.1,
                    "adam_epsilon": 1e-8,
                    "weight_decay": 0.1,
                    "max_grad_norm": 2.0,
                    "kl_coef": 0.1,
                    "kl": "adaptive",
                    "clip": 0.1,
                    "value_clip": 0.1,
                    "gamma": 0.9,
                    "lam": 0.9,
                    "whiten_advantages": False,
                    "whiten_rewards": True,
                    "entropy_coef": 0.1,
                    "temperature": 0.5,
                    "max_new_tokens": 9,
                    "max_prompt_tokens": 9,
                    "old_logprobs": "recompute",
                    "missing_eos_penalty": 0.5,
                    "reward": ["model", "data.demo.task:gold"],
                    "standardise_scores": True,
                    "score_clip": 2.0,
                    "critic_warmup": 1,
                    "keep_every": 5,
                    "self_check": False,
                    "value.init": "sft",
                    "value.head": "zero",
                }.items()
            ),
            ("kl_target", 3.0, {"ppo.kl": "adaptive"}),
            ("kl_horizon", 9.0, {"ppo.kl": "adaptive"}),
            ("share_prefix_layers", False, {"adapter.layers": "upper_half"}),
            ("importance_cap", 2.0, SERVERS),
            ("value_coef", 0.5, {"ppo.value.init": "policy_trunk"}),
            ("holdout_every", 2, {"reward.holdout": 0.2}),
            ("holdout_prompts", 9, {"reward.holdout": 0.2}),
            ("keep", "best", {"reward.holdout": 0.2}),
        ]
    },
    **{
        f"{group}.{k}": (PLAIN, make(k, v, source))
        for group, make in (
            ("ppo.reward", of_part),
            ("evaluation.best_of_by", of_chooser),
        )
        for k, v, source in [
            ("source", "data.demo.task:gold", "data.demo.task:other"),
            ("name", "n", "length"),
            ("weight", 2.0, "length"),
            ("normalise", True, "length"),
            ("clip", 1.0, "length"),
            ("pattern", "b", "regex"),
            ("count", True, "regex"),
            ("min_length", 2, "length"),
            ("max_length", 30, "length"),
            ("unit", "tokens", "length"),
            ("label", "good", "organisation/classifier"),
        ]
    },
    **{
        f"{group}.remote.{k}": (PLAIN, make("remote", {"protocol": "classify", k: v}, "http://localhost:1/"))
        for group, make in (("ppo.reward", of_part), ("evaluation.best_of_by", of_chooser))
        for k, v in {"protocol": "classify", "model": "m", "index": 1}.items()
    },
    **{
        f"{group}.judge.{k}": (PLAIN, make("judge", {"model": "m", k: v}, "http://localhost:1/v1"))
        for group, make in (("ppo.reward", of_part), ("evaluation.best_of_by", of_chooser))
        for k, v in {
            "model": "n",
            "instruction": "Rate it as [[5]].",
            "lowest": 0.0,
            "highest": 5.0,
            "temperature": 0.5,
            "max_tokens": 64,
        }.items()
    },
    **{
        f"evaluation.{k}": (PLAIN, {f"evaluation.{k}": v, **also(more)})
        for k, v, more in [
            *(
                (k, v, {})
                for k, v in {
                    "prompts": 9,
                    "gold": "data.demo.task:gold",
                    "samples_per_prompt": 2,
                    "temperature": 0.5,
                    "greedy": False,
                    "systems": ["sft"],
                    "rankings": "more.jsonl",
                    "metrics": ["rouge"],
                    "max_new_tokens": 9,
                    "batch": 9,
                    "seed": 3,
                    "bootstrap": 99,
                    "judges": [JUDGE],
                }.items()
            ),
            ("labels", ["a"], {"evaluation.metrics": ["labels"]}),
            ("hub_metrics", True, {"evaluation.metrics": ["hub:x"]}),
            ("lm_eval.tasks", ["a"], {}),
            *(
                (f"lm_eval.{k}", v, {"evaluation.lm_eval.tasks": ["a"]})
                for k, v in {
                    "tasks_dir": "t",
                    "systems": ["sft"],
                    "shots": 1,
                    "limit": 9,
                    "chat_template": True,
                    "batch": 9,
                }.items()
            ),
        ]
    },
    "evaluation.best_of_by": (PLAIN, of_chooser("weight", 2.0)),
    "evaluation.prompted": (PLAIN, of_asking("system", "s")),
    **{
        f"evaluation.prompted.{k}": (PLAIN, of_asking(k, v))
        for k, v in {
            "model": "sft",
            "prompt": "a {prompt}",
            "system": "s",
            "examples": [SHOT],
            "shots": 1,
            "until": ["x"],
            "answer": "(a)",
        }.items()
    },
    **{f"evaluation.prompted.examples.{k}": (PLAIN, of_asking("examples", [SHOT | {k: "c"}])) for k in SHOT},
    **{
        f"evaluation.judges.{k}": (PLAIN, of_judge(k, v))
        for k, v in {
            "name": "k",
            "url": "http://localhost:2/v1",
            "model": "n",
            "token_env": "T",
            "instruction": "i",
            "prompts": 9,
            "adversary_prompts": 9,
            "temperature": 0.5,
            "max_tokens": 9,
            "timeout": 9.0,
            "retries": 1,
            "concurrency": 1,
            "requests_per_minute": 9.0,
        }.items()
    },
}
COMPOSITION = "reward/terms/test_composition.py"
REMOTE = ("timeout", "retries", "backoff", "concurrency", "batch", "token_env")
OF_SERVERS = ("servers", "timeout", "retries", "backoff", "concurrency", "token_env")
SHOWN = {  # what is in no key (or has one value yet), and the file of tests that shows it acting
    "evaluation.judges.kind": "test_extension_points.py",
    "name": "pipelines/cli/test_main.py",
    "runtime.device": "pipelines/cli/test_main.py",
    "runtime.dtype": "pipelines/test_precision.py",
    "runtime.threads": "models/backbone/test_processes.py",
    "runtime.gradient_checkpointing": "stages/ppo/test_update.py",
    "runtime.offload_activations": "gpu/test_offload.py",
    "runtime.quantize": "models/roles/test_four_bits.py",
    "runtime.sharding": "pipelines/execution/test_sharding.py",
    "runtime.fit": "pipelines/run/test_fit.py",
    "runtime.engine": "pipelines/test_idle_settings.py",
    **{f"runtime.rollouts.{k}": "models/sampling/test_remote.py" for k in OF_SERVERS},
    "runtime.rollouts.engine": "pipelines/run/test_rollout_servers.py",
    "runtime.rollouts.tolerance": "stages/ppo/test_remote_rollouts.py",
    "checkpoint.every_minutes": "resume/test_resume.py",
    "checkpoint.every_steps": "resume/test_kills.py",
    "checkpoint.keep": "pipelines/test_idle_settings.py",
    "tracking": "pipelines/execution/test_tracking.py",
    "base.pretrain.max_skipped_steps": "resume/test_bad_steps.py",
    "base.pretrain.given_tokenizer": "stages/test_given_tokenizer.py",
    **{f"{s}.max_skipped_steps": "resume/test_bad_steps.py" for s in ("sft", "reward", "ppo")},
    "continued.max_skipped_steps": "pipelines/run/test_continued.py",
    "distil.max_skipped_steps": "resume/test_bad_steps.py",
    **{
        f"reward.gate.{k}": "reward/card/test_gate.py"
        for k in ("enabled", "accuracy", "beat_longest", "beat_ngrams", "empty_response", "score_std")
    },
    **{
        f"{group}.remote.{k}": "data/common/test_http_client.py"
        for group in ("ppo.reward", "evaluation.best_of_by")
        for k in REMOTE
        if k != "batch"
    },
    **{f"{group}.remote.batch": COMPOSITION for group in ("ppo.reward", "evaluation.best_of_by")},
    **{
        f"data.{part}.{key}": "data/test_source_settings.py"
        for part in ("demonstrations", "rankings", "prompts", "documents", "held_out")
        for key in Source.model_fields
    },
    **{f"evaluation.rankings.{key}": "data/test_source_settings.py" for key in Source.model_fields},
}


def test_every_setting_has_its_entry() -> None:
    names = set(setting_names())
    assert len(names) > 200
    assert names == set(ACTS) | set(SHOWN) and not set(ACTS) & set(SHOWN)


@pytest.mark.parametrize("setting", ACTS)
def test_a_setting_acts(setting: str) -> None:
    recipe, settings = ACTS[setting]
    written = load_recipe(with_settings(recipe, settings))
    without = {k: v for k, v in settings.items() if k != setting}
    declared = setting in ("evaluation.best_of_by", "evaluation.prompted", "evaluation.hub_metrics")  # needed by name
    plain = {} if declared or without == settings else without
    assert described(written) != described(load_recipe(with_settings(recipe, plain)))


@pytest.mark.parametrize("setting", SHOWN)
def test_a_setting_outside_the_keys_is_shown_acting(setting: str) -> None:
    assert setting.rsplit(".", 1)[-1] in (ROOT / "tests" / SHOWN[setting]).read_text(encoding="utf-8")


def test_the_engine_is_the_plain_one_where_it_is_asked_for(tmp_path: Path) -> None:
    from models.backbone.processes import Processes
    from pipelines.execution.loaded_models import LoadedModels
    from tests.conftest import tiny_lm, word_tokenizer

    tiny_lm().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    for engine, fast in (("auto", True), ("plain", False)):
        recipe = load_recipe(PLAIN | {"base": str(tmp_path), "runtime": {"engine": engine}})
        assert LoadedModels(recipe, Processes("cpu"), {}).base().fast is fast


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(keep: int, tmp_path: Path) -> None:
    import torch

    from stages.safe_points.checkpoints import Checkpoints, State
    from stages.settings import CheckpointConfig

    points = Checkpoints(tmp_path, "key", CheckpointConfig(every_steps=1, keep=keep))
    for step in range(1, 6):
        points.save(step, State(tensors={"weights/a": torch.ones(1)}, numbers={}))
        points.wait()
    assert len(points.steps()) == keep


# -- refused --------------------------------------------------------------------------------------------------------

FULL = {"adapter.method": "full"}
FUNCTION = {"ppo.reward": ["data.demo.task:gold"]}
RULE = {"ppo.reward": [{"source": "length", "max_length": 9}]}
TRUNK = {"ppo.value.init": "policy_trunk"}
GIVEN = {"demonstrations": "demo-task?rows=60"}
RANKED = {"rankings": "demo-task?rows=60"}
ADAPTER = {"rank": 4, "alpha": 4, "dropout": 0.1, "targets": ["c_attn"], "layers": "upper_half", "rslora": True}
ADAPTER |= {"init_rank": 40, "orthogonality": 0.1, "budget": [0.2, 0.6]}
ADAPTER |= {"virtual_tokens": 5, "encoder": "lstm", "encoder_width": 16}
ADAPTER |= {"init": "gaussian", "modules_to_save": ["wte"], "new_tokens": ["<a>"]}
ONLY_PRETRAIN = {"base": {"pretrain": {}}, "data": {"documents": "notes.txt"}}
IDLE = [  # recipe, settings written into it, the setting that cannot act, what the message says
    (
        PLAIN,
        {"adapter.modules_to_save": ["wte"], "adapter.layers": "upper_half", "ppo.share_prefix_layers": False},
        "ppo.share_prefix_layers",
        "every role has embeddings of its own",
    ),
    (PLAIN, FULL | {"adapter.layers": [99]}, "adapter.layers", "adapter.method has no layers"),
    *(
        (PLAIN, {"adapter.method": method, f"adapter.{k}": ADAPTER[k]}, f"adapter.{k}", f"adapter.method has no {k}")
        for method, tuning in METHODS.items()
        for k in ADAPTER
        if k not in tuning.settings
    ),
    ({"base": "gpt2", "data": RANKED}, {"sft.epochs": 2.0}, "sft.epochs", "no stage sft"),
    ({"base": "gpt2", "data": GIVEN}, {"reward.epochs": 2.0}, "reward.epochs", "no stage reward"),
    ({"base": "gpt2", "data": GIVEN}, {"reward.base": OTHER}, "reward.base", "no stage trains or asks"),
    ({"base": "gpt2", "data": GIVEN}, {"reward.gate.accuracy": 0.6}, "reward.gate.accuracy", "before a ppo stage"),
    ({"base": "gpt2", "data": GIVEN}, {"ppo.score_clip": 1.0, "ppo.reward": ["model"]}, "ppo.score_clip", "neither"),
    ({"base": "gpt2", "data": GIVEN}, {"evaluation.prompts": 9}, "evaluation.prompts", "no stage evaluate"),
    ({"base": "gpt2", "data": RANKED}, {"ppo.clip": 0.1}, "ppo.clip", "no stage ppo"),
    (ONLY_PRETRAIN, {"adapter.rank": 4}, "adapter.rank", "no stage trains an adapter"),
    (
        ONLY_PRETRAIN,
        {"runtime.gradient_checkpointing": True},
        "runtime.gradient_checkpointing",
        "sft, distil, reward and",
    ),
    (
        PLAIN,
        {"runtime.offload_activations": True, "runtime.gradient_checkpointing": False},
        "runtime.offload_activations",
        "set runtime.gradient_checkpointing to true",
    ),
    (ONLY_PRETRAIN, {"template": "dialogue"}, "template", "no other stage"),
    (ONLY_PRETRAIN, {"runtime.dtype": "bfloat16"}, "runtime.dtype", "pretraining is in fp32"),
    (ONLY_PRETRAIN, {"runtime.fit": "24GB"}, "runtime.fit", "pretraining is in fp32"),
    (ONLY_PRETRAIN, {"runtime.quantize": "nf4"}, "runtime.quantize", "pretraining is in fp32"),
    (ONLY_PRETRAIN, {"runtime.sharding": "fsdp2"}, "runtime.sharding", "pretraining is in fp32"),
    (PLAIN, {"data.documents": "notes.txt"}, "data.documents", "neither base"),
    (FURTHER, {"ppo.ptx_data": "demonstrations"}, "ppo.ptx_data", "ptx_coef is 0"),
    (TAUGHT, {"distil.temperature": 2.0}, "distil.temperature", "compares none"),
    (TAUGHT, {"distil.supervise": "last"}, "distil.supervise", "responds once"),
    (
        TAUGHT,
        {"distil.loss": "logits", "distil.responses": "demonstrations", "distil.prompts": 9},
        "distil.prompts",
        "does not respond",
    ),
    (
        {"base": "gpt2", "data": {"prompts": "demo-task?rows=80"}, "distil": {"teacher": "gpt2"}},
        {"distil.init": "base"},
        "distil.init",
        "no stage sft",
    ),
    (TAUGHT, {"distil.batch_tokens": 64, "distil.micro_batch": 4}, "distil.micro_batch", "distil.batch_tokens"),
    *(
        (TAUGHT, settings | {f"distil.{k}": v}, f"distil.{k}", why)
        for settings, why in (
            ({"data.held_out": 0.0}, "nothing is held out"),
            ({"distil.held_out_prompts": 0}, "nothing is held out"),
            ({"distil.held_out_every": 0}, "distil.held_out_every is 0"),
        )
        for k, v in {"held_out_rows": 7, "keep": "best", "patience": 3}.items()
    ),
    (TAUGHT, {"data.held_out": 0.0, "distil.held_out_every": 7}, "distil.held_out_every", "nothing is held out"),
    (TAUGHT, {"data.held_out": 0.0, "distil.held_out_prompts": 9}, "distil.held_out_prompts", "held_out is 0"),
    (
        FURTHER,
        {"continued.schedule": "constant", "continued.final_learning_rate": 0.5},
        "continued.final_learning_rate",
        "never falls",
    ),
    (
        {"base": {"pretrain": {"objective": "masked"}}, "data": {"documents": "notes.txt"}, "continued": {}},
        {"continued.added_vocabulary": 9},
        "continued.added_vocabulary",
        "whose vocabulary is not extended here",
    ),
    (PLAIN, {"data.text_unit": "line"}, "data.text_unit", "names none"),
    (PLAIN, {"data.clean.control": True}, "data.clean.control", "data names none"),
    (PLAIN, {"data.ignore": ["note"]}, "data.ignore", "it names columns of files"),
    (PLAIN, {"data.group_by": "topic"}, "data.group_by", "it names columns of files"),
    (SAMPLED, {"data.annotators": "mean"}, "data.annotators", "no data.rankings"),
    (SAMPLED, {"data.held_out": 0.0, "rankings.held_out_prompts": 9}, "rankings.held_out_prompts", "held_out is 0"),
    (PLAIN, {"sft.batch_tokens": 64, "sft.micro_batch": 4}, "sft.micro_batch", "sft.batch_tokens"),
    *(
        (PLAIN, {"data.held_out": 0.0, f"{group}.{k}": v}, f"{group}.{k}", "nothing is held out")
        for group in ("sft", "reward")
        for k, v in {"held_out_every": 7, "held_out_rows": 7, "keep": "best", "patience": 3}.items()
    ),
    (SAMPLED, {"rankings.held_out_prompts": 0, "reward.keep": "best"}, "reward.keep", "rankings.held_out_prompts"),
    *(
        (PLAIN, {f"{group}.held_out_every": 0, f"{group}.{k}": v}, f"{group}.{k}", "held_out_every is 0")
        for group in ("sft", "reward")
        for k, v in {"held_out_rows": 7, "keep": "best", "patience": 3}.items()
    ),
    (PLAIN, {"reward.base": OTHER, "reward.init": "base"}, "reward.init", "no SFT adapter"),
    (PLAIN, {"reward.combine": "min"}, "reward.combine", "ensemble is 1"),
    (PLAIN, {"reward.negatives_share": 0.5}, "reward.negatives_share", "it is a share of the rankings that get"),
    (PLAIN, {"reward.uncertainty_penalty": 2.0}, "reward.uncertainty_penalty", "mean_minus_std"),
    (PLAIN, {"reward.uncertainty_penalty": 2.0, "reward.ensemble": 2}, "reward.uncertainty_penalty", "mean_minus_std"),
    *(
        (PLAIN, {"reward.gate": {"enabled": False, k: v}}, f"reward.gate.{k}", "reward.gate is off")
        for k, v in {
            "accuracy": 0.6,
            "beat_longest": False,
            "beat_ngrams": True,
            "empty_response": 0.6,
            "score_std": 0.1,
        }.items()
    ),
    (PLAIN, RULE | {"reward.gate.accuracy": 0.6}, "reward.gate.accuracy", "scores"),
    (PLAIN, {"ppo.micro_tokens": 64, "ppo.micro_batch": 4}, "ppo.micro_batch", "ppo.micro_tokens"),
    (PLAIN, {"ppo.kl_target": 3.0}, "ppo.kl_target", "'fixed'"),
    (PLAIN, {"ppo.kl_horizon": 3.0}, "ppo.kl_horizon", "'fixed'"),
    (PLAIN, {"ppo.kl": "adaptive", "ppo.kl_coef": 0.0}, "ppo.kl", "stays so"),
    (PLAIN, {"ppo.schedule": "constant", "ppo.final_learning_rate": 0.1}, "ppo.final_learning_rate", "never falls"),
    (
        PLAIN,
        TRUNK | {"ppo.value_learning_rate": 1e-3, "ppo.value_head_learning_rate": 1e-3},
        "ppo.value_learning_rate",
        "head alone",
    ),
    (PLAIN, {"ppo.value_coef": 0.5}, "ppo.value_coef", "policy_trunk"),
    (PLAIN, {"reward.base": OTHER, "ppo.value.head": "zero"}, "ppo.value.head", "anyway"),
    (PLAIN, {"reward.base": OTHER, "ppo.value.init": "sft"}, "ppo.value.init", "anyway"),
    (PLAIN, FUNCTION | {"ppo.standardise_scores": True}, "ppo.standardise_scores", "no part"),
    (
        {"base": "gpt2", "data": {"prompts": DATA["prompts"]}},
        FUNCTION | {"ppo.value.init": "sft", "adapter.dropout": 0.1},
        "adapter.dropout",
        "PPO uses none",
    ),
    (PLAIN, {"ppo.share_prefix_layers": False}, "ppo.share_prefix_layers", "every layer"),
    (PLAIN, {"ppo.importance_cap": 2.0}, "ppo.importance_cap", "every weight is 1"),
    (PLAIN, SERVERS | {"ppo.sampling_batch": 4}, "ppo.sampling_batch", "servers sample"),
    ({"base": "gpt2", "data": RANKED}, SERVERS, "runtime.rollouts.engine", "no stage samples"),
    (PLAIN, {"ppo.holdout_every": 2}, "ppo.holdout_every", "nothing watches"),
    (PLAIN, {"ppo.holdout_prompts": 9}, "ppo.holdout_prompts", "nothing watches"),
    (PLAIN, {"ppo.updates": 3, "ppo.keep_every": 4}, "ppo.keep_every", "no policy"),
    (PLAIN, {"ppo.updates": 3, "ppo.critic_warmup": 3}, "ppo.critic_warmup", "policy never"),
    *(
        (PLAIN, settings | {"ppo.critic_warmup": 2}, "ppo.critic_warmup", "would train nothing")
        for settings in (
            {"ppo.value_learning_rate": 0.0},
            {"ppo.value_learning_rate": 0.0, "ppo.value_head_learning_rate": 0.0},
            TRUNK | {"ppo.value_head_learning_rate": 0.0},
        )
    ),
    (PLAIN, of_part("min_length", 0, max_length=None), "ppo.reward", "each scores 0"),
    (PLAIN, of_part("pattern", "", "regex"), "ppo.reward", "is found in every response"),
    (PLAIN, of_asking("until", ["x", ""]), "until", "an empty string would end every response at once"),
    (PLAIN, {"evaluation.systems": []}, "evaluation.systems", "names no system to evaluate"),
    (PLAIN, {"evaluation.labels": ["a"]}, "evaluation.labels", "no 'labels'"),
    (PLAIN, {"evaluation.hub_metrics": True}, "evaluation.hub_metrics", "no 'hub:NAME'"),
    *(
        (PLAIN, {f"evaluation.lm_eval.{k}": v}, f"evaluation.lm_eval.{k}", "names no task")
        for k, v in {
            "tasks_dir": "t",
            "systems": ["sft"],
            "shots": 1,
            "limit": 9,
            "chat_template": True,
            "batch": 9,
        }.items()
    ),
    (
        {"base": "gpt2", "data": {k: DATA[k] for k in ("demonstrations", "prompts")}},
        FUNCTION | {"ppo.value.init": "sft", "evaluation.rankings": "r.jsonl"},
        "evaluation.rankings",
        "no stage trains one",
    ),
    (PLAIN, {"evaluation.best_of_by": {"mine": ["model"]}}, "evaluation.best_of_by.mine", "best_of_4:mine"),
    (PLAIN, {"evaluation.prompted": {"mine": {"system": "s"}}}, "evaluation.prompted.mine", "prompted:mine"),
    (PLAIN, {"checkpoint.every_minutes": None, "checkpoint.keep": 3}, "checkpoint.keep", "nothing is saved"),
    (SCRATCH, {"base.pretrain.vocabulary": 100}, "base.pretrain.vocabulary", "260"),
    *(
        (SCRATCH, {"base.pretrain.given_tokenizer": "x", name: value}, name, "no tokenizer is trained")
        for name, value in (("base.pretrain.tokenizer", "words"), ("base.pretrain.vocabulary", 400))
    ),
    (PLAIN, of_remote("model", "m"), "remote", "belongs to protocol 'classify'"),
    (PLAIN, of_remote("index", 1), "remote", "belongs to protocol 'classify'"),
    *(
        (PLAIN, of_part(k, v, "data.demo.task:gold"), "ppo.reward", f"'{k}' belongs to")
        for k, v in {
            "pattern": "a",
            "count": True,
            "min_length": 1,
            "max_length": 9,
            "unit": "tokens",
            "remote": {"batch": 2},
        }.items()
    ),
    (PLAIN, {"reward.negatives": ["cut short", "cut short"]}, "reward", "negatives names one twice"),
    (PLAIN, {"reward.loss": "plackett_luce", "reward.margin": 0.1}, "reward", "margin belongs to"),
    (PLAIN, {"reward.loss": "plackett_luce", "reward.label_smoothing": 0.1}, "reward", "label_smoothing belongs to"),
    (PLAIN, {"ppo.value": {"init": "sft", "head": "copy"}}, "ppo.value", "needs value.init 'reward'"),
    (PLAIN, {"ppo.keep": "best"}, "ppo.keep", "reward.holdout"),
    (SCRATCH, {"adapter.layers": [0, 99]}, "adapter.layers", "[99] is outside the 2 layers (0 to 1)"),
    (SCRATCH, {"adapter.layers": [-1]}, "adapter.layers", "[-1] is outside the 2 layers"),
    (PLAIN, {"adapter.layers": []}, "adapter.layers", "names nothing"),
    *(
        (PLAIN, {"adapter.method": method, f"{stage}.weight_decay": 0.1}, f"{stage}.weight_decay", "never trained")
        for method in RESIDUAL
        for stage in ("sft", "ppo")
    ),
    (PLAIN, {"adapter.targets": []}, "adapter.targets", "names nothing"),
]


@pytest.mark.parametrize(("recipe", "settings", "setting", "why"), IDLE, ids=lambda v: v if isinstance(v, str) else "")
def test_a_setting_that_cannot_act_is_refused(recipe, settings, setting, why, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(with_settings(recipe, settings)))
    with pytest.raises(UserError, match=re.escape(why)) as refused:
        load_recipe(file)
    line = next(part for part in str(refused.value).splitlines() if why in part)
    assert setting in line and re.search(r"r\.yaml:\d+", line)


def test_every_rule_has_a_refusal() -> None:
    refused = [(tuple(setting.split(".")), why) for _, _, setting, why in IDLE]
    names = [tuple(name.split(".")) for name in (*ACTS, *SHOWN)]
    for rule in RULES:
        assert any(covers(name, path) and why in rule.why for name in rule.settings for path, why in refused), rule
        for name in rule.settings:
            assert any(covers(name, path) for path in names), f"{name}: no setting of that name"


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        (PLAIN, {"ppo.value_learning_rate": 0.0, "ppo.value_head_learning_rate": 1e-4, "ppo.critic_warmup": 2}),
        (PLAIN, {"ppo.value_head_learning_rate": 0.0, "ppo.critic_warmup": 2}),
        (PLAIN, of_part("min_length", 0)),
        (PLAIN, of_part("count", True, "regex", pattern="")),
        (TAUGHT | {"stages": ["distil"]}, {"adapter.dropout": 0.1}),
        (
            {"base": "gpt2", "data": {"prompts": DATA["prompts"]}, "distil": {"teacher": "gpt2"}},
            {"adapter.dropout": 0.1},
        ),
        (
            TAUGHT,
            {
                "distil.loss": "logits",
                "distil.responses": "demonstrations",
                "distil.keep": "best",
            },
        ),
    ],
)
def test_what_acts_after_all_is_taken(recipe, settings) -> None:
    load_recipe(with_settings(recipe, settings))


@pytest.mark.parametrize(
    "recipe", [PLAIN, SCRATCH, SAMPLED, TAUGHT, ONLY_PRETRAIN, PLAIN | {"adapter": {"method": "full"}}]
)
def test_a_resolved_recipe_writes_every_setting_and_is_taken(recipe, tmp_path: Path) -> None:
    made = load_recipe(recipe)
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(made))
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again.model_dump(exclude={"base_dir"}) == made.model_dump(exclude={"base_dir"})
    assert {".".join(map(str, path)) for path, _, _ in leaves(made, {})} >= {"adapter.rank", "ppo.kl_target"}


def test_defaults_that_are_written_out_say_nothing() -> None:
    load_recipe(with_settings(PLAIN, FULL | {"adapter.rank": 16, "adapter.layers": "all", "ppo.kl_target": 6.0}))


def test_settings_of_stages_that_are_left_out_by_name_wait() -> None:
    load_recipe(with_settings(PLAIN, {"stages": ["sft"], "reward.epochs": 2.0, "ppo.clip": 0.1, "evaluation.batch": 4}))


def test_a_finished_run_is_evaluated_in_another_way(tmp_path: Path) -> None:
    made = load_recipe(with_settings(PLAIN, of_chooser("weight", 2.0)))
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(made))
    other = ["evaluation.systems=[sft]"]
    assert load_recipe(tmp_path / "recipe.yaml", other, may_idle=True).evaluation.systems == ("sft",)
    with pytest.raises(UserError, match=r"best_of_by\.mine"):
        load_recipe(tmp_path / "recipe.yaml", other)


@pytest.mark.parametrize(
    ("recipe", "settings", "given", "told"),
    [
        (
            SCRATCH,
            {"base.pretrain.steps": 7, "base.pretrain.batch": 3},
            ["pretrain"],
            ["base.pretrain.steps", "base.pretrain.batch"],
        ),
        (SCRATCH, {"base.pretrain.steps": 7}, [], []),
        (SCRATCH, {"base.pretrain.steps": 7}, ["sft"], []),
        (PLAIN, {"data.demonstrations": "demo-task?rows=20"}, ["pretrain"], []),
        (PLAIN, {"sft.epochs": 2.0, "sft.batch": 8, "ppo.clip": 0.1}, ["sft"], ["sft.epochs", "sft.batch"]),
        (PLAIN, {"sft.epochs": 2.0, "reward.epochs": 2.0}, ["sft", "reward"], ["sft.epochs", "reward.epochs"]),
        (
            PLAIN,
            {"reward.max_tokens": 64, "reward.gate.accuracy": 0.6, "reward.batch": 4},
            ["reward"],
            ["reward.batch"],
        ),
        (PLAIN, {"reward.holdout": 0.2, "ppo.holdout_every": 2}, ["reward"], ["reward.holdout"]),
        (PLAIN, {"evaluation.rankings": "r.jsonl"}, ["reward"], []),
        (PLAIN, {"ppo.clip": 0.1, "ppo.max_new_tokens": 8}, ["ppo"], ["ppo.clip"]),
        (SAMPLED, {"rankings.answers": 2}, ["rankings"], ["rankings.annotator", "rankings.answers"]),
        (TAUGHT, {"distil.warmup": 0.1}, ["distil"], ["distil.warmup", "distil.teacher"]),
        (TAUGHT | {"base": "smollm2-135m"}, {"distil.batch": 4}, ["distil"], ["distil.batch", "distil.teacher"]),
        (PLAIN, {"adapter.rank": 4}, ["sft"], []),
        (PLAIN, {"adapter.rank": 4}, ["sft", "reward", "ppo"], ["adapter.rank"]),
    ],
)
def test_settings_of_what_is_given_instead_are_named(recipe, settings, given, told) -> None:
    made = load_recipe(with_settings(recipe, settings))
    said = replaced(made, given)
    assert bool(said) == bool(told)
    if told:
        options = " ".join(f"{name}=..." for name in given)
        assert said.startswith(f"settings without effect, since {' and '.join(given)} ")
        assert f"(--input {options}): " in said and said.rpartition(": ")[2].split(", ") == told


@pytest.mark.parametrize(
    ("setting", "value", "taken"),
    [
        ("sft.learning_rate", 1e39, "infinity"),
        ("sft.learning_rate", 1e-60, "0"),
        ("reward.weight_decay", 3.5e38, "infinity"),
        ("ppo.kl_coef", 1e300, "infinity"),
        ("ppo.clip", 1e-50, "0"),
        ("ppo.missing_eos_penalty", 1e39, "infinity"),
        ("ppo.reward", [{"source": "model", "weight": -1e39}], "infinity"),
        ("adapter.alpha", 1e-39, "0"),
        ("ppo.entropy_coef", 1e-44, "0"),
    ],
)
def test_a_number_that_single_precision_does_not_hold_is_refused(setting, value, taken, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(with_settings(PLAIN, {setting: value})))
    with pytest.raises(UserError, match=rf"{setting}.* is {taken} in single precision"):
        load_recipe(file)


@pytest.mark.parametrize(("resamples", "fine"), [(1, False), (39, False), (40, True), (10**6, True), (10**10, False)])
def test_an_interval_has_enough_resamples_and_not_too_many(resamples: int, fine: bool) -> None:
    """Of fewer than 40, 2.5 % on either side is less than one."""
    if fine:
        load_recipe(with_settings(PLAIN, {"evaluation.bootstrap": resamples}))
        return
    with pytest.raises(UserError, match=r"evaluation\.bootstrap: must be at (least 40|most 1000000)"):
        load_recipe(with_settings(PLAIN, {"evaluation.bootstrap": resamples}))
