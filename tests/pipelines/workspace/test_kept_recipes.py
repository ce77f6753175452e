"""A result is opened with the recipe that it was made with, whatever a later call asked for."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import pipelines.cli.main as cli
from data.common.errors import UserError
from data.records import Message
from models.backbone.artifacts import previous_folder, write_json
from pipelines.loading.load import load_kept
from pipelines.recipe.schema import resolved_yaml
from pipelines.run.chat_models import open_room, open_speakers
from pipelines.run.open_run import open_run
from pipelines.run.pipeline import Pipeline
from pipelines.workspace.gc import leftovers, remove
from pipelines.workspace.kept_recipes import FOLDER, keep, kept_file
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


def kept(run: Path, stage: str) -> dict[str, Any] | None:
    file = kept_file(run, stage)
    return None if file is None else json.loads(file.read_text())


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
    """By its key: a result that is put back finds its recipe again."""
    names = sorted(path.name.split("-")[0] for path in (run / FOLDER).iterdir())
    assert names == sorted(["pretrain", "sft", "rankings", "reward", "ppo", "evaluate"])
    before, manifest = kept(run, "sft"), run / "sft" / "manifest.json"
    assert before is not None and before["recipe"]["template"] == "dialogue"
    text = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(text) | {"key": "f" * 64}))
    assert kept(run, "sft") is None
    keep(run, "sft", Pipeline.from_recipe(OTHER, run_dir=run).recipe)
    manifest.write_text(text)
    assert kept(run, "sft") == before


def test_the_newest_recipe_of_a_result_is_the_one_that_is_kept(least_run: Path, tmp_path: Path) -> None:
    """Of a run that was moved with its recipe, and run again with settings that change neither SFT nor PPO."""
    run, folder = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(least_run, run)
    folder.mkdir()
    (folder / "least.yaml").write_text(json.dumps(RECIPE))
    unchanged = kept(run, "evaluate")
    call = ["run", str(folder / "least.yaml"), "--run-dir", str(run), "--until", "ppo"]
    assert cli.main([*call, "--set", "evaluation.max_new_tokens=7", "name=other"]) == 0
    for stage in ("sft", "ppo"):
        found = kept(run, stage)
        assert found is not None and found["recipe_folder"] == str(folder)
        recipe = open_run(run, stage=stage).recipe
        assert (recipe.name, recipe.evaluation.max_new_tokens) == ("other", 7)
    assert kept(run, "evaluate") == unchanged and unchanged is not None and unchanged["recipe"]["name"] == "least"


def test_a_recipe_that_is_as_it_was_is_not_written_again(run: Path) -> None:
    own = open_run(run, stage="sft").recipe
    file = kept_file(run, "sft")
    assert file is not None
    before = file.read_bytes(), file.stat().st_ino
    keep(run, "sft", own)
    assert (file.read_bytes(), file.stat().st_ino) == before
    file.write_text("{")  # damaged
    keep(run, "sft", own)
    assert file.read_bytes() == before[0] and len(list(file.parent.iterdir())) == 6


@pytest.mark.parametrize("text", ["{", '{"recipe": {"nonsense": 1}}'])
def test_a_kept_recipe_that_is_none_is_named_by_its_file(run: Path, text: str) -> None:
    file = kept_file(run, "sft")
    assert file is not None
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(file))):
        load_kept(run, "sft")


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


@pytest.fixture(scope="module")
def remade(least_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose stages before PPO were made again with another template and limit; PPO is as it was."""
    run = tmp_path_factory.mktemp("remade") / "run"
    shutil.copytree(least_run, run)
    Pipeline.from_recipe(OTHER, run_dir=run).run(until="reward")
    return run


def test_each_model_of_a_run_is_asked_as_it_was_trained(remade: Path) -> None:
    """On one base in memory, in what ``trivet serve`` offers and beside each other in a chat."""
    asked = [Message(role="user", content="dog")]
    served, compared = open_speakers(str(remade)), open_room(str(remade), "ppo", "sft")
    assert [s.name for s in served.speakers] == ["base", "sft", "ppo"]
    assert [s.name for s in compared.speakers] == ["ppo", "sft"] and served.left_out == () == compared.left_out
    for room in (served, compared):
        assert len({id(s.base) for s in room.speakers}) == 1
        prompts = {s.name: s.base.tokenizer.decode(s.renderer.prompt_ids(asked)) for s in room.speakers}
        assert "user" in prompts["ppo"] and "user" not in prompts["sft"]
        stops = {s.name: s.renderer.stop_strings.texts for s in room.speakers}
        assert stops["sft"] == (".",) and stops["ppo"] == ()


