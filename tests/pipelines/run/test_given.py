"""Results that a run is given by ``--input`` are not made again, and whoever opens the run finds the same ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipelines.cli.main import main
from pipelines.export.stage import export_stage
from pipelines.run.open_run import open_run
from pipelines.run.pipeline import Pipeline
from pipelines.run.rehearsal import rehearse
from pipelines.workspace.verify import verify_run
from tests.support.recipes import RECIPE

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def other_sft(least_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain adapter of other weights than the run's own."""
    folder = tmp_path_factory.mktemp("other") / "sft"
    shutil.copytree(least_run / "sft/adapter", folder)
    save_file({name: 2 * w for name, w in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


def recipe_at(folder: Path, **changes: object) -> str:
    (folder / "r.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    return str(folder / "r.yaml")


def test_what_is_given_is_not_run(least_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = {name: str(least_run / name) for name in ("pretrain", "sft", "rankings", "reward")}
    pipeline = Pipeline.from_recipe(RECIPE, ["ppo.kl_coef=0.2"], run_dir=tmp_path / "run", inputs=inputs)
    assert [plan.status for plan in pipeline.plan()] == ["given"] * 4 + ["new"] * 2
    assert pipeline.plan()[1].reason == f"by --input: {least_run / 'sft'}"
    assert pipeline.run().keys() == {"ppo", "evaluate"}
    assert not any((tmp_path / "run" / name).exists() for name in inputs)
    assert (tmp_path / "run/ppo/manifest.json").is_file()
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: given by --input, not run ({least_run / name})" in said for name in inputs)
    assert open_run(tmp_path / "run").given == {
        name: least_run / name for name in ("pretrain", "sft", "reward")
    }  # what the last stage, evaluation, takes


def test_a_given_stage_stands_before_an_own_one_that_is_there(least_run: Path, other_sft: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(least_run, tmp_path / "run"))
    changes = ["evaluation.systems=[sft]", "evaluation.greedy=false"]
    Pipeline.from_recipe(RECIPE, changes, run_dir=run, inputs={"sft": str(other_sft)}).run(only=["evaluate"])
    assert open_run(run).given == {"sft": other_sft}
    exported = load_file(export_stage(run, "sft", tmp_path / "given") / WEIGHTS)
    given, own = load_file(other_sft / WEIGHTS), load_file(run / "sft/adapter" / WEIGHTS)
    assert all(torch.equal(exported[name], given[name]) for name in given)
    assert any(not torch.equal(given[name], own[name]) for name in given)
    Pipeline.from_recipe(RECIPE, changes, run_dir=run).run(only=["evaluate"])
    assert open_run(run).given == {} and verify_run(run) == []
    exported = load_file(export_stage(run, "sft", tmp_path / "own") / WEIGHTS)
    assert all(torch.equal(exported[name], own[name]) for name in own)


def test_another_evaluation_takes_what_the_run_was_given(least_run: Path, other_sft: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(least_run, tmp_path / "run"))
    shutil.rmtree(run / "sft")
    changes = ["evaluation.systems=[sft]", "evaluation.greedy=false"]
    Pipeline.from_recipe(RECIPE, changes, run_dir=run, inputs={"sft": str(other_sft)}).run(only=["evaluate"])
    assert main(["evaluate", str(run), "--set", "evaluation.prompts=4"]) == 0
    [results] = run.glob("evaluations/*/evaluation/results.json")
    found = json.loads(results.read_text())
    assert found["prompts"] == 4 and {"sft"} <= found["systems"].keys()
    assert "reward" in found["systems"]["sft"]


@pytest.mark.parametrize(
    ("command", "inputs", "message"),
    [
        (["sft"], ["sft"], "--input sft: gives the result of this stage"),
        (["run", "--only", "ppo", "sft"], ["sft"], "--input sft: gives the result of this stage"),
        (["sft"], ["reward"], "--input reward: no stage of this call takes it (it runs sft)"),
        (["run", "--until", "reward"], ["ppo"], "--input ppo: no stage of this call takes it"),
        (["run"], ["sft", "evaluate"], "--input evaluate: no stage of this call takes it"),
        (["plan"], ["evaluate"], "--input evaluate: no stage of this call takes it"),
    ],
)
def test_what_would_not_be_taken_is_refused(
    tmp_path: Path, command: list[str], inputs: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"{name}={tmp_path}" for name in inputs]
    name, *rest = command
    arguments = [name, recipe_at(tmp_path), *rest, "--run-dir", str(tmp_path / "run"), "--input", *given]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_what_was_made_otherwise_is_told_before_the_first_stage(least_run: Path, tmp_path: Path, capsys) -> None:
    given = [f"{name}={least_run / name}" for name in ("pretrain", "sft", "reward")]
    base = ["plan", recipe_at(tmp_path), "--run-dir", str(tmp_path / "run"), "--input", *given]
    assert main(base) == 0
    assert "was made otherwise" not in capsys.readouterr().out
    assert main([*base, "--set", "reward.max_tokens=100", "template=auto"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert 'sft, which is given, was made otherwise than it is used here: template ("dialogue" -> "auto")' in said
    assert "reward, which is given, was made otherwise than it is used here: reward.max_tokens (128 -> 100)" in said
    rewarder = export_stage(least_run, "reward", tmp_path / "rewarder")
    base[-1] = f"reward={rewarder}"
    assert main([*base, "--set", "reward.max_tokens=100"]) == 0
    assert "reward.max_tokens (128 -> 100)" in capsys.readouterr().out


def test_a_copy_that_keeps_other_settings_is_told_once(least_run: Path, tmp_path: Path, capsys) -> None:
    inputs = {name: str(least_run / name) for name in ("pretrain", "sft", "reward")}
    changes = ["adapter.rank=2", "ppo.value.init=sft", "ppo.value.head=zero", "ppo.updates=1"]
    Pipeline.from_recipe(RECIPE, changes, run_dir=tmp_path, inputs=inputs).run(only=["ppo"])
    said = " ".join(capsys.readouterr().out.split())
    for role in ("policy", "value"):
        assert said.count(f"{role} starts as a copy of 'sft' and keeps its settings") == 1
    assert "'reference'" not in said


def test_what_is_made_of_a_stale_stage_is_known_by_that_stage(least_run: Path, tmp_path: Path, capsys) -> None:
    run, fast = (
        Path(shutil.copytree(least_run, tmp_path / "run")),
        ["ppo.learning_rate=0.01", "evaluation.greedy=false"],
    )
    Pipeline.from_recipe(RECIPE, fast, run_dir=run).run(only=["evaluate"])
    said = " ".join(capsys.readouterr().out.split())
    assert "ppo: not run in this call and taken as it is there" in said and "settings.ppo.learning_rate" in said
    assert "reward: not run in this call" not in said and verify_run(run) == []
    parents = json.loads((run / "evaluation/manifest.json").read_text())["parents"]
    assert parents["ppo"] == json.loads((least_run / "ppo/manifest.json").read_text())["key"]
    before = json.loads((run / "evaluation/results.json").read_text())["systems"]["ppo"]
    Pipeline.from_recipe(RECIPE, fast, run_dir=run).run()
    assert verify_run(run) == []
    after = json.loads((run / "evaluation/results.json").read_text())["systems"]["ppo"]
    assert after != before  # of the policy that was trained since


def test_plan_as_json_names_what_is_given_and_says_what_the_plan_says(
    least_run: Path, other_sft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))
    words = ["plan", str(tmp_path / "r.yaml"), "--run-dir", str(least_run), "--input", f"sft={other_sft}"]
    assert main([*words, "--set", "sft.epochs=2"]) == 0
    shown = capsys.readouterr().out
    assert main([*words, "--set", "sft.epochs=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    sft = next(stage for stage in found["stages"] if stage["name"] == "sft")
    assert sft["status"] == "given" and sft["seconds"] is sft["memory"] is None
    assert any("sft.epochs" in text for text in found["warnings"])
    assert all(text in shown for text in (*found["warnings"], *found["findings"]))


@pytest.mark.parametrize("other", [["--settings"], ["--fit", "24GB"], ["--write", "small.yaml"]])
def test_json_of_a_plan_goes_with_nothing_that_shows_something_else(
    other: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))
    assert main(["plan", str(tmp_path / "r.yaml"), "--json", *other]) == 2
    assert "--json" in capsys.readouterr().err


def messages_of(records: Iterable[Any]) -> set[str]:
    """The text of each record's first user message, as it would be recognised."""
    prompts = [getattr(record, "prompt", record) for record in records]
    return {" ".join(next(m.content for m in p.messages if m.role == "user").lower().split()) for p in prompts}


def test_held_out_prompts_that_a_given_result_was_trained_on_are_named(
    least_run: Path, other_sft: Path, tmp_path: Path
) -> None:
    inputs = {name: str(least_run / name) for name in ("pretrain", "sft")}
    changes = ["evaluation.systems=[sft]", "evaluation.greedy=false", "stages=[evaluate]", "evaluation.prompts=40"]
    recipe = {name: part for name, part in RECIPE.items() if name != "rankings"}
    said: list[str] = []
    same = Pipeline.from_recipe(recipe, changes, run_dir=tmp_path / "same", inputs=inputs)
    rehearse(same, ["evaluate"], said.append)
    assert not [text for text in said if "trained on" in text]
    other = Pipeline.from_recipe(recipe, [*changes, "data.held_out=0.7"], run_dir=tmp_path / "other", inputs=inputs)
    rehearse(other, ["evaluate"], said.append)
    trained, held = messages_of(same.corpus.demonstrations.train), other.corpus.demonstrations.held_out
    leaked = sum(bool(messages_of([record]) & trained) for record in held)
    told = next(text for text in said if "data.demonstrations" in text and "trained on" in text)
    assert leaked > 10 and told.startswith("leak: sft, which is taken from ")
    assert f"was trained on {leaked:,} of the {len(held):,} held-out records of data.demonstrations" in told
    other.run()
    results = json.loads((tmp_path / "other/evaluation/results.json").read_text())
    asked = [p for p in other.corpus.prompts.held_out[:40] if messages_of([p]) & trained]
    sentence = f"the sft result was trained on {len(asked)} of the 40 prompts of this evaluation"
    assert any(text.startswith(sentence) for text in results["warnings"]) == bool(asked)
    said.clear()
    plain = Pipeline.from_recipe(recipe, changes, run_dir=tmp_path / "p", inputs=inputs | {"sft": str(other_sft)})
    rehearse(plain, ["evaluate"], said.append)
    assert any("sft, which is given: not all that it was trained on is known" in text for text in said)


def test_prompts_that_a_run_was_trained_on_are_no_held_out_ones_in_a_file_of_prompts(
    least_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(least_run, tmp_path / "run"))
    corpus = Pipeline.from_recipe(RECIPE).corpus
    texts = [p.messages[0].content for p in (*corpus.prompts.train[:3], *corpus.prompts.held_out[:2])]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    command = ["evaluate", str(run), "--prompts", str(tmp_path / "asked.jsonl"), "--systems", "sft,ppo"]
    assert main([*command, "--set", "evaluation.greedy=false"]) == 0
    [results] = run.glob("evaluations/*/evaluation/results.json")
    told = [text for text in json.loads(results.read_text())["warnings"] if "was trained on" in text]
    assert any(text.startswith("the ppo result was trained on 3 of the 5 prompts") for text in told)
