"""A plan as the page shows it, from the JSON that the real command prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli.main import main
from pipelines.loading.load import load_recipe
from pipelines.recipe.schema import resolved_yaml
from pipelines.ui import plan_table
from tests.support.recipes import RECIPE

STAGE = {"status": "new", "why": "not run yet", "steps": 1200, "tokens": 5000, "memory": 2_000_000, "disk": 1000}
MORE = {"seconds": 60.0, "chosen": "rate: by width\nbatch: by rows", "warning": "", "too_large": ""}


def plan(*stages: dict) -> dict:
    made = [STAGE | MORE | one for one in stages]
    return {"stages": made, "findings": ["a finding"], "warnings": [], "rehearsed": [], "seconds_assume": "a probe"}


def test_rows_and_sums_by_hand() -> None:
    found = plan({"name": "sft"}, {"name": "ppo", "seconds": 65.0, "memory": 4_000_000, "warning": "short"})
    assert plan_table.rows(found)[0] == {
        "stage": "sft",
        "status": "new",
        "why": "not run yet",
        "steps": "1,200",
        "tokens": "5,000",
        "memory": "2.0 MB",
        "disk": "1.0 kB",
        "time": "about 1 min 00 s",
    }
    assert plan_table.headline(found) == "2 stages to run: about 2 min 05 s, at most about 4.0 MB of memory."
    assert plan_table.warnings(found) == ["ppo: short", "a finding"]
    assert plan_table.reasons(found)[:2] == ["sft: rate: by width", "sft: batch: by rows"]


def test_what_is_not_known_and_what_is_done() -> None:
    unknown = plan({"name": "sft", "seconds": None, "memory": None, "tokens": None, "disk": None, "steps": None})
    assert {plan_table.rows(unknown)[0][key] for key in ("tokens", "memory", "disk")} == {"?"}
    assert plan_table.headline(unknown) == "1 stage to run: a time that is not known yet."
    done = plan({"name": "sft", "status": "cached", "seconds": None})
    assert plan_table.headline(done).startswith("Every stage is finished")
    stale = plan({"name": "sft", "status": "stale", "why": "sft.epochs is 2, was 1"}, {"name": "ppo"})
    assert plan_table.replaced(stale) == ["sft: sft.epochs is 2, was 1"] and plan_table.replaced(done) == []


def test_the_real_plan_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "least.yaml").write_text(resolved_yaml(load_recipe(RECIPE)))
    assert main(["plan", str(tmp_path / "least.yaml"), "--run-dir", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = plan_table.rows(found)
    assert [row["stage"] for row in rows] == ["pretrain", "sft", "rankings", "reward", "ppo", "evaluate"]
    assert {*rows[0]} == {*plan_table.COLUMNS} and all(row["time"].startswith("about") for row in rows)
    assert plan_table.headline(found).startswith("6 stages to run: about")