def test_the_reward_beside_a_response_is_by_the_limit_of_the_reward_model(remade: Path) -> None:
    room = open_room(str(remade), "ppo")
    assert room.reward is not None and room.reward.max_tokens == 20 and room.left_out == ()
    assert room.reward.base is room.speakers[0].base
    assert open_speakers(str(remade), "ppo").reward is None


def test_a_result_beside_the_one_that_is_asked_for_is_left_out_where_it_is_damaged(
    remade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(remade, run)
    for stage in ("sft", "reward"):
        (run / stage / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    served, talked = open_speakers(str(run)), open_room(str(run))
    assert [s.name for s in served.speakers] == ["base", "ppo"] and [s.name for s in talked.speakers] == ["ppo"]
    [left_out] = served.left_out
    assert left_out.startswith(f"sft is left out: {run / 'sft'}") and "altered since the stage finished" in left_out
    [no_reward] = talked.left_out
    assert talked.reward is None and no_reward.startswith(f"no reward stands beside responses: {run / 'reward'}")
    for command, told in (("chat", no_reward), ("serve", left_out)):
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        monkeypatch.setattr("pipelines.cli.serve.until_stopped", lambda: None)
        port = ["--port", "0"] if command == "serve" else []
        assert cli.main([command, str(run), *port]) == 0
        assert told in capsys.readouterr().out
    for opened in (open_speakers, open_room):
        with pytest.raises(UserError, match="altered since the stage finished"):
            opened(str(run), "sft")
    with pytest.raises(UserError, match="altered since the stage finished"):
        open_room(str(run), "ppo", "sft")


def test_a_refusal_says_what_helps(least_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Running the recipe once more, where none was kept; the file as it was, where its own names one that changed."""
    run, template = tmp_path / "run", tmp_path / "own.jinja"
    shutil.copytree(least_run, run)
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    own = RECIPE | {"template": str(template)}
    Pipeline.from_recipe(own, run_dir=run).run(until="sft")
    (run / "recipe.yaml").write_text(resolved_yaml(Pipeline.from_recipe(OTHER, run_dir=run).recipe))
    file = kept_file(run, "sft")
    assert file is not None
    file.rename(tmp_path / "kept.json")
    with pytest.raises(UserError, match=r"run that once more with --until sft, which skips what is finished"):
        open_room(str(run), "sft")
    Pipeline.from_recipe(own, run_dir=run).run(until="sft")
    assert file.is_file() and "finished and unchanged, skipped" in capsys.readouterr().out
    assert open_room(str(run), "sft").speakers[0].name == "sft"
    text = template.read_text()
    template.write_text(text.replace(":", " :"))
    with pytest.raises(UserError, match=r"Its own recipe is .*put the file back as it was"):
        open_room(str(run), "sft")
    template.write_text(text)
    assert open_room(str(run), "sft").speakers[0].name == "sft"


def test_files_of_the_users_own_stay(run: Path) -> None:
    """Only what bears the name of a stage and of a key is a kept recipe."""
    keys = "0" * 16
    for name in ("my_other_recipe", f"mine-{keys}", "sft-backup", f"sft-{keys}0", f"sft-{keys[1:]}g"):
        write_json(run / FOLDER / f"{name}.json", {})
    assert leftovers(run) == []


@pytest.mark.parametrize("place", ["sft", ".sft.previous", ".sft.old", ".sft.restored"])
def test_recipes_of_a_stage_stay_while_a_manifest_of_it_is_damaged(run: Path, place: str) -> None:
    """Whose recipe is not known; those of other stages can go."""
    if place != "sft":
        shutil.copytree(run / "sft", run / place)
    gone = [run / FOLDER / f"{stage}-{'0' * 16}.json" for stage in ("ppo", "sft")]
    for file in gone:
        write_json(file, {})
    (run / place / "manifest.json").write_text("{")
    found = [one.path for one in leftovers(run)]
    assert gone[0] in found and not [path for path in found if path.name.startswith("sft-")]
