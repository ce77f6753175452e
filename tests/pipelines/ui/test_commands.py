"""Actions as command lines: what is shown is what is run, and what is run is the real command."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path

import pytest
import typer.main

from pipelines.cli.exit_codes import spread_values
from pipelines.cli.main import app
from pipelines.ui import commands
from pipelines.ui.commands import Talk, outcome_of, shown

ACTIONS = {
    "check": commands.check(["a b.jsonl", "-x.csv"], as_json=True),
    "draft": commands.draft({"a.jsonl": "", "b.txt": "prompts"}, "./base", "24gb", "mine.yaml", "0.1", replace=True),
    "plan": commands.plan("mine.yaml", "runs/mine", as_json=True),
    "run": commands.run("mine.yaml", "runs/mine"),
    "compare": commands.compare(["runs/a", "runs/b"], "page.html"),
    "chat": Talk(
        target="runs/a", stage="ppo", compare_with="sft", temperature=0.5, tokens=9, seed=1, preferences="p"
    ).arguments(),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_the_command_line_knows_every_argument(name: str) -> None:
    """Parsed by the real commands, without running them."""
    words = spread_values(ACTIONS[name])
    group = typer.main.get_command(app)
    while hasattr(group, "commands"):
        group, words = group.commands[words[0]], words[1:]
    with group.make_context(name, list(words)) as context:
        assert context.params


def test_lines_by_hand() -> None:
    assert shown(ACTIONS["check"]) == "trivet data check 'a b.jsonl' ./-x.csv --json"
    assert shown(ACTIONS["draft"]) == (
        "trivet init a.jsonl --prompts b.txt --base ./base --for 24gb --out mine.yaml --held-out 0.1 --force"
    )
    assert shown(ACTIONS["plan"]) == "trivet plan mine.yaml --run-dir runs/mine --json"
    assert shown(commands.run("mine.yaml", " ")) == "trivet run mine.yaml"
    assert shown(Talk(target="runs/a").arguments()) == "trivet chat runs/a"
    assert shown(ACTIONS["chat"]) == (
        "trivet chat runs/a --stage ppo --compare-with sft --temperature 0.5 --tokens 9 --preferences p --seed 1"
    )
    assert shlex.split(shown(ACTIONS["check"]))[1:] == ACTIONS["check"]


def test_a_command_is_run_where_a_folder_is_called_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the user's that is a package by its name does not get in the way."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hello", "completion": "hi"}\n')
    good = asyncio.run(outcome_of(commands.check(["rows.jsonl"], as_json=True)))
    assert good.code == 0 and good.json()["files"][0]["usable"]["demonstrations"] == 1
    bad = asyncio.run(outcome_of(commands.check(["none.jsonl"])))
    assert bad.code == 2 and bad.message.startswith("trivet: none.jsonl")
