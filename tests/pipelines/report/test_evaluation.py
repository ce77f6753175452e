"""The report's tables of metrics, judges and harness tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipelines.report.evaluation import view
from pipelines.report.page import write_report
from tests.support.finished_run import Tags

RESULTS: dict[str, Any] = {
    "systems": {
        "sft": {"metrics": {"rougeL": {"mean": 0.25, "ci95": [0.2, 0.3]}, "bleu": 12.5, "bleu_signature": "nrefs:1"}},
        "ppo": {"metrics": {"bleu": 14.0, "by_label": {"yes": {"f1": 1.0}}, "references_n": 9}},
        "base": {},
    },
    "metric_comparisons": [
        {
            "a": "ppo",
            "b": "sft",
            "metric": "exact_match",
            "decoding": "greedy",
            "n": 60,
            "p_value": 0.004,
            "difference": {"mean": 0.125, "ci95": [0.0301, 0.22]},
            "p_value_holm": 0.012,
            "verdict": "higher",
            "verdict_text": "higher by 0.125 over 60 prompts",
        },
        {
            "a": "base",
            "b": "sft",
            "metric": "bleu",
            "decoding": "sampled",
            "n": 60,
            "p_value": 0.4,
            "difference": {"mean": -1.5, "ci95": None},
            "p_value_holm": 0.4,
            "verdict": "not shown",
        },
    ],
    "judges": {
        "gold": {"reliable": True, "adversaries": {"empty_answer": {"win_rate": 0.1, "ci95": [0.05, 0.2]}}},
        "gpt": {
            "reliable": False,
            "accuracy": {"share": 0.541, "ci95": [0.47, 0.61], "n": 205},
            "flip_rate": 0.25,
            "tokens": {"prompt": 4000, "completion": 300},
            "adversary_tokens": {"prompt": 200, "completion": 10},
            "adversaries": {"repeated_prompt": {"win_rate": 0.9, "ci95": [0.8, 0.95]}},
        },
    },
    "lm_eval": {"systems": {"ppo": {"arc": {"acc": {"value": 0.5, "stderr": 0.1}, "n": 40}}}},
}


def test_tables():
    found = view(RESULTS)
    assert found["metrics"]["columns"] == ["rougeL", "bleu"]
    assert [r["name"] for r in found["metrics"]["rows"]] == ["SFT", "PPO"]
    match, bleu = found["differences"]
    assert (match["metric"], match["a"], match["decoding"]) == ("exact match", "PPO", "greedy")
    assert (match["mean"], match["ci"], match["p"]) == ("+0.125", "[0.030, 0.220]", "0.012")
    assert (bleu["mean"], bleu["ci"], bleu["verdict"]) == ("-1.50", "", "not shown")
    gold, gpt = found["judges"]
    assert (
        gold["name"] == "the gold preference" and gold["adversaries"][0][0] == "empty response" and not gold["tokens"]
    )
    assert gpt["flip_rate"] == "25 %" and gpt["tokens"] == "4,510" and gpt["adversaries"][0][0] == "prompt repeated"
    assert (gpt["accuracy"], gpt["accuracy_ci"]) == ("54 %", "[47, 61]") and not gold["accuracy"]
    of_no_pair = {"reliable": None, "accuracy": {"share": None, "ci95": None, "n": 0}}
    (untested,) = view({"judges": {"reward": of_no_pair}})["judges"]
    assert (untested["reliable"], untested["accuracy"], untested["accuracy_ci"]) == (None, "", "")
    (row,) = found["harness"]
    assert (row["system"], row["task"], row["metric"], row["n"]) == ("PPO", "arc", "acc", 40) and "±" in row["error"]
    assert view({}) == {"metrics": {"columns": [], "rows": []}, "differences": [], "judges": [], "harness": []}


def test_they_are_in_the_page(run: Path, tmp_path: Path):
    folder = tmp_path / "demo"
    shutil.copytree(run, folder)
    path = folder / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    results["judges"] = RESULTS["judges"]
    results["lm_eval"] = RESULTS["lm_eval"]
    results["metric_comparisons"] = RESULTS["metric_comparisons"]
    results["systems"]["sft"]["metrics"] = RESULTS["systems"]["sft"]["metrics"]
    path.write_text(json.dumps(results), encoding="utf-8")
    text = Tags(write_report(folder).read_text(encoding="utf-8")).text
    shown = (
        "More metrics",
        "rougeL",
        "exact match",
        "lm-evaluation-harness",
        "arc",
        "May the judges be trusted?",
        "54 %",
    )
    for words in (*shown, "unreliable"):
        assert words in text, words
