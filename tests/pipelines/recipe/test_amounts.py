"""Passes, batches and lengths that a recipe leaves to its data: explicit ones win, and what was chosen is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from pipelines.cli.main import main
from pipelines.loading.load import load_recipe
from pipelines.recipe import amounts
from pipelines.recipe.schema import resolved_yaml
from pipelines.run.pipeline import Pipeline
from pipelines.run.rehearsal import rehearse
from tests.conftest import tiny_lm, word_tokenizer


@pytest.mark.parametrize(
    ("rows", "batch", "passes"),
    [  # by hand: 250 steps, at most 4 passes, batches of 16 where those make it, else 8
        (20, 8, 4),  # 3 steps a pass
        (500, 8, 4),  # 16: 32 a pass, 128 in all; 8: 63 a pass, 252 in all
        (1000, 16, 4),  # 63 a pass, 252 in all
        (1344, 16, 3),  # 84 a pass, 252
        (4000, 16, 1),  # 250
        (3984, 16, 2),  # 249
        (10**6, 16, 1),
    ],
)
def test_passes_and_batch_by_the_number_of_rows(rows: int, batch: int, passes: int) -> None:
    assert amounts.batch_for(rows) == batch
    assert amounts.passes_for(rows, batch) == passes


def test_lengths_hold_95_percent_of_the_responses() -> None:
    lengths = list(range(1, 101))  # 95 of them are 95 tokens or shorter
    assert amounts.quantile(lengths) == 95
    assert amounts.longest_response(lengths) == 96  # the next multiple of 16
    assert amounts.longest_response(lengths, room=90) == 90
    assert amounts.longest_response([3, 4]) == 16
    assert amounts.room_for_response(512, [40] * 20) == 472
    assert amounts.room_for_response(512, [1300] * 20) == 256  # prompts that are too long leave half of the positions
    assert amounts.room_for_response(512, []) == 512
    assert amounts.longest_response([4000] * 5) == 512
    assert amounts.tokens_of("ü" * 10) == 6  # 20 bytes, 5 tokens of 4, and the stop token


def folder(tmp_path: Path) -> str:
    lm = tiny_lm()
    lm.save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def rows(tmp_path: Path, name: str, made: list[dict[str, Any]]) -> str:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(tmp_path / name)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """60 demonstrations of 21 tokens with the stop token, and 30 rankings."""
    shown = [{"prompt": f"w{i} w1", "completion": " ".join(["w2"] * 20)} for i in range(60)]
    ranked = [{"prompt": f"w{i} w2", "chosen": "w1 w2", "rejected": "w3"} for i in range(30)]
    data = {
        "demonstrations": rows(tmp_path, "d.jsonl", shown),
        "rankings": rows(tmp_path, "r.jsonl", ranked),
        "held_out": 0.0,
    }
    return {"base": folder(tmp_path), "template": "text", "data": data}


def chosen(recipe: dict[str, Any], **more: Any) -> tuple[Any, ...]:
    found = Pipeline.from_recipe(recipe | more).recipe
    return (found.sft.epochs, found.sft.batch, found.reward.epochs, found.reward.batch, found.ppo.max_new_tokens)


def test_what_is_left_open_follows_from_the_data(recipe: dict[str, Any]) -> None:
    assert chosen(recipe) == (4, 8, 4, 8, 32)  # 21 tokens: the next multiple of 16
    assert chosen(recipe, sft={"epochs": "auto", "batch": None}) == (4, 8, 4, 8, 32)


def test_explicit_values_win(recipe: dict[str, Any]) -> None:
    own = {"sft": {"epochs": 1, "batch": 64}, "reward": {"epochs": 2.5}, "ppo": {"max_new_tokens": 7}}
    assert chosen(recipe, **own) == (1, 64, 2.5, 8, 7)


def test_explicit_epochs_leave_the_batch_to_them(recipe: dict[str, Any], tmp_path: Path) -> None:
    """500 rows: 1 pass of any batch makes less than 250 steps; 8 passes of 16 make 256."""
    many = [{"prompt": f"w{i % 50} w{i // 50}", "completion": "w2"} for i in range(500)]
    recipe["data"]["demonstrations"] = rows(tmp_path, "many.jsonl", many)
    assert chosen(recipe, sft={"epochs": 1})[:2] == (1, 8)
    assert chosen(recipe, sft={"epochs": 8})[:2] == (8, 16)


def test_what_is_chosen_is_no_setting_that_has_no_effect(recipe: dict[str, Any], tmp_path: Path) -> None:
    """With SFT given, its epochs are named, which the recipe has, and not the batch, which follows from the data."""
    LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM").save_pretrained(str(tmp_path / "sft"))
    recipe |= {"sft": {"epochs": 3}, "stages": ["sft", "reward"]}
    pipeline = Pipeline.from_recipe(recipe, inputs={"sft": str(tmp_path / "sft")}, run_dir=tmp_path / "run")
    told: list[str] = []
    rehearse(pipeline, pipeline.recipe.stages, told.append)
    assert [t.rpartition(": ")[2] for t in told if t.startswith("settings without effect")] == ["sft.epochs"]


@pytest.mark.parametrize("written", [{}, {"epochs": "auto", "batch": None}])
def test_a_distillation_leaves_passes_and_batch_to_its_responses(
    recipe: dict[str, Any], written: dict[str, Any]
) -> None:
    """60 prompts, or demonstrations, are 8 steps of 8: four passes."""
    recipe |= {"stages": ["distil"]}
    recipe["data"] = {
        "demonstrations": recipe["data"]["demonstrations"],
        "prompts": recipe["data"]["demonstrations"],
        "held_out": 0.0,
    }
    for more in ({}, {"loss": "logits", "responses": "demonstrations"}):
        found = Pipeline.from_recipe(recipe | {"distil": {"teacher": recipe["base"]} | more | written})
        assert (found.recipe.distil.epochs, found.recipe.distil.batch) == (4, 8)  # type: ignore[union-attr]
        chosen_for = "epochs 4 and batch 8: chosen for 60 responses: 32 steps"
        assert chosen_for in found.details.chosen("distil") and "learning_rate" in found.details.chosen("distil")
    own = {"teacher": recipe["base"], "epochs": 2, "batch": 4}
    made = Pipeline.from_recipe(recipe | {"distil": own}).recipe.distil
    assert made is not None and (made.epochs, made.batch) == (2, 4)


def test_without_demonstrations_the_best_ranked_show_the_length(recipe: dict[str, Any], tmp_path: Path) -> None:
    ranked = [{"prompt": f"w{i} w2", "chosen": " ".join(["w1"] * 40), "rejected": "w3"} for i in range(30)]
    recipe["data"] = {"rankings": rows(tmp_path, "long.jsonl", ranked), "held_out": 0.0}
    recipe["stages"] = ["reward", "ppo"]
    recipe["reward"] = {"init": "base"}
    assert chosen(recipe)[4] == 48  # 41 tokens with the stop token


def test_a_hub_id_is_estimated_by_bytes_wherever_it_is(recipe: dict[str, Any], tmp_path: Path) -> None:
    """80 letters are 20 tokens of four bytes and the stop token."""
    shown = [{"prompt": f"w{i} w1", "completion": "a" * 80} for i in range(60)]
    recipe["data"]["demonstrations"] = rows(tmp_path, "letters.jsonl", shown)
    recipe["base"] = "someone/some-model"
    assert chosen(recipe)[4] == 32


def test_a_base_from_scratch_keeps_its_lengths(recipe: dict[str, Any]) -> None:
    recipe["base"] = {"pretrain": {"tokenizer": "words"}}
    assert chosen(recipe)[4] == 64


def test_what_was_chosen_travels_in_the_resolved_recipe(recipe: dict[str, Any], tmp_path: Path) -> None:
    """The resolved recipe asks its data nothing, and gives the same keys."""
    first = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "recipe.yaml").write_text(resolved_yaml(first.recipe))
    again = Pipeline(load_recipe(tmp_path / "run" / "recipe.yaml"), tmp_path / "run")
    assert again.settled.why == {} and "corpus" not in again.__dict__
    assert again.describe("sft", {}) == first.describe("sft", {})
    assert first.describe("sft", {})["settings"]["epochs"] == 4


def test_plan_and_settings_say_what_was_chosen(recipe: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(recipe | {"stages": ["sft", "reward", "ppo"]}))
    assert main(["plan", str(tmp_path / "mine.json"), "--run-dir", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    aim = "250 are aimed at, in 1 to 4 passes"
    assert f"sft: epochs 4 and batch 8: chosen for 60 demonstrations: 32 steps; {aim}" in lines
    assert f"reward: epochs 4 and batch 8: chosen for 30 rankings: 16 steps; {aim}" in lines
    assert "ppo: max_new_tokens 32: chosen to hold 95 % of the demonstrations' responses" in lines
    assert main(["plan", str(tmp_path / "mine.json"), "--settings"]) == 0
    assert "  epochs: 4.0\n" in capsys.readouterr().out
