"""A ready classifier or a function pays a PPO run from one line of a recipe: through report card, probes and gate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from data.common.errors import GateStopped, UserError
from pipelines.report.run_files import read_run
from pipelines.run.pipeline import Pipeline
from tests.conftest import WORDS, tiny_lm, word_tokenizer

GOOD, BAD = "w5 w6", "w7 w8 w9"
PROMPTS = [f"w{a} w{b} w{c}" for a in range(1, 5) for b in range(1, 5) for c in range(1, 5)]


def train_classifier(folder: Path, sign: int = 1, labels: int = 1) -> None:
    """A sequence classifier that plain Transformers trains to like w5 and w6, and no other response."""
    config = AutoConfig.for_model(
        "llama", vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, num_labels=labels,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    model.config.pad_token_id = -1
    tokenizer = word_tokenizer(pad_is_eos=True)
    end = tokenizer.eos_token_id
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(150):
        prompt = PROMPTS[step * 7 % len(PROMPTS)]
        losses = []
        for answer, target in ((GOOD, 1.0), (BAD, -1.0), ("", -2.0)):
            ids = tokenizer(f"user : {prompt}\nassistant : {answer}", return_tensors="pt")["input_ids"]
            ids = torch.cat([ids, torch.tensor([[end]])], 1)
            losses.append((model(input_ids=ids).logits[0, -1] - sign * target) ** 2)
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ' : ' + m.content }}{{ '\\n' if not loop.last else '' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\nassistant :' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)


def make(folder: Path, sign: int = 1, **changes: Any) -> Pipeline:
    tiny_lm().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    train_classifier(folder / "rm", sign)
    shown = [{"prompt": prompt, "completion": (GOOD, BAD)[n % 2]} for n, prompt in enumerate(PROMPTS)]
    ranked = [{"prompt": row["prompt"], "chosen": GOOD, "rejected": BAD} for row in shown]
    for name, rows in (("d", shown), ("r", ranked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = {
        "base": "./base",
        "template": "dialogue",
        "stages": ["sft", "ppo"],
        "data": {"demonstrations": "d.jsonl", "rankings": "r.jsonl", "held_out": 0.5},
        "adapter": {"rank": 4, "alpha": 8},
        "sft": {"learning_rate": 1e-2, "batch": 8},
        "ppo": {
            "reward": "./rm",
            "value": {"init": "sft"},
            "updates": 2,
            "rollouts": 8,
            "max_new_tokens": 6,
            "epochs": 1,
        },
        "runtime": {"device": "cpu", "threads": 1},
    }
    recipe["ppo"] = recipe["ppo"] | changes  # type: ignore[operator]
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run")


def test_a_ready_classifier_pays_through_card_and_gate(tmp_path: Path) -> None:
    pipeline = make(tmp_path)
    pipeline.run()
    card = json.loads((tmp_path / "run/ppo/report_card.json").read_text())
    assert card["accuracy"]["share"] == 1.0 and card["rankings"] == card["held_out"]["of"] >= 20
    assert card["probes"]["empty response"]["share"] == 1.0
    assert (tmp_path / "run/ppo/adapter").is_dir()
    assert read_run(tmp_path / "run").card["accuracy"]["share"] == 1.0
    key = json.loads((tmp_path / "run/ppo/manifest.json").read_text())["described"]
    assert list(key["classifiers"]) == ["./rm"]
    assert all(plan.status == "cached" for plan in pipeline.plan())
    train_classifier(tmp_path / "rm", sign=-1)  # another classifier: what it paid for is not what this one would
    again = Pipeline.from_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run")
    assert {plan.name: plan.status == "cached" for plan in again.plan()} == {"sft": True, "ppo": False}


def test_what_an_exported_model_s_limit_cuts_is_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts have 7 tokens with their marks, the better response 3 and the worse 4."""
    pipeline = make(tmp_path)
    scoring = {"max_tokens": 10, "stop_ids": [WORDS.index("<eos>")], "add_to_classifier": 0.0}
    (tmp_path / "rm/scoring.json").write_text(json.dumps(scoring))
    pipeline.run()
    card = json.loads((tmp_path / "run/ppo/report_card.json").read_text())
    told = re.search(r"on the rankings of its report card: \./rm: of (\S+) of (\S+) responses", capsys.readouterr().out)
    assert told is not None and card["held_out"]["of"] <= int(told[1]) < int(told[2])
    lines = (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "objective/scores" in row]
    longer = [row["rollout/scored_cut_fraction"] for row in rows]
    assert len(longer) == 2 and all(0 < share <= 1 and share * 8 == round(share * 8) for share in longer)


