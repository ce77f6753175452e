"""Which comparison a run is about, and what the terminal and the report say of runs without PPO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.cli.summary import show_summary, systems_table
from pipelines.report import verdicts
from pipelines.report.evaluation import shown_columns, system_rows
from pipelines.report.main_comparison import main_comparison, turned
from pipelines.report.words import Words, answers_to_newcomers, headline

C: dict[str, Any] = {
    "by": "gold", "decoding": "sampled", "n": 10, "wins": 2, "ties": 1, "losses": 7, "win_rate": 0.25,
    "ci95": [0.125, 0.5],
    "difference": {"mean": -1.5, "ci95": [-2.0, -0.5]}, "length_controlled": {"win_rate": 0.25, "ci95": None},
    "verdict": "worse",
}  # fmt: skip


def results(*systems: str, **more: Any) -> dict[str, Any]:
    """Each system but SFT against it, sampled and greedy."""
    numbers = {"distinct_2": 0.5, "truncated": 0.0, "length": {"mean": 4.0}}
    pairs = [C | {"a": s, "b": "sft", "decoding": how} for how in ("greedy", "sampled") for s in systems if s != "sft"]
    return {
        "systems": dict.fromkeys(systems, numbers), "comparisons": pairs, "prompts": 10,
        "judge": "gold", "against": "sft",
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("systems", "pair"),
    [
        (("base", "sft", "best_of_4", "ppo"), ("ppo", "sft")),
        (("ppo", "base", "sft", "best_of_4"), ("ppo", "sft")),
        (("base", "sft", "distil"), ("distil", "sft")),
        (("distil", "sft", "base"), ("distil", "sft")),
        (("base", "sft"), ("sft", "base")),  # which lost by 2 to 7, so that SFT won
    ],
)
def test_it_is_that_of_the_runs_last_model(systems: tuple[str, ...], pair: tuple[str, str]) -> None:
    found = main_comparison(results(*systems))
    assert found is not None and (found["a"], found["b"], found["decoding"]) == (*pair, "sampled")
    assert found["verdict"] == ("better" if pair == ("sft", "base") else "worse")


def test_without_comparisons_there_is_none() -> None:
    assert main_comparison({}) is None and main_comparison(results("sft")) is None


def test_a_comparison_is_turned_round_by_hand() -> None:
    found = turned(C | {"a": "base", "b": "sft"})
    assert (found["a"], found["b"], found["wins"], found["ties"], found["losses"]) == ("sft", "base", 7, 1, 2)
    assert (found["win_rate"], found["ci95"], found["verdict"]) == (0.75, [0.5, 0.875], "better")
    assert found["difference"] == {"mean": 1.5, "ci95": [0.5, 2.0]}
    assert found["length_controlled"] == {"win_rate": 0.75, "ci95": None}
    assert turned(found) == C | {"a": "base", "b": "sft"}
    told = turned(C | {"a": "base", "b": "sft", "verdict_text": "worse: wins 25 % [12, 50] of 10 prompts"})
    assert told["verdict_text"] == "better: wins 75 % [50, 88] of 10 prompts"
    assert (
        turned(C | {"verdict": "not shown", "verdict_text": "not shown with 10"})["verdict_text"] == "not shown with 10"
    )


def test_the_headline_of_a_run_of_sft_alone_is_that_it_beat_the_base() -> None:
    words = Words(results=results("base", "sft"), card={}, gate=None, command="", seed=0)
    assert headline(words)["tone"] == "good" and headline(words)["text"] == "SFT beat Base"
    distilled = Words(results=results("base", "sft", "distil"), card={}, gate=None, command="", seed=0)
    assert headline(distilled)["text"] == "Distilled lost to SFT"


def test_the_terminal_shows_the_responses_that_are_compared(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/results.json").write_text(json.dumps(results("base", "sft", "distil")))
    row = {"prompt": "Hi.", "systems": {name: {"response": f"I am {name}."} for name in ("base", "sft", "distil")}}
    (tmp_path / "evaluation/samples.jsonl").write_text(json.dumps(row) + "\n")
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_summary(tmp_path, console)
    shown = console.export_text()
    assert "  sft: I am sft.\n  distil: I am distil." in shown and "I am base" not in shown
    assert "reward" not in shown  # no system has one


def test_columns_without_a_value_are_left_out() -> None:
    rows = system_rows({"systems": {"base": {"kl": {"mean": 0.0}, "truncated": 0.5}, "sft": {"truncated": 0.0}}})
    assert shown_columns(rows) == {"kl": "KL, nats", "truncated": "Cut off"}


@pytest.mark.parametrize(("verdict", "said"), [("better", "PPO beat SFT"), ("worse", "PPO lost to SFT")])
def test_what_an_unreliable_judge_says_is_no_verdict(verdict: str, said: str, tmp_path: Path) -> None:
    """The words say what that judge prefers, and neither praise nor blame."""
    fooled = {"longest_answer": {"verdict": "better"}, "empty_answer": {"verdict": "not shown"}}
    found = results("sft", "ppo", judges={"gold": {"reliable": False, "adversaries": fooled}})
    for c in found["comparisons"]:
        c |= {"verdict": verdict, "verdict_text": verdict}
    found["systems"] = {name: system | {"gold": {"mean": 0.5}} for name, system in found["systems"].items()}
    for results_of, doubted in ((found, True), (found | {"judges": {"gold": {"reliable": True}}}, False)):
        words = Words(results=results_of, card={}, gate=None, command="", seed=0)
        top, card = headline(words), answers_to_newcomers(words)[0]
        assert top["text"] == said + ", by an unreliable judge" * doubted
        assert (top["tone"] == "open", card["tone"] == "open") == (doubted, doubted)
        cheat = next(c for c in answers_to_newcomers(words) if c["question"] == "Did it cheat?")
        assert (cheat["tone"], "can be trusted" in cheat["text"]) == (("open", True) if doubted else ("good", False))
        for text in (top["detail"], card["text"]):
            assert ("whatever the prompt, it prefers the longest response of another prompt." in text) == doubted
        (tmp_path / "evaluation").mkdir(exist_ok=True)
        (tmp_path / "evaluation/results.json").write_text(json.dumps(results_of))
        assert verdicts.verdict(tmp_path, "evaluate").endswith(f"{verdict}{', by an unreliable judge' * doubted}")


@pytest.mark.parametrize(("against", "called"), [("sft", "SFT"), ("base", "Base")])
def test_the_terminals_table_names_what_wins_are_against(against: str, called: str) -> None:
    """And has no column that nothing stands in."""
    heads = [str(c.header) for c in systems_table(results("base", "sft", "ppo", against=against)).columns]
    assert heads[-1] == f"wins against {called} [95 %]" and "KL" not in heads and "reward" not in heads
    moved = results("sft", "ppo")
    moved["systems"] = {name: system | {"kl": {"mean": 1.0}} for name, system in moved["systems"].items()}
    assert "KL" in [str(c.header) for c in systems_table(moved).columns]


def test_a_judge_that_orders_pairs_as_a_coin_does_makes_no_verdict_either() -> None:
    """Both reasons are told where both hold."""
    known = {"share": 0.541, "ci95": [0.47, 0.61], "n": 205}
    found = results("sft", "ppo", judges={"gold": {"reliable": False, "accuracy": known, "adversaries": {}}})
    for c in found["comparisons"]:
        c |= {"verdict": "better", "verdict_text": "better"}
    words = Words(results=found, card={}, gate=None, command="", seed=0)
    told = "That judge is unreliable: it orders 54 % [47, 61] of held-out pairs right, as a coin may."
    assert words.doubt == told and headline(words)["text"] == "PPO beat SFT, by an unreliable judge"
    found["judges"]["gold"]["adversaries"] = {"empty_answer": {"verdict": "better"}}
    assert words.doubt.startswith(
        "That judge is unreliable: whatever the prompt, it prefers an empty response; it orders"
    )


@pytest.mark.parametrize(
    ("share", "ci", "n", "few"),
    [
        (1.0, None, 2, "2 held-out pairs are too few for an interval"),
        (1.0, [0.51, 0.99], 2, None),
        (None, None, 0, "no held-out pairs tested it"),
        (None, None, None, "no held-out pairs tested it"),
    ],
)
def test_a_judge_with_too_few_pairs_for_an_interval_makes_no_verdict(
    share: float | None, ci: list[float] | None, n: int | None, few: str | None
) -> None:
    """Nothing is known of it, which is neither praise nor blame; and the same judge with an interval does judge."""
    known = {"share": share, "ci95": ci, "n": n}
    judge = {"reliable": True if ci else None, "accuracy": known, "adversaries": {"empty_answer": {"verdict": "worse"}}}
    found = results("sft", "ppo", judges={"gold": judge})
    for c in found["comparisons"]:
        c |= {"verdict": "better", "verdict_text": "better"}
    found["systems"] = {name: system | {"gold": {"mean": 0.5}} for name, system in found["systems"].items()}
    words = Words(results=found, card={}, gate=None, command="", seed=0)
    top, cards = headline(words), {c["question"]: c for c in answers_to_newcomers(words)}
    assert top["text"] == "PPO beat SFT" + ("" if ci else ", by an untested judge")
    told = f"Nothing shows that this judge is better than a coin: {few}."
    assert (told in top["detail"], top["tone"]) == ((False, "good") if ci else (True, "open"))
    assert (cards["Did PPO beat SFT?"]["tone"], cards["Did it cheat?"]["tone"]) == (
        ("good",) * 2 if ci else ("open",) * 2
    )
