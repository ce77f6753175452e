"""The reward model's section of the report, and what the comparisons say after Holm and at equal length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.report import reward_card as report_reward
from pipelines.report.page import view, write_report
from pipelines.report.reward_card import merged
from pipelines.report.run_files import read_run
from tests.support.finished_run import RECIPE, Tags, embedded, make_run, report_card

SHARE = {"share": 0.75, "ci95": [0.7, 0.8], "n": 1200, "prompts": 200}
HAND = {
    "rankings": 200,
    "accuracy": SHARE,
    "ceiling": {"share": 0.9, "n": 1200, "reached": 0.8},
    "slices": {"length": {"better is longer": SHARE | {"share": 0.8}, "better is shorter": SHARE | {"share": 0.5}}},
    "top1": SHARE | {"share": 0.6, "chance": 0.25},
    "calibration": {
        "temperature": 1.5,
        "before": {"error": 0.07, "nll": 0.5, "bins": [{"from": 0.5, "n": 9, "confidence": 0.52, "right": 0.4}]},
        "after": {"error": 0.02, "nll": 0.5, "bins": []},
    },
    "length": {
        "score_per_token": 0.0125,
        "correlation": 0.131,
        "longer_wins": SHARE | {"share": 0.55},
        "longer_is_better": SHARE | {"share": 0.5},
    },
    "baselines": {"longest answer": SHARE | {"share": 0.51}},
    "probes": {"empty response": SHARE | {"share": 0.99, "ci95": None}},
    "samples": {"of": "SFT samples", "n": 64, "mean": 0.0, "std": 1.25, "quantiles": {}},
    "warnings": ["it prefers damaged responses"],
}  # fmt: skip


def test_every_number_of_a_card_by_hand():
    shown = report_reward.view(HAND, None)
    assert shown["tone"] == "open" and shown["text"] == "Better than chance"
    assert shown["detail"] == "It orders 75 % of 1,200 held-out pairs as the labels do [70, 80]."
    assert shown["warnings"] == ["It prefers damaged responses."]
    assert shown["facts"] == {
        "Pair accuracy": "75 % [70, 80]",
        "Labels that agree with the annotator's scores": "90 %",
        "Accuracy as a share of those": "80 %",
        "Best response scored highest": "60 % [70, 80], chance 25 %",
        "Calibration error, before → after scaling": "7 % → 2 %",
        "Temperature": "1.50",
        "Score for 100 tokens more": "+1.25",
        "Correlation of score and length": "0.131",
        "Longer response wins": "55 % [70, 80], by the labels 50 %",
        "Standard deviation of scores over SFT samples": "1.25",
    }
    assert shown["slices"][1] == {
        "by": "length", "name": "better is shorter", "share": "50 %", "ci": "[70, 80]", "pairs": 1200,
    }  # fmt: skip


def test_the_figures_hold_the_cards_shares_and_intervals():
    charts = {c["title"]: c for c in report_reward.figures(HAND)}
    assert list(charts) == ["Accuracy", "Damaged responses", "Calibration", "Accuracy by kind of pair"]
    bars = charts["Accuracy"]["data"][0]
    assert bars["y"] == ["this model ", "longest response "] and bars["x"] == [75.0, 51.0]
    assert bars["error_x"]["array"][0] == pytest.approx(5) and bars["error_x"]["arrayminus"][0] == pytest.approx(5)
    assert charts["Damaged responses"]["data"][0]["error_x"]["array"] == [0.0]  # no interval, no bar
    (only,) = charts["Calibration"]["data"]  # nothing to draw after scaling
    assert (only["x"], only["y"]) == ([52.0], [40.0])
    assert charts["Accuracy by kind of pair"]["data"][0]["x"] == [80.0, 50.0]


@pytest.mark.parametrize(
    ("ci", "tone", "text"),
    [
        ([0.81, 0.9], "good", "Better than chance"),
        ([0.45, 0.6], "bad", "Not shown to be better than chance"),
        ([0.1, 0.3], "bad", "Worse than chance"),
        (None, "open", "Too few held-out prompts to judge it"),
    ],
)
def test_words_claim_no_more_than_the_interval(ci: Any, tone: str, text: str):
    shown = report_reward.view(HAND | {"accuracy": SHARE | {"ci95": ci}}, None)
    assert (shown["tone"], shown["text"]) == (tone, text)


def test_the_gate_is_the_one_that_stops_ppo():
    passed = report_reward.gate_outcome(report_card(), RECIPE)
    assert passed == {"state": "passed", "lines": []}
    few = report_card() | {"accuracy": report_card()["accuracy"] | {"ci95": None}}
    assert report_reward.gate_outcome(few, RECIPE) == {"state": "accuracy not judged", "lines": []}
    failed = report_reward.gate_outcome(report_card(skill=0.0), RECIPE)
    assert failed and failed["state"] == "failed" and failed["lines"][0].startswith("accuracy: held-out pair accuracy")
    assert report_reward.view(report_card(skill=0.0), failed)["tone"] == "bad"
    off = RECIPE.replace("{enabled: true, accuracy: 0.5}", "{enabled: false}")
    assert report_reward.gate_outcome(report_card(), off) == {"state": "off", "lines": []}
    by_rule = RECIPE + "  reward: [{source: length}]\n"
    for nothing in ("", "name: x\n", "reward: 3\n", "a: [", RECIPE.replace("accuracy", "unheard_of"), by_rule):
        assert report_reward.gate_outcome(report_card(), nothing) is None


def test_the_page_has_the_section(page: str):
    text = Tags(page).text
    place = text.index("Gate before PPO: passed")
    assert text.index("All comparisons") < place < text.index("Policy change an update")
    for part in ("Labels that agree", "Score for 100 tokens more", "happy story category", "centre"):
        assert (part in text) == (part != "Labels that agree"), part  # this card has no annotator's scores
    titles = {c["title"] for c in embedded(page, "charts")}
    assert {"Accuracy", "Damaged responses", "Calibration", "Accuracy by kind of pair"} <= titles


def test_a_run_without_the_card_shows_what_the_manifest_says(tmp_path: Path):
    summary = {"top1": 0.6, "calibration_error": 0.07, "temperature": 1.5, "longer_wins": 0.55,
               "baselines": {"n-grams": 0.66}, "probes": {"empty response": 0.99}, "card_warnings": []}  # fmt: skip
    metrics = {"pair_accuracy": 0.75, "pair_accuracy_ci95": [0.7, 0.8], "pairs": 1200, "report_card": summary}
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "manifest.json").write_text(json.dumps({"metrics": metrics}), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    text = Tags(page).text
    assert "It orders 75 % of 1,200 held-out pairs" in text and "Gate" not in text and "None" not in text
    assert [c["title"] for c in embedded(page, "charts")] == ["Accuracy", "Damaged responses"]
    assert embedded(page, "charts")[0]["data"][0]["x"] == [75.0, 66.0]


@pytest.mark.parametrize("content", ["{", '{"accuracy": 3}', '{"accuracy": {}, "baselines": {"a": 1}}'])
def test_a_damaged_card_is_noted_and_left_out(run: Path, tmp_path: Path, content: str):
    shutil.copytree(run, tmp_path / "demo")
    (tmp_path / "demo" / "reward" / "report_card.json").write_text(content, encoding="utf-8")
    found = view(read_run(tmp_path / "demo"))
    assert found["card"] is None and found["figures"]["card"] == []
    assert len(found["notes"]) == 1 and "reward/report_card.json" in found["notes"][0]


def test_hostile_names_in_a_card_stay_text(tmp_path: Path):
    run = make_run(tmp_path / "demo", n=24)
    evil = "</script><img src=x onerror=alert(1)>"
    card = report_card() | {"warnings": [evil]}
    card["slices"]["category"][evil] = SHARE
    card["baselines"][evil] = card["probes"][evil] = SHARE
    (run / "reward" / "report_card.json").write_text(json.dumps(card), encoding="utf-8")
    path = run / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    results["comparisons"][0]["length_controlled"] = {"win_rate": 0.4, "ci95": None, "note": f'"{evil}'}
    path.write_text(json.dumps(results), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "<img" not in page and sum(tag == "script" for tag, _ in Tags(page).tags) == 5
    assert any(evil in (a.get("title") or "") for _, a in Tags(page).tags)
    bars = next(c for c in embedded(page, "charts") if c["title"] == "Accuracy")["data"][0]
    assert bars["y"][-1].startswith("&lt;/script&gt;")  # plotly reads markup in labels


def test_comparisons_show_holm_and_equal_length(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    path = tmp_path / "demo" / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    first, second, *rest = results["comparisons"]
    first |= {"p_value": 0.012, "p_value_holm": 0.024, "length_controlled": {"win_rate": 0.61, "ci95": [0.52, 0.69]}}
    second |= {"length_controlled": {"win_rate": 0.7, "ci95": None, "note": "equal lengths would be a guess"}}
    del second["p_value_holm"]
    for old in rest:  # results of an older version
        del old["p_value_holm"], old["length_controlled"]
    path.write_text(json.dumps(results), encoding="utf-8")
    rows = view(read_run(tmp_path / "demo"))["comparisons"]
    assert (rows[0]["p"], rows[0]["p_holm"]) == ("0.012", "0.024")
    assert (rows[0]["fair"], rows[0]["fair_ci"]) == ("61 %", "[52, 69]")
    assert (rows[1]["p_holm"], rows[1]["fair"], rows[1]["fair_ci"]) == ("", "70 %", "")
    assert rows[2]["fair"] == "" and rows[2]["p_holm"] == ""
    text = Tags(write_report(tmp_path / "demo").read_text(encoding="utf-8")).text
    assert "61 %[52, 69]0.0120.024" in text
    assert "70 %no interval" in text and text.count("equal lengths would be a guess") == 1


def test_bins_of_the_calibration_hold_ten_pairs():
    """By hand: 4 and 6 become 10, at (4 x 0.5 + 6 x 1) / 10; the last 3 go to the 20 before them."""
    bins = [
        {"n": 4, "confidence": 0.55, "right": 0.5},
        {"n": 6, "confidence": 0.65, "right": 1.0},
        {"n": 20, "confidence": 0.8, "right": 0.9},
        {"n": 3, "confidence": 0.95, "right": 0.0},
    ]
    found = merged(bins)
    assert [b["n"] for b in found] == [10, 23]
    assert found[0]["right"] == pytest.approx(0.8) and found[0]["confidence"] == pytest.approx(0.61)
    assert found[1]["right"] == pytest.approx(18 / 23)
    assert [b["n"] for b in merged(bins[:1])] == [4]