def test_a_classifier_that_prefers_the_worse_stops_at_the_gate(tmp_path: Path) -> None:
    pipeline = make(tmp_path, sign=-1)
    with pytest.raises(GateStopped, match=r"(?s)accuracy: held-out pair accuracy is 0\.000.*label and the sign"):
        pipeline.run()
    stages = json.loads((tmp_path / "run/run.json").read_text())["stages"]
    assert stages["ppo"]["status"] == "stopped at the gate"
    assert not (tmp_path / "run/ppo").exists()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"source": "./rm", "label": "good"}, r"ppo\.reward: label good: .*no such label"),
        ({"source": "./base"}, r"ppo\.reward: \./base: is no sequence classifier"),
        ({"source": "./rn"}, r"ppo\.reward: .*there is no such folder"),
    ],
)
def test_what_cannot_pay_is_told_before_the_first_stage(tmp_path: Path, reward, message) -> None:
    pipeline = make(tmp_path, reward=[reward])
    with pytest.raises(UserError, match=message):
        pipeline.run()
    assert not (tmp_path / "run/sft").exists()


def test_a_template_that_cannot_be_used_is_told_before_the_first_stage(tmp_path: Path) -> None:
    pipeline = make(tmp_path)
    tokenizer = word_tokenizer(pad_is_eos=True)
    tokenizer.chat_template = (
        "{{ 'w1' if add_generation_prompt else 'w2' }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "rm")
    with pytest.raises(UserError, match=r"ppo\.reward: template .*is not a prefix"):
        pipeline.run()
    assert not (tmp_path / "run/sft").exists()


FUNCTIONS = """
def liked(prompts, completions):
    return [float(text == "w5 w6") - (not text) for text in completions]

def disliked(prompts, completions):
    return [-value for value in liked(prompts, completions)]

def known(prompts, completions, answer):
    return [float(text == right) for text, right in zip(completions, answer)]

def known_of_all(prompts, completions, **columns):
    return [float(text == right) for text, right in zip(completions, columns["answer"])]
"""


def paid_by(folder: Path, function: str, **changes: Any) -> Pipeline:
    """PPO paid by a function alone; prompts have a column that rankings lack."""
    make(folder, reward=f"pays.py:{function}")
    (folder / "pays.py").write_text(FUNCTIONS)
    asked = [{"prompt": f"{prompt} w9", "answer": GOOD} for prompt in PROMPTS]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, asked)) + "\n")
    recipe = json.loads((folder / "recipe.yaml").read_text())
    recipe["data"] |= {"prompts": "p.jsonl"}
    (folder / "recipe.yaml").write_text(json.dumps(recipe | changes))
    return Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run")


def test_a_function_pays_through_card_and_gate(tmp_path: Path) -> None:
    paid_by(tmp_path, "liked").run()
    card = json.loads((tmp_path / "run/ppo/report_card.json").read_text())
    assert card["accuracy"]["share"] == 1.0 and card["rankings"] == card["held_out"]["of"] >= 20
    assert card["probes"]["empty response"]["share"] == 1.0
    assert read_run(tmp_path / "run").card["accuracy"]["share"] == 1.0
    assert (tmp_path / "run/ppo/adapter").is_dir()


def test_a_function_that_prefers_the_worse_stops_at_the_gate(tmp_path: Path) -> None:
    with pytest.raises(GateStopped, match=r"accuracy: held-out pair accuracy is 0\.000"):
        paid_by(tmp_path, "disliked").run()
    assert not (tmp_path / "run/ppo").exists()
    paid_by(tmp_path, "disliked", reward={"gate": {"enabled": False}}).run()
    assert (tmp_path / "run/ppo/adapter").is_dir()


@pytest.mark.parametrize("function", ["known", "known_of_all"])
def test_a_function_of_columns_that_rankings_lack_pays_unexamined_and_says_so(
    tmp_path: Path, function: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = paid_by(tmp_path, function)
    pipeline.run()
    told = capsys.readouterr().out
    assert ("ppo.reward: gets no report card on data.rankings" in told) == (function == "known")  # before any stage
    assert re.search(r"nobody has examined the reward on data\.rankings, and the gate is not asked: .*'answer'", told)
    assert not (tmp_path / "run/ppo/report_card.json").exists() and (tmp_path / "run/ppo/adapter").is_dir()


def test_rankings_of_which_no_pair_is_left_let_ppo_go_on_unexamined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both responses are the same tokens: there is a held-out ranking, and nothing to judge the reward by."""
    paid_by(tmp_path, "liked")
    alike = [{"prompt": prompt, "chosen": GOOD, "rejected": GOOD.replace(" ", "  ")} for prompt in PROMPTS]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, alike)) + "\n")
    Pipeline.from_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run").run()
    told = capsys.readouterr().out
    assert re.search(r"nobody has examined the reward on data\.rankings, and the gate is not asked: no held-out", told)
    assert not (tmp_path / "run/ppo/report_card.json").exists() and (tmp_path / "run/ppo/adapter").is_dir()


def test_a_classifier_without_rankings_pays_unexamined_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    del recipe["data"]["rankings"]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    Pipeline.from_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run").run()
    assert "nobody has examined the reward: there are no held-out rankings" in capsys.readouterr().out
