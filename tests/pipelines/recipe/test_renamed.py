"""Names of before: a user's recipe is refused with the new one, a run folder's own is read, keys do not move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from data.common.user_functions import fingerprint_of
from data.demo import task
from pipelines.cli.main import main
from pipelines.loading.load import load_recipe
from pipelines.recipe.renamed import (
    SETTINGS,
    VALUES,
    in_new_words,
    in_old_words,
    metrics_in_new_words,
    old_names,
)
from pipelines.run.pipeline import Pipeline
from pipelines.stages.keys import hash_of
from pipelines.stages.table import STAGES
from reward.card.gate import failures
from reward.files import _moments
from reward.settings import GateConfig

OLD: dict[str, Any] = {
    "base": "gpt2",
    "data": {"demonstrations": "d.jsonl", "rankings": "r.jsonl", "prompts": "p.jsonl"},
    "reward": {"ensemble": 3, "combine": "mean_minus_spread", "caution": 2.0, "holdout": 0.2, "centre_samples": 64},
    "ppo": {
        "watch_every": 3,
        "watch_prompts": 16,
        "share_lower_layers": False,
        "reward": ["model", {"source": "length", "at_least": 2, "at_most": 40}],
    },
    "evaluation": {
        "gold": "rewards.py:gold",
        "systems": ["base", "sft", "best_of_4:short", "ppo"],
        "best_of_by": {"short": [{"source": "length", "at_most": 9}]},
    },
}
# made by the code that had those names
HASHES = {
    "reward": "19e3a7bfe59f420781d023a366128054aad92b2c0e1a94fcd1b722b6fbe84e36",
    "ppo": "6218489c6e0fb91a9bc50c0412cf3ada5eb81a650e89105dfc5245c10d6247c9",
    "evaluate": "0d3d0cd46825fbdffc9167550a0382e656a25a7f2e7f740b711df0d209e34004",
}
SCORES = "5b3a1278454234ea4c38691fa316d0977253140c998eabc66e3ca15bc12a9e61"
TEXTS = "8544e401a598daf8e0caee34f7d5869019a086b2852bed091e86b939945ae012"


def run_folder(folder: Path, recipe: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"stages": {}}))
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def test_every_old_name_is_refused_with_its_place_and_the_new_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "base: gpt2\n"
        "data: {demonstrations: 'demo-world?rows=5', prompts: p.jsonl, rankings: r.jsonl}\n"
        "reward:\n"
        "  caution: 2.0\n"
        "  combine: worst\n"
        "  gate: {emptied: 0.6}\n"
        "ppo:\n"
        "  reward: [model, {source: length, at_most: 4}]\n"
        "evaluation: {gold: 'data.demo_world:gold'}\n"
    )
    with pytest.raises(UserError) as caught:
        load_recipe(file, ["ppo.watch_every=3"])
    text = str(caught.value)
    for line in (
        f"{file}:2: data.demonstrations: 'demo-world?rows=5' is called 'demo-task?rows=5'",
        f"{file}:4: reward.caution: is called reward.uncertainty_penalty",
        f"{file}:5: reward.combine: 'worst' is called 'min'",
        f"{file}:6: reward.gate.emptied: is called reward.gate.empty_response",
        f"{file}:8: ppo.reward.1.at_most: is called ppo.reward.1.max_length",
        f"{file}:9: evaluation.gold: 'data.demo_world:gold' is called 'data.demo.task:gold'",
        "--set ppo.watch_every=3: ppo.watch_every: is called ppo.holdout_every",
    ):
        assert line in text
    assert "no such setting" not in text


def test_every_new_name_is_a_setting():
    """Each row of the table names what there is: written with the old name it is refused, translated it is known."""
    for dotted in SETTINGS:
        *groups, last = ["0" if step == "*" and dotted.startswith("ppo") else step for step in dotted.split(".")]
        data: Any = {last: 1}
        for step in reversed(groups):
            data = [data] if step == "0" else {("x" if step == "*" else step): data}
            if step == "*" and dotted.startswith("evaluation") and not isinstance(data["x"], list):
                data = [data["x"]]
        assert len(old_names(data)) == 1, dotted
    assert set(VALUES["reward.combine"].values()) == {"min", "mean_minus_std"}


def test_a_run_folder_of_before_opens(tmp_path):
    recipe = load_recipe(run_folder(tmp_path / "run", OLD), may_idle=True)
    assert (recipe.reward.combine, recipe.reward.uncertainty_penalty) == ("mean_minus_std", 2.0)
    assert (recipe.ppo.holdout_every, recipe.ppo.holdout_prompts, recipe.ppo.share_prefix_layers) == (3, 16, False)
    assert (recipe.ppo.reward[1].min_length, recipe.ppo.reward[1].max_length) == (2, 40)
    assert recipe.evaluation.best_of_by["short"][0].max_length == 9
    assert (
        Pipeline.from_recipe(tmp_path / "run/recipe.yaml", run_dir=tmp_path / "run", may_idle=True).recipe.ppo
        == recipe.ppo
    )
    demo = OLD | {
        "data": OLD["data"] | {"prompts": "demo-world?rows=9"},
        "evaluation": {"gold": "data.demo_world:gold"},
    }
    found = load_recipe(run_folder(tmp_path / "demo", demo), may_idle=True)
    assert (found.data.prompts, found.evaluation.gold) == (("demo-task?rows=9",), "data.demo.task:gold")


def test_the_same_file_outside_a_run_is_refused(tmp_path):
    file = run_folder(tmp_path / "run", OLD)
    (tmp_path / "run/run.json").unlink()
    with pytest.raises(UserError, match=r"ppo\.watch_every: is called ppo\.holdout_every"):
        load_recipe(file)


@pytest.mark.parametrize("stage", HASHES)
def test_no_key_moves_by_a_rename(tmp_path, stage):
    recipe = load_recipe(run_folder(tmp_path / "run", OLD), may_idle=True)
    described = {"stage": stage, "settings": STAGES[stage].settings(recipe)}
    old = in_old_words(described)
    assert hash_of(old["settings"]) == HASHES[stage]
    assert in_old_words(old) == old and in_new_words(old) == in_new_words(described)
    assert hash_of(in_new_words(old)["settings"]) != HASHES[stage]


def test_the_demo_gold_counts_by_its_scores_and_not_by_where_it_lies():
    """``renamed.FINGERPRINTS`` stands for these scores: change it where they change."""
    given = task.demonstrations(60, 3)
    answers = [d.answer for d in given]
    assert hash_of(answers) == TEXTS
    assert hash_of([round(x, 9) for x in task.gold([d.prompt.text for d in given], answers)]) == SCORES
    now = {
        "stage": "rankings",
        "functions": {"data.demo.task:gold": fingerprint_of("data.demo.task:gold"), "a.py:f": "1"},
    }
    before = in_old_words(now)["functions"]
    assert before["a.py:f"] == "1" and before["data.demo_world:gold"].startswith("7c33e2fae9c3d133")


def test_metrics_and_cards_of_before_are_read():
    rows = metrics_in_new_words([{"step": 1, "watch/held_out": 0.5, "reward/length/shaped": 1.0, "loss": 2.0}])
    assert rows == [{"step": 1, "holdout/held_out": 0.5, "reward/length/transformed": 1.0, "loss": 2.0}]
    assert _moments({"centre": 0.5, "spread": 2.0, "mean_pooling": 1.0}) == {"score_mean": 0.5, "score_std": 2.0}
    card = {
        "accuracy": {"ci95": None},
        "baselines": {},
        "samples": None,
        "probes": {"emptied": {"share": 0.2, "ci95": [0.1, 0.3]}},
    }
    assert [line.partition(":")[0] for line in failures(card, GateConfig())] == ["empty_response"]


def test_the_old_option_of_chat_is_refused_with_the_new_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["chat", "run", "--beside", "sft"]) == 2
    assert "--beside is called --compare-with: trivet chat run --compare-with sft" in capsys.readouterr().err
