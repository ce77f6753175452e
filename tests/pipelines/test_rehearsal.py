"""Faults that are known at the start are told by plan, and by run before its first stage, with exit code 2."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from data.common.errors import UserError
from data.corpus import in_holdout, is_held_out
from pipelines.cli import main as cli
from pipelines.loading.idle import waiting
from pipelines.loading.load import load_recipe
from pipelines.run.endpoints import check_keys, unanswered
from pipelines.run.pipeline import Pipeline
from pipelines.run.rehearsal import check_precision, rehearse, value_start
from pipelines.run.rehearsed_rows import partly_rehearsed
from tests.conftest import WORDS, tiny_lm, word_tokenizer
from tests.support.encoders import save_encoder

REFUSES = "{{ raise_exception('no system please') if messages[0].role == 'system' else '' }}"


def rows(path: Path, made: list[dict[str, Any]]) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


TURNS = "{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}"
TURNS += "{% if add_generation_prompt %}assistant : {% endif %}"


def save_base(
    folder: Path,
    family: str = "llama",
    words: list[str] | None = None,
    template: str = REFUSES + TURNS,
    **changes: Any,
) -> Any:
    lm, tokenizer = tiny_lm(family, **changes), word_tokenizer(words=words)
    tokenizer.chat_template = template
    lm.save_pretrained(folder), tokenizer.save_pretrained(folder)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """A recipe whose plan and run are sound; every test breaks one thing."""
    save_base(tmp_path / "base")
    rows(tmp_path / "sft.jsonl", [{"prompt": f"w{i}", "completion": f"w{i + 1}"} for i in range(12)])
    rows(tmp_path / "rank.jsonl", [{"prompt": f"w{i}", "responses": ["w1", "w2"]} for i in range(12)])
    rows(tmp_path / "prompts.jsonl", [{"prompt": f"w{i}"} for i in range(12)])
    return {
        "name": "r",
        "base": "./base",
        "template": "dialogue",
        "data": {"demonstrations": "sft.jsonl", "rankings": "rank.jsonl", "prompts": "prompts.jsonl", "held_out": 0.3},
        "ppo": {"max_new_tokens": 8, "updates": 4},
        "sft": {"max_tokens": 64},
        "reward": {"max_tokens": 64},
        "runtime": {"device": "cpu"},
    }


def long_row(folder: Path) -> Any:
    with (folder / "sft.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "w1", "completion": "w2 " * 90}) + "\n")


def system_row(folder: Path) -> Any:
    turns = [{"role": r, "content": "w1"} for r in ("system", "user", "assistant")]
    with (folder / "sft.jsonl").open("a") as file:
        file.write(json.dumps({"messages": turns}) + "\n")


def named_templates(base: Path) -> Any:
    (base / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": name, "template": "{{ messages }}"} for name in ("tool_use", "rag")]
    (base / "tokenizer_config.json").write_text(json.dumps(config))


def reward_base(folder: Path, recipe: dict[str, Any], family: str = "llama", **changes: Any) -> Any:
    save_base(folder / "rb", family, **changes)
    recipe["reward"]["base"] = "./rb"


def asked(recipe: dict[str, Any], **how: Any) -> Any:
    recipe["evaluation"] = {"systems": ["sft", "prompted:mine"], "prompted": {"mine": {"model": "sft"} | how}}


def other_adapter(folder: Path) -> Any:
    """An adapter for a base of twice the width."""
    made = get_peft_model(tiny_lm(hidden_size=64), LoraConfig(r=4, target_modules=["q_proj"]))
    made.save_pretrained(str(folder))


def empty(folder: Path) -> Any:
    folder.mkdir()


ALONE = next(f"w{i} w1" for i in range(40) if in_holdout(f"w{i} w1", 0.5) and not is_held_out(f"w{i} w1", 0.3))


def no_references(folder: Path, recipe: dict[str, Any]) -> Any:
    """Held-out prompts that no demonstration and no ranking answers."""
    rows(folder / "held.jsonl", [{"prompt": f"w{i} w{i}"} for i in range(4)])
    recipe["data"]["held_out"] = "held.jsonl"


FAULTS: dict[str, tuple[Callable[[Path, dict[str, Any]], Any], str]] = {
    "a tokenizer larger than the embeddings": (
        lambda f, r: save_base(f / "base", words=[*WORDS, "more"]),
        "tokens without an embedding",
    ),
    "a stop of the generation config": (
        lambda f, r: (f / "base/generation_config.json").write_text('{"eos_token_id": [2, 999]}'),
        "stop: id 999 is outside the 40 embeddings",
    ),
    "rows beyond a table of positions": (
        lambda f, r: (save_base(f / "base", "gpt2"), long_row(f), r["sft"].update(max_tokens=512)),
        "sft.jsonl:13): 1 of 13 rows are longer than the 64 positions",
    ),
    "prompts and new tokens beyond it": (
        lambda f, r: (save_base(f / "base", "gpt2"), r.update(evaluation={"max_new_tokens": 63})),
        "63 of them new); lower evaluation.max_new_tokens, or leave out the longest prompts",
    ),
    "a template that refuses": (lambda f, r: (system_row(f), r.update(template="chat")), "sft.jsonl:13"),
    "no held-out prompt": (lambda f, r: r["data"].update(held_out=0.0), "data.held_out: no held-out prompt is left"),
    "few-shot without demonstrations": (
        lambda f, r: r.update(
            evaluation={"systems": ["base", "prompted:mine"], "prompted": {"mine": {"model": "base", "shots": 50}}}
        ),
        "prompted:mine: 50 shots are asked for",
    ),
    "a policy that is not kept": (
        lambda f, r: (r["ppo"].update(keep_every=2), r.update(evaluation={"systems": ["sft", "ppo@3"]})),
        "ppo@3: that policy will not be kept",
    ),
    "a system of a stage that the run does not have": (
        lambda f, r: r.update(stages=["reward", "ppo", "evaluate"], evaluation={"systems": ["base", "sft", "ppo"]}),
        "sft: there is no sft stage in this run; add it, give --input sft=PATH, or leave it out: [base, ppo]",
    ),
    "a way of asking a model that the run does not have": (
        lambda f, r: (
            asked(r),
            r.update(stages=["reward", "ppo", "evaluate"]),
            r["evaluation"].update(systems=["base", "prompted:mine"]),
        ),
        "prompted:mine: there is no sft stage in this run",
    ),
    "the best by a reward that the run does not have": (
        lambda f, r: r.update(stages=["sft", "evaluate"], evaluation={"systems": ["sft", "best_of_2:ppo.reward"]}),
        "best_of_2:ppo.reward: there is no reward stage in this run",
    ),
    "a folder that is not there": (
        lambda f, r: r.update(evaluation={"systems": ["sft", "path:nowhere"]}),
        "path:nowhere: no such folder",
    ),
    "layers that the base does not have": (
        lambda f, r: r.update(adapter={"layers": [99]}),
        "adapter.layers: [99] is outside the 2 layers",
    ),
    "a target that the base does not have": (
        lambda f, r: r.update(adapter={"targets": ["q_prj"]}),
        "adapter.targets: the base has no module 'q_prj'. Did you mean 'q_proj'",
    ),
    "a base without attention": (
        lambda f, r: (f / "base/config.json").write_text('{"model_type": "rwkv", "vocab_size": 40, "hidden_size": 8}'),
        "'rwkv' models have no key-value cache",
    ),
    "a tokenizer without a default chat template": (
        lambda f, r: (named_templates(f / "base"), r.update(template="chat")),
        "no default chat template, only rag, tool_use: name the one that is meant, such as `template: rag`",
    ),
    "examples that do not fit a table of positions": (
        lambda f, r: (save_base(f / "base", "gpt2"), asked(r, examples=[{"prompt": "w1 " * 9, "answer": "w2"}] * 5)),
        "evaluation, prompted:mine (prompts.jsonl:2): 1 of 1 rows are longer than the 64 positions",
    ),
    "a template that refuses examples": (
        lambda f, r: (
            save_base(
                f / "base", template="{{ raise_exception('one turn') if messages | length > 2 else '' }}" + TURNS
            ),
            asked(r, shots=1),
            r.update(template="chat"),
        ),
        "prompts.jsonl:2: template 'chat' (the tokenizer's own) cannot render a conversation of user, assistant, user",
    ),
    "a reward base of another kind": (
        lambda f, r: (reward_base(f, r), (f / "rb/config.json").write_text('{"model_type": "t5", "vocab_size": 40}')),
        "base rb: 't5' is no causal language model",
    ),
    "a reward base that is recurrent": (
        lambda f, r: (
            reward_base(f, r),
            (f / "rb/config.json").write_text('{"model_type": "rwkv", "vocab_size": 40, "hidden_size": 8}'),
        ),
        "base rb: 'rwkv' models have no key-value cache",
    ),
    "a reward base whose tokenizer is larger": (
        lambda f, r: reward_base(f, r, words=[*WORDS, "more"]),
        "base rb: its tokenizer has 1 tokens without an embedding",
    ),
    "rankings beyond the reward base's table of positions": (
        lambda f, r: (
            reward_base(f, r, "gpt2", n_positions=8),
            rows(f / "rank.jsonl", [{"prompt": "w1 " * i, "responses": ["w1", "w2 w3"]} for i in range(1, 9)]),
        ),
        "rows are longer than the 8 positions of base rb",
    ),
    "an adapter of another base": (
        lambda f, r: (other_adapter(f / "other"), r.update(evaluation={"systems": ["sft", "path:other"]})),
        "adapter_model.safetensors is an adapter of another base: model.layers.0.self_attn.q_proj takes 32 numbers and",
    ),
    "a folder without a model": (
        lambda f, r: (empty(f / "other"), r.update(evaluation={"systems": ["sft", "path:other"]})),
        "path:other: ",
    ),
    "a folder's model that has too few positions": (
        lambda f, r: (
            save_base(f / "other", "gpt2", n_positions=8),
            r.update(evaluation={"systems": ["sft", "path:other"]}),
        ),
        "evaluation, path:other (prompts.jsonl:2): 1 of 1 rows are longer than the 8 positions of base other",
    ),
    "no prompt that PPO could use": (
        lambda f, r: (
            save_base(f / "base", "gpt2"),
            r["ppo"].update(max_new_tokens=62),
            r.update(stages=["sft", "reward", "ppo"]),
        ),
        "none of 11 training prompts has at most 2 tokens",
    ),
    "a margin without scores": (
        lambda f, r: r["reward"].update(margin=1.0),
        "reward.margin: needs rankings with scores, whose differences it is, and no training ranking has any",
    ),
    "a held-out reward model without a ranking": (
        lambda f, r: r["reward"].update(holdout=1e-9),
        "reward.holdout: none of the 11 training rankings is in this share",
    ),
    "a held-out reward model with every ranking": (
        lambda f, r: (
            r["reward"].update(holdout=0.5),
            rows(f / "rank.jsonl", [{"prompt": ALONE, "responses": ["w1", "w2"]}]),
        ),
        "reward.holdout: all 1 training rankings are in this share; lower it, or set 0",
    ),
    "rankings that are equal as tokens": (
        lambda f, r: rows(f / "rank.jsonl", [{"prompt": f"w{i}", "responses": ["w1", "w1 "]} for i in range(12)]),
        "data.rankings: no ranking has two distinct responses of different rank once they are tokens",
    ),
    "the best of a distillation whose prompts are all trained on": (
        lambda f, r: (
            rows(f / "none.jsonl", [{"prompt": "w1 w2 w3", "completion": "w1"}]),
            r["data"].update(held_out="none.jsonl"),
            r.update(
                distil={"teacher": "./base", "loss": "logits", "responses": "demonstrations", "keep": "best"},
            ),
        ),
        "distil.keep: goes by the loss of held-out demonstrations, and there are none",
    ),
    "chunks beyond the positions of a base that is trained further": (
        lambda f, r: (
            save_base(f / "base", "gpt2"),
            r["data"].update(documents="sft.jsonl"),
            r.update(continued={"context": 128}),
        ),
        "continued.context: chunks of 128 tokens are longer than the 64 positions of base base: lower it",
    ),
    "a metric without references": (
        lambda f, r: (no_references(f, r), r.update(evaluation={"metrics": ["rouge"]})),
        "evaluation.metrics: rouge needs references",
    ),
    "a reference that is none of the labels": (
        lambda f, r: r.update(evaluation={"metrics": ["labels"], "labels": ["yes", "no"]}),
        "is none of them; add it, or fix the data",
    ),
    "a metric's folder that is not there": (
        lambda f, r: r.update(evaluation={"metrics": ["folder:nowhere"]}),
        "evaluation.metrics: folder:nowhere: no such folder",
    ),
    "rankings of the report card that are not there": (
        lambda f, r: r.update(evaluation={"rankings": "no.jsonl"}),
        "there is no file no.jsonl",
    ),
    "a stop of the generation config that is a text": (
        lambda f, r: (f / "base/generation_config.json").write_text('{"eos_token_id": ["</s>"]}'),
        "generation_config.json: eos_token_id: ['</s>'] is no token id",
    ),
    "a stop of the generation config that is true": (
        lambda f, r: (f / "base/generation_config.json").write_text('{"eos_token_id": true}'),
        "generation_config.json: eos_token_id: True is no token id",
    ),
    "a generation config that is no JSON": (
        lambda f, r: (f / "base/generation_config.json").write_text("{bad"),
        "generation_config.json: damaged (not JSON",
    ),
    "a base of another kind": (
        lambda f, r: (f / "base/config.json").write_text('{"model_type": "t5", "vocab_size": 40}'),
        "'t5' is no causal language model",
    ),
}


def written(folder: Path, recipe: dict[str, Any]) -> str:
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / "r.yaml")


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_before_the_first_stage(
    fault: str, command: str, tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = FAULTS[fault]
    spoil(tmp_path, recipe)
    run_dir = tmp_path / "out"
    assert cli.main([command, written(tmp_path, recipe), "--run-dir", str(run_dir)]) == 2
    assert words in capsys.readouterr().err
    assert not (run_dir / "run.json").exists()


def test_a_sound_recipe_is_planned_and_a_rotary_base_is_warned_of(
    tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", written(tmp_path, recipe)]) == 0
    assert "warning" not in capsys.readouterr().out
    long_row(tmp_path)
    recipe["sft"]["max_tokens"] = 512
    assert cli.main(["plan", written(tmp_path, recipe)]) == 0
    assert "warning: data.demonstrations" in (told := capsys.readouterr().out) and "64 positions" in told


def test_plan_says_what_adapters_do_not_reach(
    tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps(config | {"model_type": "mixtral", "num_local_experts": 4}))
    assert cli.main(["plan", written(tmp_path, recipe)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "adapters do not reach gate_up_proj" in told and "down_proj" in told


def test_a_template_of_the_tokenizers_is_taken_by_its_name(
    tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    (base / "chat_template.jinja").unlink(missing_ok=True)
    text = "{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}"
    text += "{% if add_generation_prompt %}assistant : {% endif %}"
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "tool_use", "template": text}]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    recipe["template"] = "tool_use"
    assert cli.main(["plan", written(tmp_path, recipe)]) == 0, capsys.readouterr().err


def test_a_function_that_cannot_be_loaded_is_told_before_sft(
    tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Plan runs no code of the user's; run loads it first of all."""
    (tmp_path / "own.py").write_text("import nowhere\n\ndef f(prompts, completions):\n    return [0.0]\n")
    recipe["ppo"]["reward"] = "own.py:f"
    file = written(tmp_path, recipe)
    assert cli.main(["plan", file]) == 0
    assert cli.main(["run", file, "--run-dir", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err and not (tmp_path / "out/run.json").exists()


SCORER = {"source": "http://127.0.0.1:9/score", "remote": {"token_env": "TRIVET_NO_KEY"}}
JUDGE = {"name": "j", "url": "http://127.0.0.1:9/v1", "model": "m", "token_env": "TRIVET_NO_KEY"}


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"ppo": {"reward": [{"source": "model"}, SCORER]}}, "ppo.reward"),
        ({"evaluation": {"judges": [JUDGE]}}, "evaluation.judges: j"),
        (
            {"evaluation": {"systems": ["sft", "best_of_4:mine"], "best_of_by": {"mine": [SCORER]}}},
            "evaluation.systems: best_of_4:mine",
        ),
    ],
)
def test_a_key_that_is_not_set_is_told_before_sft_and_a_server_that_does_not_answer_as_well(
    tmp_path: Path, recipe: dict[str, Any], settings: dict[str, Any], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plan may be made where the keys are not; a server may be started later."""
    for group, changed in settings.items():
        recipe[group] = recipe.get(group, {}) | changed
    file = written(tmp_path, recipe)
    assert cli.main(["plan", file]) == 0
    pipeline = Pipeline.from_recipe(file, run_dir=tmp_path / "out")
    stages = pipeline.recipe.stages
    with pytest.raises(UserError, match=rf"^{where}: token_env: the environment variable TRIVET_NO_KEY is not set"):
        pipeline.run()
    assert not (tmp_path / "out/sft").exists()
    monkeypatch.setenv("TRIVET_NO_KEY", "x")
    check_keys(pipeline.recipe, stages)
    assert [text.partition(" at ")[0] for text in unanswered(pipeline.recipe, stages)] == [f"{where}: nothing answers"]
    with socket.create_server(("127.0.0.1", 0)) as there:
        address = f"127.0.0.1:{there.getsockname()[1]}"
        recipe = json.loads(json.dumps(recipe).replace("127.0.0.1:9", address))
        assert not list(unanswered(load_recipe(written(tmp_path, recipe)), stages))
    assert not list(unanswered(pipeline.recipe, ["sft", "reward"]))


def test_a_given_adapter_of_another_base_is_told_at_plan(
    tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    other_adapter(tmp_path / "given")
    recipe["stages"] = ["reward"]
    recipe = {k: v for k, v in recipe.items() if k not in ("ppo", "sft")}
    recipe["data"] = {"rankings": "rank.jsonl", "held_out": 0.3}
    assert cli.main(["plan", written(tmp_path, recipe), "--input", f"sft={tmp_path / 'given'}"]) == 2
    assert "--input sft: " in (said := capsys.readouterr().err) and "is an adapter of another base" in said


@pytest.mark.parametrize("watched", [False, True])
def test_the_best_policy_needs_a_held_out_reward_model_in_the_result_that_is_given(
    tmp_path: Path, recipe: dict[str, Any], watched: bool
) -> None:
    recipe["stages"], recipe["base"] = ["ppo"], str(tmp_path / "base")
    recipe["data"] = {key: str(tmp_path / name) for key, name in (("prompts", "prompts.jsonl"),)} | {"held_out": 0.3}
    recipe["ppo"] |= {"keep": "best"}
    get_peft_model(tiny_lm(), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "given"))
    if watched:
        (tmp_path / "given/watcher").mkdir()
    inputs = {"sft": str(tmp_path / "given"), "reward": str(tmp_path / "given")}
    pipeline = Pipeline.from_recipe(recipe, inputs=inputs, run_dir=tmp_path / "run")
    if watched:
        rehearse(pipeline, ["ppo"], lambda text: None)
    else:
        with pytest.raises(UserError, match=r"ppo\.keep: 'best' is chosen by a held-out reward model, and .* has none"):
            rehearse(pipeline, ["ppo"], lambda text: None)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"added_vocabulary": 4}, "is an encoder, whose vocabulary is not extended here"),
        ({"context": 4096}, "lower it"),
    ],
)
def test_an_encoder_that_cannot_be_trained_further_so_is_told(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    save_encoder(tmp_path / "base", "bert")
    rows(tmp_path / "documents.jsonl", [{"text": f"w{i} w2"} for i in range(12)])
    data = {"documents": str(tmp_path / "documents.jsonl"), "held_out": 0.3}
    recipe = {"name": "r", "base": str(tmp_path / "base"), "data": data, "continued": settings}
    pipeline = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=told):
        rehearse(pipeline, ["continued"], lambda text: None)


@pytest.mark.parametrize(
    ("base", "init", "told"), [("./base", "reward", True), ("same", "sft", False), ("same", "reward", False)]
)
def test_a_value_role_that_cannot_start_as_the_reward_model_is_told(
    recipe: dict[str, Any], tmp_path: Path, base: str, init: str, told: bool
) -> None:
    made = recipe | {
        "stages": ["sft", "reward", "ppo"],
        "reward": {"base": base},
        "ppo": {"value": {"init": init, "head": "copy" if init == "reward" else "zero"}},
    }
    (tmp_path / "value.yaml").write_text(yaml.safe_dump(made))
    found = value_start(load_recipe(tmp_path / "value.yaml"))
    assert (found is not None) is told
    assert not told or str(found).startswith("ppo.value: the reward model stands on another base")


def test_settings_of_stages_that_are_left_out_are_told_by_plan_and_run(
    tmp_path: Path, recipe: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe |= {"stages": ["sft"], "ppo": {"updates": 3, "value": {"init": "sft"}}, "reward": {"epochs": 2.0}}
    recipe["data"] = {"demonstrations": "sft.jsonl", "held_out": 0.3}
    recipe["sft"] |= {"epochs": 0.1, "batch": 2}
    told = "`stages` does not name the stage that takes them: reward.epochs, ppo.updates, ppo.value.init"
    file = written(tmp_path, recipe)
    assert cli.main(["plan", file]) == 0
    assert told in " ".join(capsys.readouterr().out.split())
    assert cli.main(["run", file, "--run-dir", str(tmp_path / "out")]) == 0
    assert told in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "settings",
    [
        {},  # nothing is left out by name
        {"stages": ["sft", "reward", "ppo", "evaluate"]},
        {"stages": ["sft"], "ppo": {"clip": 0.2}},  # as by default
        {"stages": ["ppo"], "reward": {"max_tokens": 32}},  # of a reward model that is given
        {"stages": ["evaluate"], "ppo": {"max_new_tokens": 8}},
    ],
)
def test_settings_that_act_do_not_wait(tmp_path: Path, recipe: dict[str, Any], settings: dict[str, Any]) -> None:
    for group in ("ppo", "sft", "reward") if settings.get("stages") else ():
        recipe.pop(group)
    if settings.get("stages") == ["sft"]:
        recipe["data"] = {"demonstrations": "sft.jsonl", "held_out": 0.3}
    made = load_recipe(written(tmp_path, recipe | settings))
    assert waiting(made) == ""
    assert made.model_fields_set == load_recipe(written(tmp_path, recipe | settings)).model_fields_set


def test_adapters_are_not_trained_through_a_float16_base(tmp_path: Path, recipe: dict[str, Any]) -> None:
    """Of a loss over a million tokens float16 passes on nothing, float32 all of it; the loss is not scaled."""
    passed_on = torch.tensor(0.02 / 1e6)
    assert passed_on.half() == 0 and passed_on.bfloat16() != 0
    recipe["runtime"]["dtype"] = "float16"
    for stage in ("sft", "reward", "ppo"):
        with pytest.raises(UserError, match=rf"runtime\.dtype: float16 .*{stage} would.*bfloat16"):
            check_precision(load_recipe(written(tmp_path, recipe)), [stage])
    made = load_recipe(written(tmp_path, recipe))
    check_precision(made, ["rankings", "evaluate"])
    check_precision(load_recipe(written(tmp_path, recipe | {"adapter": {"method": "full"}})), made.stages)
    check_precision(load_recipe(written(tmp_path, recipe | {"runtime": {"dtype": "bfloat16"}})), made.stages)
    assert cli.main(["plan", written(tmp_path, recipe)]) == 2


def adapter_at(folder: Path, **changes: Any) -> Path:
    """A plain adapter's configuration, as PEFT writes it."""
    settings: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": LINEAR, "task_type": "CAUSAL_LM"} | changes
    LoraConfig(**settings).save_pretrained(str(folder))
    return folder


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("given", "settings", "roles"),
    [
        ({"sft": {"r": 4}}, {}, ["reward of sft: rank: 16 is asked for", "policy of sft"]),
        ({"sft": {}}, {}, []),
        ({"sft": {"lora_alpha": 8}}, {"reward": {"init": "base"}}, ["policy of sft: alpha: 32.0 is asked for"]),
        ({"sft": {}, "reward": {"use_rslora": True}}, {}, ["value of reward: rslora: False is asked for"]),
        ({"sft": {}, "reward": {"r": 4}}, {"ppo": {"value": {"init": "sft"}}}, []),
        ({"sft": {"rank_pattern": {"q_proj": 4}}}, {}, ["reward of sft: rank: 16 is asked for", "policy of sft"]),
        ({"sft": {"target_modules": LINEAR[:2]}}, {}, ["reward of sft: modules", "policy of sft"]),
        ({"sft": {"layers_to_transform": [0]}}, {}, ["reward of sft: modules", "policy of sft"]),
    ],
)
def test_a_copy_of_a_given_adapter_that_has_other_settings_is_told_at_plan(
    tmp_path: Path, recipe: dict[str, Any], given: dict[str, Any], settings: dict[str, Any], roles: list[str]
) -> None:
    inputs = {name: str(adapter_at(tmp_path / name, **changes)) for name, changes in given.items()}
    recipe |= {"stages": [s for s in ("reward", "ppo") if s not in given]}
    for group, changed in settings.items():
        recipe[group] = recipe.get(group, {}) | changed
    pipeline = Pipeline.from_recipe(written(tmp_path, recipe), inputs=inputs, run_dir=tmp_path / "run")
    told: list[str] = []
    rehearse(pipeline, pipeline.recipe.stages, told.append)
    found = [t.removeprefix("adapter: ") for t in told if "keeps its settings" in t]
    assert len(found) == len(roles)
    for sentence, role in zip(found, roles, strict=True):
        name, _, rest = role.partition(" of ")
        of, _, differ = rest.partition(": ")
        assert sentence.startswith(f"{name} starts as a copy of '{of}'") and differ in sentence


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompts_that_ppo_leaves_out_anyway_are_neither_warned_of_nor_refused(
    family: str, recipe: dict[str, Any], tmp_path: Path
) -> None:
    save_base(tmp_path / "base", family)
    long = [{"prompt": f"w{i} " * 90} for i in range(4)]
    rows(tmp_path / "prompts.jsonl", [*long, *({"prompt": f"w{i}"} for i in range(4, 12))])
    rows(tmp_path / "held.jsonl", [{"prompt": "w20"}])
    recipe["data"]["held_out"] = "held.jsonl"
    pipeline = Pipeline.from_recipe(written(tmp_path, recipe), run_dir=tmp_path / "run")
    left_out = next(p for p in pipeline.plan() if p.name == "ppo").details["counts"]["dropped"]
    assert left_out == 4
    told: list[str] = []
    rehearse(pipeline, ["sft", "reward", "ppo"], told.append)
    assert not [text for text in told if "data.prompts" in text]


def test_a_part_of_which_only_some_rows_are_rendered_is_named(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pipelines.run.rehearsed_rows as rehearsed_rows

    pipeline = Pipeline.from_recipe(
        recipe | {"data": {k: v if isinstance(v, float) else str(tmp_path / v) for k, v in recipe["data"].items()}}
    )
    assert partly_rehearsed(pipeline.corpus, pipeline.stages) == []
    monkeypatch.setattr(rehearsed_rows, "ROWS", 5)
    lines = partly_rehearsed(pipeline.corpus, ["ppo"])
    assert len(lines) == 1 and lines[0].startswith("data.prompts: 4 of 12 rows are rendered ahead")
