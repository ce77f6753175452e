"""Alpaca's instructions, and scored answers of seven models turned into demonstrations and rankings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.real_runs import assert_base_as_it_was, assert_measured, lines, metrics, need, run, some_of

pytestmark = pytest.mark.real_data
ALPACA, VICUNA = "data/raw/alpaca_en_demo.json", "data/raw/vicuna80_scored_answers.jsonl"


def test_sft_and_reward_model_on_alpaca_and_scored_answers(shared: Path, tmp_path: Path) -> None:
    rows = json.loads(need(shared, ALPACA).read_text(encoding="utf-8"))[:80]
    alpaca = some_of(Path("alpaca.json"), [json.dumps(rows)], tmp_path)
    vicuna = need(shared, VICUNA)
    scored = [json.loads(line) for line in lines(vicuna)]
    pipeline = run(
        "alpaca_vicuna.yaml",
        [
            f"data.demonstrations=[{alpaca}, {vicuna}]",
            f"data.rankings={vicuna}",
            "data.held_out=0.2",
            f"base={need(shared, 'models/TinyStories-656K')}",
            "sft.max_tokens=192",
            "reward.max_tokens=128",
            "reward.calibration_samples=16",
        ],
        tmp_path,
    )
    corpus = pipeline.corpus
    scored = [row for row in scored if len(row["answers"]) > 1]
    best = {row["prompt"]: max(a["score"] for a in row["answers"]) for row in scored}
    assert len(corpus.demonstrations) == 80 + len(scored) and len(corpus.rankings) == len(scored) == 77
    for ranking in (*corpus.rankings.train, *corpus.rankings.held_out):
        assert ranking.scores is not None
        for i, j in ranking.pairs:
            assert ranking.scores[i] > ranking.scores[j]  # ties are no pairs
    assert any(len(set(r.ranks)) < len(r.ranks) for r in corpus.rankings.train)
    shown = {d.prompt.text: d.answer for d in (*corpus.demonstrations.train, *corpus.demonstrations.held_out)}
    for row in scored:  # the demonstration is an answer with the best score
        assert best[row["prompt"]] == max(
            a["score"] for a in row["answers"] if a["text"].strip() == shown[row["prompt"]]
        )
    sft, reward = metrics(pipeline, "sft"), metrics(pipeline, "reward")
    assert sft["rows"] == len(corpus.demonstrations.train) and sft["dropped"] == 0
    assert 0 < sft["held_out_nll"] < 7.6  # ln 2048, the cost of knowing nothing
    assert reward["rankings"] + reward["dropped"] == len(corpus.rankings.train)
    assert_measured(reward)
    assert_base_as_it_was(pipeline)
