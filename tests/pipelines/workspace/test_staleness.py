"""Every sort of change makes exactly the stages stale that depend on it, and the plan says why of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from safetensors.numpy import save_file

from data.common.config import Config
from data.common.errors import UserError
from models.backbone.artifacts import publish
from pipelines.recipe.schema import Recipe, RuntimeConfig
from pipelines.run.pipeline import Pipeline
from pipelines.run.staleness import resumes_at
from pipelines.stages.table import STAGES
from reward.settings import GateConfig
from stages import settings as configs
from stages.safe_points.checkpoints import Checkpoints, State
from stages.settings import CheckpointConfig

ALL = ("sft", "rankings", "reward", "ppo", "evaluate")
FROM = {stage: ALL[n:] for n, stage in enumerate(ALL)}
FUNCTION = "def {name}(prompts, completions):\n    return [float(len(c)) for c in completions]\n"


TRAINER: dict[str, Any] = {"trainer": {"global_step": 3, "max_steps": 9}, "offset": 0}


@pytest.mark.parametrize(
    ("stage", "number", "state", "changes", "said"),
    [
        ("ppo", 90, {"update": 17}, {}, "resumes at update 18 of 40"),
        ("ppo", 200, {"update": 40}, {}, "resumes after update 40 of 40"),
        ("ppo", 90, {}, {}, "resumes from checkpoint step_90"),  # damaged: the run will refuse it
        ("sft", 3, TRAINER, {}, "resumes at step 4 of 9"),
        ("sft", 9, TRAINER, {}, "resumes after step 9 of 9"),
        ("distil", 5, TRAINER | {"offset": 2}, {}, "resumes at step 6 of 11"),
        ("reward", 3, TRAINER, {}, "resumes at step 4 of 9"),
        ("reward", 3, TRAINER, {"ensemble": 2}, "resumes at step 4"),
        ("rankings", 96, {}, {}, "resumes at response 97"),
    ],
)
def test_a_stopped_stage_resumes_at_what_its_progress_counts(
    stage: str, number: int, state: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    made = Recipe.model_validate(
        {"name": "r", "base": "b", "data": {"demonstrations": "d.jsonl"}, "ppo": {"updates": 40}, "reward": changes}
    )
    points = Checkpoints(tmp_path, "key")
    points.save(1, State(tensors={}, numbers=state | {"update": 1}))
    points.save(number, State(tensors={}, numbers=state))
    points.wait()
    assert resumes_at(tmp_path, "key", stage, made) == said
    assert resumes_at(tmp_path, "other", stage, made) == resumes_at(tmp_path / "none", "key", stage, made) == ""


def lines(*rows: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.fixture
def world_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that a recipe can name, each in a file of its own."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.jsonl").write_text(lines(*({"prompt": f"d{n}", "completion": "a"} for n in range(20))))
    (tmp_path / "prompts.jsonl").write_text(lines(*({"prompt": f"p{n}"} for n in range(20))))
    for name in ("annotator", "extra", "gold"):
        (tmp_path / f"{name}.py").write_text(FUNCTION.format(name=name))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (base / "tokenizer.json").write_text("{}")
    save_file({"w": np.zeros(2)}, base / "model.safetensors")
    (tmp_path / "models.yaml").write_text("mine: {source: ./base, licence: x}\n")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    return tmp_path


def recipe(**changes: Any) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": "r",
        "base": "mine",
        "template": "t.jinja",
        "data": {"demonstrations": "sft.jsonl", "prompts": "prompts.jsonl"},
        "rankings": {"annotator": "annotator.py:annotator"},
        "ppo": {"reward": ["model", "extra.py:extra"]},
        "evaluation": {"gold": "gold.py:gold"},
        "runtime": {"device": "cpu"},
    }
    for dotted, value in changes.items():
        *groups, last = dotted.split("__")
        here = out
        for group in groups:
            here = here.setdefault(group, {})
        here[last] = value
    return out


def pipeline(world_size: Path, inputs: dict[str, str] | None = None, **changes: Any) -> Pipeline:
    return Pipeline.from_recipe(recipe(**changes), run_dir=world_size / "run", inputs=inputs)


def finish(made: Pipeline) -> None:
    """Every stage as if it had been run: its key and description over a file."""
    for state in made.states():
        name, described, key = state.name, state.described, state.key
        part = made.run_dir / f".{STAGES[name].folder}.partial"
        part.mkdir(parents=True)
        (part / "w.safetensors").write_text(name)
        publish(part, made.run_dir / STAGES[name].folder, {"stage": name, "key": key, "described": described})


def stale(made: Pipeline) -> dict[str, str]:
    """Stages that would run, with the reason that the plan gives."""
    return {p.name: p.reason for p in made.plan() if p.status != "cached"}


def told(found: dict[str, str], expected: tuple[str, ...], why: str) -> None:
    """Exactly these; the first is told the cause, those that follow are told a parent or the cause."""
    assert tuple(found) == expected
    for n, (stage, reason) in enumerate(found.items()):
        assert why in reason or (n > 0 and "inputs." in reason), f"{stage}: {reason}"


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda world_size: (world_size / name).write_text(text)


def append(name: str, text: str) -> Callable[[Path], object]:
    return lambda world_size: (world_size / name).write_text((world_size / name).read_text() + text)


def heavier(world_size: Path) -> None:
    import numpy as np

    save_file({"w": np.ones(2)}, world_size / "base/model.safetensors")


FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "a demonstration": (append("sft.jsonl", lines({"prompt": "new", "completion": "b"})), FROM["sft"], "data.demo"),
    "a prompt": (append("prompts.jsonl", lines({"prompt": "new"})), FROM["rankings"], "data.prompts"),
    "a base weight": (heavier, FROM["sft"], "base"),
    "the registry entry's use": (
        write("models.yaml", "mine: {source: ./base, dtype: float32}\n"), FROM["sft"], "base"),
    "the registry entry's words": (
        write("models.yaml", "mine: {source: ./base, licence: y, note: z}\n"), (), ""),
    "the template file": (append("t.jinja", "!"), FROM["sft"], "rendering.file"),
    "the annotator": (append("annotator.py", "# more\n"), FROM["rankings"], "functions.annotator.py:annotator"),
    "a reward function": (append("extra.py", "# more\n"), FROM["ppo"], "functions.extra.py:extra"),
    "the gold function": (append("gold.py", "# more\n"), FROM["evaluate"], "functions.gold.py:gold"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file(name: str, world_size: Path) -> None:
    finish(pipeline(world_size))
    assert stale(pipeline(world_size)) == {}
    change, expected, why = FILES[name]
    change(world_size)
    told(stale(pipeline(world_size)), expected, why)


@pytest.mark.parametrize("stage", ALL)
def test_another_version_of_a_stages_code(stage: str, world_size: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(pipeline(world_size))
    now = STAGES[stage].version()
    monkeypatch.setattr(f"{STAGES[stage].code}.VERSION", now + 1)
    told(stale(pipeline(world_size)), FROM[stage], f"version ({now} -> {now + 1})")


def test_an_adapter_that_was_given(world_size: Path) -> None:
    given = world_size / "given"
    given.mkdir()
    (given / "adapter_model.safetensors").write_text("one")
    inputs = {"sft": str(given)}
    made = pipeline(world_size, inputs, stages=["rankings", "reward", "ppo", "evaluate"])
    finish(made)
    assert stale(pipeline(world_size, inputs, stages=["rankings", "reward", "ppo", "evaluate"])) == {}
    (given / "adapter_model.safetensors").write_text("two")
    found = stale(pipeline(world_size, inputs, stages=["rankings", "reward", "ppo", "evaluate"]))
    told(found, FROM["rankings"], "inputs.sft")


@pytest.mark.parametrize("stage", ALL)
def test_a_stage_is_skipped_only_if_its_bytes_agree(stage: str, world_size: Path) -> None:
    made = pipeline(world_size)
    finish(made)
    file = made.run_dir / STAGES[stage].folder / "w.safetensors"
    file.write_text(stage.upper())  # the same size
    assert list(stale(pipeline(world_size))) == [stage] and "altered" in stale(pipeline(world_size))[stage]
    (file.parent / "manifest.json").write_text("{")
    assert "manifest.json: damaged" in stale(pipeline(world_size))[stage]


# -- every setting ----------------------------------------------------------------------------------------------------


def other_values(name: str, config: type[Config]) -> list[Any]:
    """Values that a setting could have instead of its default."""
    field = config.model_fields[name]
    now, kind = field.default, field.annotation
    choices: list[Any] = [v for part in (kind, *get_args(kind)) if get_origin(part) is Literal for v in get_args(part)]
    if get_origin(kind) is tuple:
        choices = [[v] for v in choices]
    numbers = [now + 1, now * 2, now / 2] if isinstance(now, int | float) and not isinstance(now, bool) else []
    options = [not now] if isinstance(now, bool) else [c for c in choices if c != now] + numbers
    return [*options, 64, 1, 0.5, 0.25, "x", "gold.py:gold", ["sft"], ["q_proj"]]


SECTIONS: dict[str, tuple[type[Config], tuple[str, ...]]] = {
    "sft": (configs.SFTConfig, FROM["sft"]),
    "rankings": (configs.RankingsConfig, FROM["rankings"]),
    "reward": (configs.RewardConfig, FROM["reward"]),
    "ppo": (configs.PPOConfig, FROM["ppo"]),
}
GROUPS = {"gate", "value", "reward", "base", "ensemble"}  # groups of their own, and what names a file
GROUPS |= {"max_skipped_steps"}  # decides whether a stage ends, not what it leaves
GROUPS |= {"held_out_every", "held_out_rows"}  # watch, unless the best weights are kept
GROUPS |= {"micro_batch", "micro_tokens", "batch_tokens", "sampling_batch", "share_prefix_layers"}
ALSO = {("reward", "max_tokens"): FROM["reward"], ("ppo", "max_new_tokens"): FROM["ppo"]}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_of_a_stage(section: str, world_size: Path) -> None:
    config, expected = SECTIONS[section]
    finish(pipeline(world_size))
    tried = 0
    for name, field in config.model_fields.items():
        if name in GROUPS or (isinstance(field.annotation, type) and issubclass(field.annotation, Config)):
            continue
        for value in other_values(name, config):
            if value == field.default:
                continue
            try:
                made = pipeline(world_size, **{f"{section}__{name}": value})
                found = stale(made)
            except UserError:
                continue
            told(found, ALSO.get((section, name), expected), name)
            tried += 1
            break
        else:  # only together with another setting: changed behind the checks
            made = pipeline(world_size)
            needed: dict[str, object] = {}  # without which these are in no key
            needed |= {"ptx_coef": 1.0} if name.startswith("ptx_") else {}
            needed |= {"negatives": ("empty response",)} if name == "negatives_share" else {}
            group = getattr(made.recipe, section).model_copy(update=needed | {name: other_values(name, config)[0]})
            made = Pipeline(made.recipe.model_copy(update={section: group}), world_size / "run")
            told(stale(made), expected, name)
            tried += 1
    assert tried >= 8


SETTINGS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "seed": (1, FROM["sft"], "seed (0 -> 1)"),
    "template": ("dialogue", FROM["sft"], "rendering.template"),
    "stop": (["x"], FROM["sft"], "rendering.stop"),
    "stop_strings": (["x y"], FROM["sft"], "rendering.stop_strings"),
    "adapter__rank": (4, FROM["sft"], "adapter.rank (16 -> 4)"),
    "adapter__targets": (["q_proj"], FROM["sft"], "adapter.targets"),
    "runtime__dtype": ("float32", FROM["sft"], "runtime.dtype"),
    "runtime__threads": (1, FROM["sft"], "runtime.threads"),
    "data__held_out": (0.2, FROM["sft"], "data."),
    "ppo__value__init": ("sft", FROM["ppo"], "settings.ppo.value.init"),
    "ppo__reward": (["model"], FROM["ppo"], "settings.ppo.reward"),
    "evaluation__prompts": (3, FROM["evaluate"], "evaluation.prompts (256 -> 3)"),
    "evaluation__greedy": (False, FROM["evaluate"], "evaluation.greedy"),
    "evaluation__seed": (4, FROM["evaluate"], "evaluation.seed"),
    "reward__gate__accuracy": (0.7, (), ""),
    "sft__max_skipped_steps": (5, (), ""),
    "reward__max_skipped_steps": (5, (), ""),
    "ppo__max_skipped_steps": (5, (), ""),
    "checkpoint__every_steps": (1, (), ""),
    "tracking": (["tensorboard"], (), ""),
    "name": ("another", (), ""),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_other_sections(setting: str, world_size: Path) -> None:
    finish(pipeline(world_size))
    value, expected, why = SETTINGS[setting]
    told(stale(pipeline(world_size, **{setting: value})), expected, why)


def test_a_reward_that_chooses_for_a_best_of_n(world_size: Path) -> None:
    def made(max_length: int = 3, timeout: float = 5.0, index: int = 0, by: str = "mine", **more: Any) -> Pipeline:
        remote = {"source": "http://h/", "remote": {"protocol": "classify", "timeout": timeout, "index": index}}
        mine = ["extra.py:extra", {"source": "length", "max_length": max_length}, remote]
        own = {"mine": mine} if by == "mine" else {}
        return pipeline(world_size, evaluation__systems=["sft", f"best_of_2:{by}"], evaluation__best_of_by=own, **more)

    finish(made())
    assert stale(made()) == stale(made(timeout=6.0)) == {}
    for other in (made(4), made(index=1)):
        told(stale(other), FROM["evaluate"], "evaluation.best_of_by")
    told(stale(made(by="ppo.reward")), FROM["evaluate"], "evaluation")
    append("extra.py", "# more\n")(world_size)
    assert "functions.extra.py:extra" in stale(made())["evaluate"]


def test_what_the_table_leaves_out_changes_no_result() -> None:
    assert set(CheckpointConfig.model_fields) == {"every_minutes", "every_steps", "keep"}
    assert "gate" in configs.RewardConfig.model_fields and GateConfig.model_fields
    assert set(RuntimeConfig.model_fields) >= {"device", "dtype", "threads", "gradient_checkpointing"}
