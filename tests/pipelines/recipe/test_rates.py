"""Learning rates that a recipe leaves open: by the base's width and the method, explicit ones winning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.hub.catalogue import BASE_MODELS, width_of
from pipelines.cli.main import main
from pipelines.loading.load import load_recipe
from pipelines.recipe.rates import chosen_rates, why
from pipelines.recipe.schema import resolved_yaml
from pipelines.stages.table import STAGES
from tests.conftest import tiny_lm, word_tokenizer

DATA = dict.fromkeys(("demonstrations", "rankings", "prompts"), "demo-task?rows=60")


def rates_of(base: Any, **more: Any) -> dict[str, float]:
    recipe = load_recipe({"base": base, "data": DATA, **more})
    return {name: getattr(recipe, name).learning_rate for name in ("sft", "reward", "ppo")}


def scratch(width: int) -> dict[str, Any]:
    return {"pretrain": {"model": {"width": width, "heads": 4}}}


@pytest.mark.parametrize(
    ("base", "method", "sft", "reward", "ppo"),
    [  # worked by hand: 5e-5 x 10 with LoRA x (2000 / width) ^ 0.781 (Qwen 0.0775), a third, a tenth, 3e-3 at most
        ("mistral-7b-v0.3", "lora", 2.9e-4, 9.5e-5, 2.9e-5),
        ("mistral-7b-v0.3", "full", 2.9e-5, 9.5e-6, 2.9e-6),
        ("smollm2-135m-instruct", "lora", 1.3e-3, 4.4e-4, 1.3e-4),
        ("smollm2-135m", "full", 1.3e-4, 4.4e-5, 1.3e-5),
        ("qwen2.5-0.5b", "lora", 5.3e-4, 1.8e-4, 5.3e-5),
        (scratch(96), "lora", 3e-3, 1.8e-3, 5.4e-4),
        (scratch(96), "full", 5.4e-4, 1.8e-4, 5.4e-5),
    ],
)
def test_rates_follow_width_and_method(base, method, sft, reward, ppo):
    assert rates_of(base, adapter={"method": method}) == {"sft": sft, "reward": reward, "ppo": ppo}


def test_a_folder_says_its_width(tmp_path):
    lm = tiny_lm()
    lm.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    width = lm.config.hidden_size
    law = 5e-4 * (2000 / width) ** 0.781
    assert rates_of(str(tmp_path))["ppo"] == float(f"{law / 10:.1e}")


def test_a_base_that_says_nothing_keeps_the_defaults():
    """Whether it is on this machine or not: a download must not change the key of what is finished."""
    assert rates_of("someone/some-model") == {"sft": 2e-4, "reward": 1e-4, "ppo": 3e-5}


@pytest.mark.parametrize("written", ["auto", None])
def test_auto_is_the_same_as_nothing(written):
    settings = {stage: {"learning_rate": written} for stage in ("sft", "reward", "ppo")}
    assert rates_of("smollm2-135m", **settings) == rates_of("smollm2-135m")


def test_explicit_rates_win():
    settings = {"sft": {"learning_rate": 1e-5}, "ppo": {"learning_rate": 1e-9}}
    assert rates_of("smollm2-135m", **settings) == {"sft": 1e-5, "reward": 4.4e-4, "ppo": 1e-9}


def test_a_reward_model_on_its_own_base_has_that_bases_rate():
    found = rates_of("mistral-7b-v0.3", reward={"base": "smollm2-135m"})
    assert found["reward"] == 4.4e-4 and found["sft"] == 2.9e-4


def test_what_was_chosen_travels_in_key_and_resolved_recipe(tmp_path):
    """The resolved recipe says the number, and gives the same recipe wherever the base has gone."""
    chosen = load_recipe({"base": "smollm2-135m", "data": DATA})
    assert STAGES["sft"].settings(chosen)["learning_rate"] == 1.3e-3
    explicit = load_recipe({"base": "smollm2-135m", "data": DATA, "sft": {"learning_rate": 1.3e-3}})
    assert STAGES["sft"].settings(chosen) == STAGES["sft"].settings(explicit)
    (tmp_path / "run.json").write_text("{}")
    lone = load_recipe({"base": "smollm2-135m", "data": {"demonstrations": DATA["demonstrations"]}})
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(lone).replace("base: smollm2-135m", "base: someone/moved"))
    again = load_recipe(tmp_path / "recipe.yaml")  # refuses nothing, though no stage reward takes its rate
    assert again.sft.learning_rate == 1.3e-3 and again.reward.learning_rate == 4.4e-4


def test_every_catalogued_base_has_a_width():
    assert not [name for name in BASE_MODELS if width_of(name) is None]


def test_the_plan_says_what_was_chosen_and_why(tmp_path, capsys):
    data = dict.fromkeys(("documents", "demonstrations", "prompts"), "demo-task?rows=60")
    sampled = {"rankings": {"annotator": "data.demo.task:gold"}, "ppo": {"learning_rate": 1e-3}}
    recipe = {"base": scratch(96), "data": data, **sampled}
    (tmp_path / "mine.json").write_text(json.dumps(recipe))
    assert main(["plan", str(tmp_path / "mine.json"), "--run-dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if "learning_rate" in line]
    law = "0.0005 x (2000 / 96) ^ 0.781"
    assert lines == [
        f"sft: learning_rate 3.0e-03: chosen for LoRA on a base 96 wide ({law}, at most 0.003; Schulman et al. 2025)",
        f"reward: learning_rate 1.8e-03: chosen for LoRA on a base 96 wide ({law} / 3; Schulman et al. 2025)",
    ]


@pytest.mark.parametrize("written", [{}, {"learning_rate": "auto"}, {"learning_rate": None}])
def test_distillation_has_the_rate_of_sft_which_it_is_on_other_responses(written: dict[str, Any]) -> None:
    taught = {"data": DATA, "distil": {"teacher": "gpt2"} | written}
    assert load_recipe({"base": "smollm2-135m"} | taught).distil.learning_rate == 1.3e-3  # type: ignore[union-attr]
    assert load_recipe({"base": "someone/some-model"} | taught).distil.learning_rate == 2e-4  # type: ignore[union-attr]
    own = {"base": "smollm2-135m", "data": DATA, "distil": {"teacher": "gpt2", "learning_rate": 1e-5}}
    assert load_recipe(own).distil.learning_rate == 1e-5  # type: ignore[union-attr]
    assert load_recipe({"base": "smollm2-135m", "data": DATA}).distil is None


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_take_one_rate_whatever_the_width(method: str, tmp_path: Path) -> None:
    given = {"base": "nobody/knows", "adapter": {"method": method}}
    assert chosen_rates(given, tmp_path) == {"sft": 3e-2, "distil": 3e-2, "reward": 1e-2, "ppo": 3e-3}
    assert chosen_rates(given | {"base": {"pretrain": {"model": {"width": 64}}}}, tmp_path)["sft"] == 3e-2
    assert "take 0.03 on every base" in why("sft", "x", method, tmp_path)
    assert "take 0.03 / 10 on every base" in why("ppo", "x", method, tmp_path)
