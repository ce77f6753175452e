"""Keys follow what results depend on beyond the recipe's text: files that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.run.pipeline import Pipeline
from pipelines.stages.keys import base_key, rendering_key


def model(folder: Path, weights: str = "w") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


def keys(folder: Path, **recipe: object) -> dict[str, str]:
    """The key of each stage of a recipe beside which the files lie."""
    rows = [json.dumps({"prompt": f"q{n}", "chosen": "yes", "rejected": "no"}) for n in range(8)]
    (folder / "ranked.jsonl").write_text("\n".join(rows))
    demo = "demo-task?rows=20"
    data = {"demonstrations": demo, "prompts": demo, "rankings": str(folder / "ranked.jsonl")}
    whole: dict[str, object] = {"name": "k", "data": data}
    pipeline = Pipeline.from_recipe(whole | {"runtime": {"device": "cpu"}} | recipe, run_dir=folder / "run")
    return {state.name: state.key for state in pipeline.states()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_the_contents_of_a_template_file_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}")
    base = str(model(tmp_path / "base"))
    before = keys(tmp_path, base=base, template="mine.jinja")
    assert before == keys(tmp_path, base=base, template="mine.jinja")
    file.write_text("{{ messages }}!")
    assert changed(before, keys(tmp_path, base=base, template="mine.jinja")) == set(before)
    assert rendering_key("dialogue", ()) == {"template": "dialogue", "stop": []}


def test_the_weights_of_the_reward_models_own_base_count(tmp_path: Path) -> None:
    base, other = str(model(tmp_path / "base")), model(tmp_path / "other")
    before = keys(tmp_path, base=base, reward={"base": str(other)})
    model(tmp_path / "other", "w2")
    assert changed(before, keys(tmp_path, base=base, reward={"base": str(other)})) == {"reward", "ppo", "evaluate"}
    pipeline = Pipeline.from_recipe(
        {
            "name": "k",
            "base": base,
            "stages": ["sft", "ppo"],
            "reward": {"base": str(other)},
            "data": {"demonstrations": "demo-task?rows=20"},
        },
        run_dir=tmp_path / "run",
    )
    assert "reward_base" in pipeline.describe("ppo", {"reward": "x"})  # a reward folder that the user gave
    assert "reward_base" not in pipeline.describe("sft", {})


def test_what_models_yaml_says_of_a_base_counts_and_its_notes_do_not(tmp_path: Path) -> None:
    folder = model(tmp_path / "base")
    found = []
    for more in (
        "note: x",
        "note: y",
        "dtype: float32",
        "chat_template: a, override_source: z",
        "chat_template: b, override_source: z",
        "lora_targets: [q_proj]",
    ):
        (tmp_path / "models.yaml").write_text(f"mine: {{source: ./base, {more}}}\n")
        found.append(base_key("mine", tmp_path))
    assert found[0] == found[1] == base_key(str(folder), tmp_path)
    assert len(set(found)) == 5
