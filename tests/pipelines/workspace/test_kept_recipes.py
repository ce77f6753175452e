"""A result is opened with the recipe that it was made with, whatever a later call asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import pipelines.cli.main as cli
from models.backbone.artifacts import previous_folder, write_json
from pipelines.recipe.schema import resolved_yaml
from pipelines.run.open_run import open_run
from pipelines.run.pipeline import Pipeline
from pipelines.workspace.gc import leftovers, remove
from pipelines.workspace.kept_recipes import FOLDER, keep, kept
from tests.support.recipes import RECIPE

OTHER = RECIPE | {"template": "text", "stop_strings": ["."], "reward": RECIPE["reward"] | {"max_tokens": 20}}  # type: ignore[operator]


@pytest.fixture
def run(least_run: Path, tmp_path: Path) -> Path:
    """A finished run in which a call with other settings was stopped before it replaced anything."""
    folder = tmp_path / "run"
    shutil.copytree(least_run, folder)
    other = Pipeline.from_recipe(OTHER, run_dir=folder).recipe
    (folder / "recipe.yaml").write_text(resolved_yaml(other), encoding="utf-8")
    return folder


def exported(run: Path, to: Path) -> str:
    assert cli.main(["export", str(run), "--stage", "ppo", "--to", str(to)]) == 0
    return (to / "tokenizer_config.json").read_text() + "".join(f.read_text() for f in sorted(to.glob("*.jinja")))


def test_exports_are_as_the_stage_was_trained(least_run: Path, run: Path, tmp_path: Path) -> None:
    assert exported(run, tmp_path / "a") == exported(least_run, tmp_path / "b")
    assert open_run(run, stage="ppo").recipe.template == "dialogue" and open_run(run).recipe.template == "text"


def test_scores_are_those_of_the_limit_that_the_reward_model_has(
    least_run: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "say something nice about a dog " * 4, "response": "a dog " * 6}) + "\n")
    found = []
    for folder in (run, least_run):
        assert cli.main(["score", str(folder), str(rows)]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_without_a_kept_recipe_a_result_of_other_settings_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a run of before: by the template and stops of a model, and by the limit of a reward model."""
    shutil.rmtree(run / FOLDER)
    assert cli.main(["export", str(run), "--stage", "ppo", "--to", str(tmp_path / "a")]) == 2
    told = capsys.readouterr().err
    assert "ppo was made otherwise" in told and "template" in told and "stop_strings" in told
    assert cli.main(["export", str(run), "--stage", "reward", "--to", str(tmp_path / "b")]) == 2
    assert "reward.max_tokens (128 -> 20)" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_each_result_has_its_own(run: Path) -> None:
    """By its key: a result that is put back finds its recipe again, and a recipe that is there stays."""
    names = sorted(path.name.split("-")[0] for path in (run / FOLDER).iterdir())
    assert names == sorted(["pretrain", "sft", "rankings", "reward", "ppo", "evaluate"])
    before = kept(run, "sft")
    keep(run, "sft", Pipeline.from_recipe(OTHER, run_dir=run).recipe)
    assert kept(run, "sft") == before and before is not None and before["recipe"]["template"] == "dialogue"
    manifest = run / "sft" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": "f" * 64}))
    assert kept(run, "sft") is None


def test_those_of_results_that_are_gone_can_go(run: Path) -> None:
    """And those of the results that were replaced last stay, which may be put back."""
    own, other = kept(run, "sft"), run / FOLDER / "sft-0000000000000000.json"
    assert leftovers(run) == []
    shutil.copytree(run / "sft", previous_folder(run / "sft"))
    manifest = run / "sft" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": "f" * 64}))
    keep(run, "sft", Pipeline.from_recipe(OTHER, run_dir=run).recipe)
    write_json(other, {"recipe": {}})
    found = {one.path: one.why for one in leftovers(run)}
    assert found.pop(other) == "the recipe of a result that is gone"
    assert list(found) == [previous_folder(run / "sft")]
    shutil.rmtree(run / "sft")
    previous_folder(run / "sft").rename(run / "sft")
    assert kept(run, "sft") == own
    gone, errors = remove(leftovers(run))
    assert not errors and {one.path.name for one in gone} == {other.name, f"sft-{'f' * 16}.json"}
    assert kept(run, "sft") == own
