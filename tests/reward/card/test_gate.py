"""The gate before PPO: shuffled labels are stopped, good ones pass, and every line says its name."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from data.common.errors import StageError
from data.records import RankedAnswers
from data.splits import Split
from pipelines.loading.load import load_recipe
from pipelines.stages.table import STAGES
from reward.card import gate as reward_gate
from reward.settings import GateConfig
from stages import reward_model
from stages.settings import RewardConfig
from tests.support.exits import exit_code_of
from tests.support.ppo import make_prompt
from tests.support.training import reward_context

TRAINING = RewardConfig(epochs=12, learning_rate=1e-2, batch=6, micro_batch=6, calibration_samples=16)


def rankings(count, first, shuffled):
    rng, out = random.Random(first), []
    for i in range(first, first + count):
        answers = (f"w{i % 9} w20 w20", f"w{i % 9} w20 w3", f"w{i % 9} w4 w3")
        ranks = rng.sample(range(3), 3) if shuffled else [0, 1, 2]
        prompt = make_prompt(f"w{i % 30} w{i // 30}")
        out.append(RankedAnswers(prompt=prompt, answers=answers, ranks=tuple(ranks)))
    return tuple(out)


def trained(tmp_path, shuffled):
    context = reward_context(tmp_path)
    split = Split(train=rankings(24, 0, shuffled), held_out=rankings(30, 30, shuffled))
    context = replace(context, corpus=replace(context.corpus, rankings=split))
    return reward_model.run(context, TRAINING)


def test_a_reward_model_of_shuffled_labels_is_stopped_and_a_good_one_passes(tmp_path, capsys):
    (tmp_path / "good").mkdir(), (tmp_path / "bad").mkdir()
    result = trained(tmp_path / "good", False)
    assert result.metrics["pair_accuracy"] > 0.8 and result.metrics["report_card"]["top1"] > 0.8
    reward_gate.require(tmp_path / "good", GateConfig(empty_response=0.0))
    trained(tmp_path / "bad", True)
    with pytest.raises(StageError, match=r"accuracy: held-out pair accuracy is 0\.[45]"):
        reward_gate.require(tmp_path / "bad", GateConfig())
    reward_gate.require(tmp_path / "bad", GateConfig(enabled=False))
    assert exit_code_of(lambda: reward_gate.require(tmp_path / "bad", GateConfig())) == 3
    said = capsys.readouterr().err
    assert "reward.gate" in said and "Traceback" not in said


def card(**changes):
    good = {"share": 0.8, "ci95": [0.75, 0.85]}
    return {
        "accuracy": good,
        "baselines": {"longest answer": {"share": 0.6}, "n-grams": {"share": 0.9}},
        "probes": {"empty response": {"share": 1.0, "ci95": [0.9, 1.0]}},
        "samples": {"std": 1.0, "of": "sft samples"},
    } | changes


@pytest.mark.parametrize(
    ("changes", "settings", "line"),
    [
        ({"accuracy": {"share": 0.55, "ci95": [0.49, 0.61]}}, {"beat_longest": False}, "accuracy"),
        ({"baselines": {"longest answer": {"share": 0.81}}}, {}, "beat_longest"),
        ({}, {"beat_ngrams": True}, "beat_ngrams"),
        ({"probes": {"empty response": {"share": 0.2, "ci95": [0.1, 0.3]}}}, {}, "empty_response"),
        ({"samples": {"std": 1e-5, "of": "sft samples"}}, {}, "score_std"),
    ],
)
def test_each_line(changes, settings, line):
    found = reward_gate.failures(card(**changes), GateConfig(**settings))
    assert len(found) == 1 and found[0].startswith(line + ":")


def test_what_cannot_be_measured_stops_nothing(tmp_path):
    assert not reward_gate.failures(card(), GateConfig())
    few = card(accuracy={"share": 0.3, "ci95": None}, probes={}, samples=None)
    assert not reward_gate.failures(few, GateConfig(beat_ngrams=True))
    reward_gate.require(tmp_path, GateConfig())  # a folder without a card
    (tmp_path / "report_card.json").write_text(json.dumps({}))
    reward_gate.require(tmp_path, GateConfig())


def test_the_gate_is_in_no_key_and_can_be_switched_off_in_a_word():
    base = {"base": "tiny-gpt2", "data": {"rankings": "r.jsonl"}, "stages": ["reward"]}
    off = load_recipe(base | {"reward": {"gate": "off"}})
    assert not off.reward.gate.enabled and not load_recipe(base, ["reward.gate=off"]).reward.gate.enabled
    strict = load_recipe(base, ["reward.gate.accuracy=0.7"])
    assert STAGES["reward"].settings(off) == STAGES["reward"].settings(strict)
