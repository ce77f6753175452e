"""A page describes finished results by the recipe that they were made with, whatever a later call asked for."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipelines.cli.main as cli
from models.backbone.artifacts import partial_folder
from pipelines.loading.load import load_recipe
from pipelines.report.again import overrides
from pipelines.report.compare import page as comparison
from pipelines.report.page import gate_of, view
from pipelines.report.run_files import RunFiles, read_run
from pipelines.workspace.kept_recipes import FOLDER, kept_file
from tests.support.recipes import RECIPE

CHANGES = ["reward.gate.enabled=false", "ppo.standardise_scores=true", "ppo.learning_rate=2e-6", "seed=7"]


@pytest.fixture(scope="module")
def called(least_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and a call of other settings that stopped where nothing had to be made again."""
    folder = tmp_path_factory.mktemp("called")
    run = shutil.copytree(least_run, folder / "run")
    (folder / "least.yaml").write_text(json.dumps(RECIPE), encoding="utf-8")
    call = ["run", str(folder / "least.yaml"), "--run-dir", str(run), "--until", "pretrain", "--set", *CHANGES[:3]]
    assert cli.main(call) == 0
    recipe = run / "recipe.yaml"  # another seed would make pretraining again
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("seed: 0\n", "seed: 7\n", 1), encoding="utf-8")
    noted = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(noted | {"seed": 7}), encoding="utf-8")
    return run


@pytest.fixture
def run(called: Path, tmp_path: Path) -> Path:
    return shutil.copytree(called, tmp_path / "run")


def scores_drawn(files: RunFiles) -> list[float]:
    return list(view(files)["figures"]["frontier"]["data"][0]["y"])


def said(files: RunFiles) -> dict[str, Any]:
    seen = view(files)
    questions = [{k: v for k, v in q.items() if k != "code"} for q in seen["questions"]]
    return {k: seen[k] for k in ("headline", "seed", "recipe", "warnings")} | {"questions": questions}


def test_a_page_says_what_it_said_before_the_call(least_run: Path, called: Path) -> None:
    before, after = read_run(least_run), read_run(called)
    assert yaml.safe_load(after.recipe)["reward"]["gate"]["enabled"] is False and after.recipe != before.recipe
    assert said(after) == said(before)
    gate = gate_of(after)
    assert gate is not None and gate["state"] != "off" and gate == gate_of(before)
    rows = [json.loads(line) for line in (called / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert scores_drawn(after) == pytest.approx([row["objective/scores"] for row in rows], rel=1e-4)  # as they are


def test_the_command_makes_what_the_page_shows(least_run: Path, called: Path) -> None:
    """It starts from the newest call's recipe and sets what the results were made with."""
    words = shlex.split(view(read_run(called))["command"])
    assert words[:5] == ["trivet", "run", str(called / "recipe.yaml"), "--run-dir", f"{called}-again"]
    assert words[5] == "--set" and {w.split("=")[0] for w in words[6:]} == {c.split("=")[0] for c in CHANGES}
    assert load_recipe(words[2], words[6:]).model_dump(exclude={"base_dir"}) == load_recipe(
        least_run / "recipe.yaml"
    ).model_dump(exclude={"base_dir"})
    assert "--set" not in view(read_run(least_run))["command"]


def test_a_comparison_finds_no_difference_between_equal_results(least_run: Path, called: Path) -> None:
    files = {"a": read_run(least_run), "b": read_run(called)}
    page = comparison(files)
    assert "Nothing: every setting is the same." in page
    state = gate_of(files["a"])
    assert state is not None and page.count(f"<dt>Gate before PPO</dt><dd>{state['state']}</dd>") == 2


@pytest.mark.parametrize("how", ["failed", "running", "a growing log"])
def test_a_stage_in_progress_has_the_recipe_of_the_newest_call(run: Path, how: str) -> None:
    """Beside its finished result of before; and so the evaluation, whose result stays, has its own."""
    if how == "a growing log":
        partial = partial_folder(run / "ppo")
        partial.mkdir()
        shutil.copy(run / "ppo" / "metrics.jsonl", partial)
    else:
        noted = json.loads((run / "run.json").read_text(encoding="utf-8"))
        noted["stages"]["ppo"]["status"] = how
        (run / "run.json").write_text(json.dumps(noted), encoding="utf-8")
    files = read_run(run)
    gate = gate_of(files)
    assert gate is not None and gate["state"] == "off"
    std = json.loads((run / "reward" / "manifest.json").read_text(encoding="utf-8"))["metrics"]["score_std"]
    rows = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert scores_drawn(files) == pytest.approx([row["objective/scores"] * std for row in rows], rel=1e-4)
    assert yaml.safe_load(files.shown_recipe)["seed"] == 0


def test_without_an_evaluation_the_last_result_counts(run: Path) -> None:
    shutil.rmtree(run / "evaluation")
    noted = json.loads((run / "run.json").read_text(encoding="utf-8"))
    del noted["stages"]["evaluate"]
    (run / "run.json").write_text(json.dumps(noted), encoding="utf-8")
    assert view(read_run(run))["seed"] == 0
    noted["stages"]["ppo"]["status"] = "failed"
    (run / "run.json").write_text(json.dumps(noted), encoding="utf-8")
    assert view(read_run(run))["seed"] == 7


@pytest.mark.parametrize("text", [None, "{", "[]", '{"recipe": "text"}'])
def test_where_a_recipe_was_not_kept_or_is_damaged_the_newest_counts(run: Path, text: str | None) -> None:
    file = kept_file(run, "evaluate")
    assert file is not None
    file.unlink()
    if text is not None:
        file.write_text(text, encoding="utf-8")
    files = read_run(run)
    assert files.shown_recipe == files.recipe and "--set" not in view(files)["command"]
    assert any(f"{FOLDER}/{file.name}" in note for note in files.notes) == (text is not None)
    gate = gate_of(files)
    assert gate is not None and gate["state"] != "off"  # PPO has its own


def test_settings_of_a_group_are_set_one_by_one_where_they_can_be() -> None:
    before = {"a": 1, "b": {"c": [1], "d.e": 2}, "f": {"g": None, "h": 1}, "i": "x"}
    wanted = {"a": 1, "b": {"c": [1], "d.e": 3}, "f": {"g": 1e-05}, "i": {"j": "k l"}}
    found = [one for key in wanted for one in overrides(before[key], wanted[key], key)]
    assert found == ['b={"c": [1], "d.e": 3}', 'f={"g": 1e-05}', 'i={"j": "k l"}']
    assert overrides({"g": None, "h": 1}, {"g": 2, "h": 1}, "f") == ["f.g=2"]
