"""``trivet ui`` as a user clicks through it, in headless Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.checks import check_files
from models.backbone.artifacts import previous_folder
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.browser import WAIT, Visit, needs_browser, ui_server, visit

pytestmark = needs_browser
RECIPE = """\
name: mine
base: ./base
template: dialogue
data: {demonstrations: shown.jsonl, rankings: ranked.jsonl, held_out: 0.2}
sft: {max_tokens: 64}   # the base has 64 positions
reward: {max_tokens: 64}
"""
QUICK = {
    "ppo.updates": "2",
    "ppo.rollouts": "8",
    "ppo.max_new_tokens": "8",
    "ppo.epochs": "1",
    "reward.gate.enabled": "false",
    "reward.calibration_samples": "8",
    "evaluation.bootstrap": "50",
}
"""What makes a run short; changed in the form."""


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base of 64 positions, 40 demonstrations, and 40 rankings of which one is there twice."""
    tiny_lm().save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    shown = [{"prompt": f"w{i % 33} w{i % 7} w{i % 5}", "completion": f"w{i % 3} w{i % 11}"} for i in range(40)]
    ranked = [
        {"prompt": f"w{i % 31} w{i % 6} w9", "chosen": f"w1 w{i % 13}", "rejected": f"w{i % 4}"} for i in range(40)
    ]
    lines(tmp_path / "shown.jsonl", shown)
    lines(tmp_path / "ranked.jsonl", [*ranked, ranked[0]])
    return tmp_path


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with ui_server(folder) as served:
        yield served.address


@pytest.mark.slow
def test_data_are_judged_and_a_recipe_is_changed(folder: Path, address: str) -> None:
    """What needs no model: the doctor's verdict, the form, the text, and what is wrong with it."""
    (folder / "mine.yaml").write_text(RECIPE)
    with (folder / "ranked.jsonl").open("a") as file:
        file.write("{no json\n")
    with visit(address, width=390, scheme="dark") as user:
        user.fill("base", "nothing", end="Tab")
        assert "is not a known name" in user.wait(".about-base.bad").inner_text()
        user.fill("base", "./base", end="Tab")
        user.wait(".about-base.muted:has-text('not in the registry')")
        user.fill("data file", "ranked.jsonl")
        verdict = user.wait(".verdict").inner_text()
        assert "42 rows" in verdict and "41 as rankings (the reward model)" in verdict and "ranked.jsonl:42" in verdict
        user.fill("data file", "none.jsonl")
        assert "none.jsonl" in user.wait(".error-text").inner_text()
        assert user.page.get_by_text("$ trivet data check ranked.jsonl", exact=True).is_visible()
        assert user.overflow() <= 0

        user.fill("recipe (YAML)", "mine.yaml", end="Tab")
        user.click("Open")
        user.wait(".yaml")
        user.set("ppo.kl_coef", "-1")
        assert "ppo.kl_coef: must be at least 0.0" in user.wait(".problem").inner_text()
        user.set("ppo.kl_coef", "0.3")
        user.wait(".problem", hidden=True)
        user.set("sft.schedule", "constant")
        user.set("sft.epochs", "[")
        assert "is no YAML value" in user.wait(".setting .bad").inner_text()
        user.click("Save")
        user.wait("text='saved'")
        assert user.overflow() <= 0 and user.complaints == []
    text = (folder / "mine.yaml").read_text()
    assert "sft: {max_tokens: 64, schedule: constant}   # the base has 64 positions\n" in text
    assert text.endswith("ppo:\n  kl_coef: 0.3\n") and "epochs" not in text
    assert previous_folder(folder / "mine.yaml").read_text() == RECIPE


@pytest.mark.slow
def test_the_whole_way(folder: Path, address: str) -> None:
    """From base and data to a vote that is read as a ranking."""
    with visit(address) as user:
        drafted(user)
        for setting, value in QUICK.items():
            user.set(setting, value)
        user.click("Save and plan")
        assert re.search(
            r"4 stages to run: about .* at most about .* of memory", user.wait(".plan-headline").inner_text()
        )
        assert [cell.inner_text() for cell in user.page.locator(".plan tbody tr td:first-child").all()] == [
            "sft",
            "reward",
            "ppo",
            "evaluate",
        ]
        user.click("Save and start")
        user.wait(".run-status:has-text('finished'):not(:has-text('not'))")
        user.wait(".stage-evaluate:has-text('done')")
        assert user.wait(".js-plotly-plot .main-svg >> nth=0").is_visible()
        assert "report: " in user.page.locator(".log").inner_text()
        stopped_and_resumed(user)
        compared(user)
        voted(user)
        assert user.complaints == []
    assert check_files([folder / "votes.jsonl"]).files[0].usable["rankings"] == 1
    row = json.loads((folder / "votes.jsonl").read_text())
    assert row["systems"] == ["ppo", "sft"] and row["ranks"] == [1, 0] and row["prompt"][0]["content"] == "w1 w2 w3"


def drafted(user: Visit) -> None:
    """Choose base and data, and have the recipe drafted."""
    user.fill("base", "./base", end="Tab")
    for count, name in enumerate(("shown.jsonl", "ranked.jsonl"), 1):
        user.fill("data file", name)
        user.wait(f".verdict >> nth={count - 1}")
    assert "1 of 41 rows repeat one before" in user.page.locator(".verdict").nth(1).inner_text()
    user.click("Draft the recipe")
    user.wait(".yaml textarea, .error-text")
    assert "demonstrations: shown.jsonl" in user.page.locator(".yaml textarea").input_value(timeout=5_000)


def stopped_and_resumed(user: Visit) -> None:
    """Another run, long enough to be stopped: stopped at a safe point, resumed, stopped again."""
    user.go("recipe?file=mine.yaml")
    user.wait(".yaml")
    user.set("ppo.updates", "20000")  # more than any machine does before the click
    user.fill("run folder", "runs/long", end="Tab")
    user.click("Save and start")
    user.page.wait_for_url("**/run?folder=runs/long")
    user.wait(".log:has-text('/20000')")
    user.click("Stop")
    user.wait(".run-status:has-text('not finished')")
    user.wait(".stage-ppo:has-text('stopped')")
    user.click("Resume")
    user.wait(".log:has-text('resumes at update')")
    user.click("Stop")
    user.wait(".run-status:has-text('not finished')")


def compared(user: Visit) -> None:
    """Both runs on one page."""
    user.go("runs")
    user.wait(".run-row >> nth=1")
    for name in ("mine", "long"):
        user.page.get_by_label(f"compare {name}").click()
    user.click("Compare")
    link = user.wait(".comparison")
    with user.page.context.expect_page(timeout=WAIT) as opened:
        link.click()
    opened.value.wait_for_load_state()
    opened.value.get_by_text("ppo.updates").first.wait_for(timeout=WAIT)
    opened.value.close()


def voted(user: Visit) -> None:
    """Two models side by side, and a vote for the second."""
    user.go("chat?run=runs/mine")
    user.wait(".compare-with")
    user.fill("compare with", "sft", end="Tab")
    user.fill("votes go to", "votes.jsonl", end="Tab")
    user.fill("tokens", "8", end="Tab")
    user.click("Load")
    user.wait(".message input").fill("w1 w2 w3")
    user.page.keyboard.press("Enter")
    user.wait(".vote-2").click()
    assert "1 vote appended to votes.jsonl" in user.wait(".vote-said:has-text('appended')").inner_text()
