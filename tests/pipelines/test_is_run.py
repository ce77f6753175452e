"""What is a run is asked in one place: a folder with run.json. A recipe beside a model makes no run of it."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from data.common.errors import UserError
from pipelines.cli.evaluate import Asked, run_evaluation
from pipelines.export.stage import export_stage
from pipelines.run.chat_models import open_room
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import load_scorer
from pipelines.workspace.gc import runs_below
from pipelines.workspace.run_folder import find_run, is_run, run_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(least_run: Path, tmp_path: Path) -> Path:
    """A plain model in a folder whose parent holds a recipe; another recipe lies beside its weights."""
    export_stage(least_run, "sft", tmp_path / "model", merge=True)
    for place in (tmp_path, tmp_path / "model"):
        shutil.copy(least_run / "recipe.yaml", place / "recipe.yaml")
    return tmp_path / "model"


def test_a_run_is_a_folder_with_run_json(tmp_path: Path) -> None:
    run = tmp_path / "r"
    for folder in (run / "sft", run / "evaluation", run / "exports", tmp_path / "m"):
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text("name: x\n")
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    assert run_of(run) is None and runs_below(tmp_path) == []
    (run / "run.json").write_text("{}")
    assert is_run(run) and not is_run(run / "sft")
    assert run_of(run) == run_of(run / "sft") == run_of(run / "evaluation") == run
    assert run_of(run / "exports") is None and run_of(tmp_path / "m") is None and run_of(tmp_path) is None
    assert runs_below(tmp_path) == [run]
    with pytest.raises(UserError, match=r"no run folder \(run\.json\)"):
        find_run(run / "exports")


def test_chat_opens_the_model_and_not_the_recipe_beside_it(model: Path) -> None:
    room = open_room(str(model))
    assert [s.name for s in room.speakers] == [str(model)] and room.reward is None


def test_score_export_report_and_evaluate_do_not_take_it_for_a_run(model: Path, tmp_path: Path) -> None:
    from pipelines.cli.run import the_run

    with pytest.raises(UserError, match="neither a run"):
        load_scorer(model)
    for ask in (lambda: export_stage(model, "sft", tmp_path / "out"), lambda: the_run(model)):
        with pytest.raises(UserError, match="no run folder"):
            ask()
    with pytest.raises(UserError, match="is no run; to evaluate a model, name the prompts"):
        run_evaluation(str(model), Asked(), None, None, None, False)


def test_a_model_that_was_exported_into_a_run_is_itself(least_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(least_run, tmp_path / "run"))
    export_stage(run, "sft", run / "mine", merge=True)
    assert [s.name for s in open_room(str(run / "mine")).speakers] == [str(run / "mine")]
    assert [s.name for s in open_room(str(run / "sft")).speakers] == ["sft"]


def test_a_recipe_of_ones_own_in_a_run_folder_sees_paths_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe_folder": "/elsewhere"}))
    recipe = {"base": "tiny-gpt2", "data": {"demonstrations": "d.jsonl"}}
    for name in ("recipe.yaml", "mine.yaml"):
        (tmp_path / name).write_text(json.dumps(recipe))
    assert Pipeline.from_recipe(tmp_path / "recipe.yaml").asked.base_dir == Path("/elsewhere")
    assert Pipeline.from_recipe(tmp_path / "mine.yaml").asked.base_dir == tmp_path


HOME = {
    "manifest.json": "models/backbone/artifacts.py",
    "adapter_config.json": "models/backbone/settings.py",
    "run.json": "pipelines/workspace/run_folder.py",
    "recipe.yaml": "pipelines/workspace/run_folder.py",
}


@pytest.mark.parametrize("literal", HOME)
def test_a_files_name_stands_once(literal: str) -> None:
    """As a whole string of its own; messages and docstrings may mention it."""
    found = []
    for folder in ("data", "models", "reward", "stages", "evaluation", "pipelines"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            found += [str(file.relative_to(ROOT)) for n in nodes if isinstance(n, ast.Constant) and n.value == literal]
    assert found == [HOME[literal]]
