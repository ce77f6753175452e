"""What a quantised export loses is measured, said and written down; the numbers are those of plain Transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.hub.gguf_base import import_gguf
from pipelines.cli.main import main
from pipelines.export.quantised_loss import sentences
from pipelines.export.stage import export_stage
from pipelines.run.pipeline import Pipeline
from tests.support.gguf import byte_tokenizer, sized

pytest.importorskip("gguf")


def run_of(folder: Path, width: int = 64, **more: Any) -> Pipeline:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    pad = tokenizer.pad_token_id
    sized("llama", tokenizer, hidden_size=width, initializer_range=0.1, pad_token_id=pad).save_pretrained(
        folder / "base"
    )
    tokenizer.save_pretrained(folder / "base")
    shown = [{"prompt": f"tell {n}", "completion": f"a fox and {n} whales"} for n in range(24)]
    ranked = [{"prompt": f"say {n}", "chosen": f"a fox {n}", "rejected": f"no {n}"} for n in range(12)]
    for name, rows in (("d", shown), ("r", ranked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: dict[str, Any] = {
        "name": "foxes",
        "base": str(folder / "base"),
        "stages": ["sft", "reward"],
        "data": {"demonstrations": str(folder / "d.jsonl"), "rankings": str(folder / "r.jsonl"), "held_out": 0.25},
        "adapter": {"rank": 4, "alpha": 8},
        "sft": {"epochs": 4, "learning_rate": 3e-3, "batch": 8},
        "reward": {"batch": 4, "max_tokens": 64, "calibration_samples": 8},
        "evaluation": {"max_new_tokens": 8, "bootstrap": 100},
        "runtime": {"device": "cpu", "threads": 1, "dtype": "float32"},
    }
    made = Pipeline.from_recipe(recipe | more, run_dir=folder / "run")
    made.run()
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return run_of(tmp_path_factory.mktemp("quantised"))


def perplexity(lm: Any, rows: list[tuple[list[int], list[int]]]) -> float:
    """exp of the nats a token of responses, one row at a time."""
    nats, count = 0.0, 0
    for query, response in rows:
        with torch.no_grad():
            logprobs = lm(torch.tensor([query + response])).logits[0].double().log_softmax(-1)
        nats -= sum(logprobs[len(query) - 1 + i, token].item() for i, token in enumerate(response))
        count += len(response)
    return math.exp(nats / count)


def test_the_loss_is_said_and_in_the_card_and_is_that_of_the_file(
    run: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "small"
    assert main(["export", str(run.run_dir), "--stage", "sft", "--to", str(to), "--gguf", "q4_0"]) == 0
    told, card = capsys.readouterr().err, (to / "README.md").read_text()
    assert sorted(f.name for f in to.iterdir()) == ["Modelfile", "README.md", "model.gguf"]
    assert [f.name for f in tmp_path.iterdir()] == ["small"]
    renderer = run.loaded.renderer()
    held = {d.prompt.messages: d.answer for d in run.corpus.demonstrations.held_out}
    held |= {r.prompt.messages: r.answers[r.ranks.index(0)] for r in run.corpus.rankings.held_out}
    asked = [p for p in run.corpus.prompts.held_out if p.messages in held]
    assert len(asked) >= 4
    rows = []
    for prompt in asked:
        found = renderer.prompt_and_answer(prompt.messages, held[prompt.messages], True, max_tokens=200)
        rows.append((list(found[0]), list(found[1])))
    exact = AutoModelForCausalLM.from_pretrained(export_stage(run.run_dir, "sft", tmp_path / "whole", merge=True))
    import_gguf(to / "model.gguf", tmp_path / "read")
    before, after = perplexity(exact, rows), perplexity(AutoModelForCausalLM.from_pretrained(tmp_path / "read"), rows)
    assert abs(after / before - 1) > 1e-3  # four bits do something
    line = next(text for text in told.splitlines() if "perplexity" in text)
    said = [float(word.strip(",")) for word in line.split() if word.strip(",").replace(".", "").isdigit()]
    assert said == pytest.approx([after, before], rel=2e-3)
    assert "greedy responses to" in told and "by reward, greedy" in told and "`sft`" in told
    assert "What quantising lost, evaluated at the export:" in card
    for text in told.splitlines():
        assert not text.startswith("q4_0:") or f"- {text}" in card
    assert "Embeddings and output layer are of the type `q8_0`." in card


def test_a_run_that_holds_nothing_out_says_that_the_loss_is_not_known(tmp_path: Path) -> None:
    none = {"stages": ["sft"], "data": {"demonstrations": str(tmp_path / "d.jsonl"), "held_out": 0.0}}
    made = run_of(tmp_path, width=48, **none)
    told: list[str] = []
    to = export_stage(made.run_dir, "sft", tmp_path / "small", gguf="q8_0", say=told.append)
    assert any("What q8_0 loses is not known: the run holds out no prompts" in text for text in told)
    assert "What q8_0 loses is not known" in (to / "README.md").read_text()
    # rows of 48 numbers are no whole blocks of 32
    assert any("matrices have rows that are no multiple of 32 numbers, and are fp16" in text for text in told)


def test_the_sentences_by_hand() -> None:
    systems = {"sft": {"metrics": {"perplexity": 4.0}}, "q4_0": {"metrics": {"perplexity": 5.0}}}
    compared = {
        "a": "q4_0",
        "b": "sft",
        "by": "reward",
        "decoding": "greedy",
        "win_rate": 0.375,
        "n": 4,
        "wins": 1,
        "ties": 1,
        "losses": 2,
        "ci95": None,
    }
    said = [("x", "x"), ("y", "z"), ("u", "u"), ("v", "w")]
    rows = [{"decoding": "greedy", "systems": {"sft": {"response": a}, "q4_0": {"response": b}}} for a, b in said]
    rows += [{"decoding": "sampled", "systems": {"sft": {"response": "a"}, "q4_0": {"response": "b"}}}]
    found = sentences({"systems": systems, "comparisons": [compared]}, rows, "sft", "q4_0")
    assert found == [
        "q4_0: perplexity of the held-out responses is 5.00, and 4.00 before quantising (+25 %).",
        "q4_0: greedy responses to 50 % of 4 held-out prompts stay the same.",
        "q4_0: wins 37.5 % of 4 prompts (too few prompts for an interval) against `sft` by reward, greedy (1 wins, "
        "1 ties, 2 losses).",
    ]
    del systems["sft"]["metrics"], rows[:4]
    assert sentences({"systems": systems}, rows, "sft", "q4_0") == [
        "q4_0: no perplexity, since the held-out prompts have no responses to evaluate it on."
    ]
