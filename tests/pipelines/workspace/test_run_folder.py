"""No command writes into a stage's result: it is refused before anything is read, computed or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.common.errors import UserError
from models.backbone.artifacts import publish
from pipelines.cli import main as cli
from pipelines.run.votes import append_votes
from pipelines.workspace.run_folder import check_outside
from pipelines.workspace.store import Store

RECIPE = {"base": "gpt2", "stages": ["sft"], "data": {"demonstrations": "rows.jsonl", "held_out": 0.2}}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Two runs, with SFT finished in the first and PPO begun, and files for commands to read."""
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "run.json").write_text("{}")
    (tmp_path / "one/.ppo.partial/checkpoints").mkdir(parents=True)
    part = tmp_path / "one/.sft.partial"
    part.mkdir()
    (part / "r.yaml").write_text(json.dumps(RECIPE))
    publish(part, tmp_path / "one/sft", {"stage": "sft", "key": "k"})
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))
    (tmp_path / "m.gguf").write_text("")
    return tmp_path


COMMANDS = {
    "export": "export one --stage sft --to one/sft/merged --merge",
    "score": "score one rows.jsonl --out one/sft/scored.jsonl",
    "data fix": "data fix rows.jsonl --out one/sft/fixed.jsonl",
    "report": "report one two --out one/sft/both.html",
    "init": "init rows.jsonl --base gpt2 --out one/sft/mine.yaml",
    "import": "import m.gguf --to one/sft/base",
    "run": "run r.yaml --run-dir one/sft/again --set runtime.device=cpu",
    "run into the stage itself": "run r.yaml --run-dir one/sft --set runtime.device=cpu",
    "a stage alone": "sft r.yaml --run-dir one/sft/again --set runtime.device=cpu",
    "store": "run r.yaml --store one/sft/store --run-dir new --set runtime.device=cpu",
    "plan": "plan one/sft/r.yaml --fit 24GB --write one/sft/small.yaml",
    "chat": "chat one --stage sft --compare-with base --preferences one/sft/votes.jsonl",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_command_writes_into_a_finished_stage(
    command: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    before = sorted(world.rglob("*"))
    assert cli.main(command.split()) == 2
    told = capsys.readouterr().err
    assert f"lies in {world / 'one/sft'}, where trivet keeps a stage's result" in told and told.count("\n") == 1
    assert sorted(world.rglob("*")) == before


PLACES = {
    "in a folder of a finished stage": ("one/sft/adapter/x", True),
    "in a stage that is under way": ("one/.ppo.partial/x", True),
    "where a stage will be": ("one/reward/x", True),
    "the place of a stage": ("one/reward", True),
    "run.json": ("one/run.json", True),
    "in a run": ("one/scored.jsonl", False),
    "in a folder of the user's in a run": ("one/exports/sft", False),
    "a folder of a stage's name in no run": ("mine/sft/x", False),
    "beside a run": ("three/x", False),
}


@pytest.mark.parametrize(("place", "refused"), PLACES.values(), ids=PLACES)
def test_what_is_a_results_place_and_what_is_not(place: str, refused: bool, world: Path) -> None:
    if refused:
        with pytest.raises(UserError, match="choose another --to"):
            check_outside(world / place, "--to")
    else:
        check_outside(world / place, "--to")


def test_links_and_entries_of_a_store_are_seen_through(world: Path) -> None:
    (world / "elsewhere").symlink_to(world / "one/sft")
    (world / "one/sft/out.jsonl").symlink_to(world / "rows.jsonl")  # would be replaced there
    (world / "votes.jsonl").symlink_to(world / "one/sft/votes.jsonl")  # would be written there
    (world / ".entry").mkdir()
    (world / "store").mkdir()
    publish(world / ".entry", world / "store/entry", {"stage": "sft", "key": "k"})
    for place in ("elsewhere/x", "one/sft/out.jsonl", "votes.jsonl", "store/entry/x"):
        with pytest.raises(UserError, match="where trivet keeps a stage's result"):
            check_outside(world / place, "--out")


def test_a_manifest_of_somebody_elses_makes_no_result(world: Path) -> None:
    (world / "site").mkdir()
    (world / "site/manifest.json").write_text('{"name": "a web page", "icons": []}')
    check_outside(world / "site/x.html", "--out")
    Store(world / "site/store")


def test_votes_of_a_conversation_are_refused_when_they_are_written(world: Path) -> None:
    with pytest.raises(UserError, match="choose another file"):
        append_votes(world / "one/sft/votes.jsonl", [{"prompt": "p"}])
    assert not (world / "one/sft/votes.jsonl").exists()
