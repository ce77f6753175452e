"""What was made from another result than the one that is there now says so, wherever its numbers are shown."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

from rich.console import Console

from pipelines.cli.summary import show_summary
from pipelines.report.outdated import outdated
from pipelines.report.page import write_report
from pipelines.report.verdicts import verdict

SAID = (
    "Evaluation was made from another PPO than the one that is there now: its numbers and responses are of that one. "
    "`trivet run` with the recipe makes it again"
)


def made_again(run: Path, stage: str) -> None:
    """Give a stage's result another key, as a call that runs it alone does."""
    file = run / stage / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"key": "0" * 64}))


def shown(run: Path) -> str:
    out = io.StringIO()
    show_summary(run, Console(file=out, width=400))
    return out.getvalue()


def test_a_whole_run_is_not_outdated(least_run: Path) -> None:
    assert outdated(least_run) == {} and "was made from another" not in shown(least_run)


def test_an_evaluation_of_a_policy_that_was_trained_again_says_so_everywhere(least_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(least_run, run)
    made_again(run, "ppo")
    assert outdated(run) == {"evaluate": SAID}
    assert shown(run).startswith(f"warning: {SAID}")
    assert SAID.replace("`", "") in write_report(run).read_text().replace("`", "").replace("&#39;", "'")
    assert verdict(run, "evaluate").startswith("of other models than are there now: ppo against sft")
    assert not verdict(least_run, "evaluate").startswith("of other")


def test_every_link_is_looked_at(least_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(least_run, run)
    made_again(run, "sft")
    assert set(outdated(run)) == {"rankings", "reward", "ppo", "evaluate"}
    assert outdated(run)["ppo"].startswith("PPO was made from another Instruction tuning (SFT) than the one that is")
    noted = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(noted | {"inputs": {"sft": "elsewhere"}}))  # given, not this run's own
    assert outdated(run) == {}


def test_responses_of_a_model_alone_are_shown(tmp_path: Path) -> None:
    from pipelines.cli.summary import some_responses

    row = {"prompt": "Name a river.", "systems": {"base": {"response": "The Ebro."}}}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    assert [str(text) for text in some_responses(tmp_path / "samples.jsonl", ("sft", "ppo"))] == [
        "\nName a river.",
        "  base: The Ebro.",
    ]
