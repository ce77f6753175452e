"""The chain of examples/real_model on SmolLM2-135M-Instruct, cut to a few steps: every stage runs and is measured."""

from __future__ import annotations

import gzip
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.real_runs import (
    EXAMPLES,
    assert_base_as_it_was,
    assert_measured,
    example_module,
    metrics,
    need,
    results,
    run,
)

pytestmark = [pytest.mark.real_data, pytest.mark.slow]
MODEL = EXAMPLES / "real_model" / "SmolLM2-135M-Instruct"
CUT = [
    "sft.epochs=1",
    "sft.max_tokens=128",
    "sft.held_out_rows=8",
    "reward.epochs=1",
    "reward.max_tokens=128",
    "reward.batch=4",
    "reward.held_out_rows=8",
    "reward.calibration_samples=8",
    "reward.gate=off",
    "ppo.updates=2",
    "ppo.rollouts=8",
    "ppo.max_new_tokens=24",
    "ppo.max_prompt_tokens=128",
    "ppo.holdout_every=1",
    "ppo.holdout_prompts=4",
    "evaluation.prompts=8",
    "evaluation.systems=[base, sft, best_of_2, ppo]",
    "evaluation.bootstrap=100",
]


@pytest.fixture(scope="module", autouse=True)
def model() -> Path:
    if not (MODEL / "config.json").is_file():
        pytest.skip("SmolLM2-135M-Instruct is not there: make real-model")
    return MODEL


def test_the_converted_model_talks_ends_and_knows_its_template(model: Path) -> None:
    """Beyond ``fetch_model.py``'s own check: tied, in bf16, a digit a token, English likelier than backwards."""
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    assert lm.dtype == torch.bfloat16 and lm.config.tie_word_embeddings
    assert sum(p.numel() for p in lm.parameters()) == 134_515_008
    assert len(tokenizer("12345", add_special_tokens=False)["input_ids"]) == 5
    said: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert said.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    sentence = "The sun rises in the east and sets in the west every single day of the year."
    nats = []
    for text in (sentence, " ".join(reversed(sentence.split()))):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            nats.append(lm(ids, labels=ids).loss.item())
    assert nats[0] < 3 and nats[0] + 2 < nats[1]


def test_sft_reward_model_and_ppo_on_public_files(shared: Path, tmp_path: Path) -> None:
    rows = json.loads(need(shared, "data/raw/alpaca_en_demo.json").read_text(encoding="utf-8"))
    short = tmp_path / "short.json"
    short.write_text(json.dumps([row for row in rows if len(row["output"]) <= 200][:60]), encoding="utf-8")
    pairs = tmp_path / "pairs.json"
    some = json.loads(need(shared, "data/raw/dpo_en_demo.json").read_text(encoding="utf-8"))
    pairs.write_text(json.dumps(sorted(some, key=lambda row: len(json.dumps(row)))[:60]), encoding="utf-8")
    asked = need(shared, "data/raw/user_oriented_instructions.jsonl")
    sources = [f"data.demonstrations={short}", f"data.rankings={pairs}", f"data.prompts=[{short}, {asked}]"]
    pipeline = run("real_model/chain.yaml", [*sources, *CUT], tmp_path)
    found, reward, ppo = results(pipeline), metrics(pipeline, "reward"), metrics(pipeline, "ppo")
    assert list(found["systems"]) == ["base", "sft", "best_of_2", "ppo"] and found["prompts"] == 8
    assert found["judge"] == "held_out_reward"  # from other prompts than the one that PPO optimised
    assert reward["rankings"] > 0 and reward["watcher"]["rankings"] > 0
    assert_measured(reward)
    assert [e["update"] for e in ppo["holdout"]["evaluations"]] == [0, 1, 2]
    for system in found["systems"].values():
        for rule in ("whole", "brief", "unrepeated", "clean"):
            assert 0 <= system["metrics"][rule]["mean"] <= 1
        assert 1 < system["metrics"]["base_perplexity"] < 200  # English to the base, cut as it is
        assert math.isfinite(system["held_out_reward"]["mean"])
    assert found["systems"]["sft"]["kl"]["mean"] == 0 and found["systems"]["base"]["kl"]["mean"] > 0
    assert_base_as_it_was(pipeline)


def test_reward_model_and_ppo_on_dialogues_of_hh(shared: Path, tmp_path: Path) -> None:
    """Dialogues as rankings and as prompts, no SFT: the base is what PPO starts from and is compared with."""
    with gzip.open(need(shared, "data/raw/hh_harmless_base.jsonl.gz"), "rt", encoding="utf-8") as lines:
        rows = sorted(islice(lines, 400), key=len)[:80]
    (tmp_path / "hh.jsonl").write_text("".join(rows), encoding="utf-8")
    kept = [setting for setting in CUT if not setting.startswith(("sft.", "evaluation.systems"))]
    sources = [f"data.{part}={tmp_path / 'hh.jsonl'}" for part in ("rankings", "prompts")]
    pipeline = run("real_model/harmless.yaml", [*sources, *kept, "evaluation.systems=[base, ppo]"], tmp_path)
    found, reward = results(pipeline), metrics(pipeline, "reward")
    assert list(found["systems"]) == ["base", "ppo"] and found["judge"] == "held_out_reward"
    assert reward["rankings"] > 0 and reward["watcher"]["rankings"] > 0
    assert_measured(reward)
    assert found["systems"]["base"]["kl"]["mean"] == 0
    assert_base_as_it_was(pipeline)


def test_ppo_against_a_rule_alone(shared: Path, tmp_path: Path) -> None:
    rows = json.loads(need(shared, "data/raw/alpaca_en_demo.json").read_text(encoding="utf-8"))[:80]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    example_module("real_model/constraints.py").main(tmp_path / "a.json", tmp_path / "c.jsonl")
    kept = [setting for setting in CUT if setting.startswith("ppo.") and "holdout" not in setting]
    rest = ["evaluation.prompts=8", "evaluation.bootstrap=100", f"data.prompts={tmp_path / 'c.jsonl'}"]
    pipeline = run("real_model/rule.yaml", [*kept, *rest], tmp_path)
    found = results(pipeline)
    assert found["judge"] == "gold" and list(found["systems"]) == ["base", "ppo"]
    for system in found["systems"].values():
        assert 0 <= system["gold"]["mean"] <= 1
    assert_base_as_it_was(pipeline)
