"""Continued pretraining of an encoder, by hidden tokens: rows, losses against Transformers' own, and a run of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM, AutoTokenizer

from data.common.errors import UserError
from models.hub.spec import BaseModelSpec
from pipelines.export.stage import export_stage
from pipelines.run.pipeline import Pipeline
from stages import continued
from stages.continued import Losses, compared, judged
from stages.settings import ContinuedConfig
from stages.training.chunks import chunked, document_rows
from stages.training.masked import MaskedRow, MaskedTokens, masked_logprobs
from tests.support.encoders import ENCODERS, save_encoder
from tests.support.killed import killed_at
from tests.support.training import pretrain_context

TEXTS = [" ".join(f"w{(i + j) % 7} w{(i + j) % 7}" for j in range(3 + i % 6)) for i in range(50)]
CONFIG = ContinuedConfig(steps=20, batch=8, context=12, learning_rate=3e-3)
RECIPE: dict[str, Any] = {
    "name": "further",
    "data": {"documents": "documents.jsonl", "held_out": 0.4},
    "continued": {"steps": 6, "batch": 8, "context": 12, "learning_rate": 3e-3},
    "runtime": {"device": "cpu", "threads": 1},
}


def trained(folder: Path, family: str, config: ContinuedConfig = CONFIG) -> dict[str, Any]:
    save_encoder(folder / "given", family)
    (folder / "out").mkdir()
    context = pretrain_context(folder / "out", TEXTS[:25], TEXTS[25:])
    spec = BaseModelSpec(name="tiny", source=str(folder / "given"))
    return dict(continued.run(context, config, spec, torch.float32).metrics)


@pytest.mark.parametrize("family", ENCODERS)
def test_log_probabilities_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    """Rows of two lengths together, against one row at a time through plain Transformers."""
    lm = save_encoder(tmp_path, family)
    rows = [MaskedRow([1, 5, 40, 7, 2], [2, 3], [6, 7]), MaskedRow([1, 8, 40, 2], [2], [9])]
    expected = []
    for row in rows:
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        expected += [logits[place, target] for place, target in zip(row.places, row.targets, strict=True)]
    assert_close(masked_logprobs(lm, rows, torch.device("cpu")), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_rows_are_parts_of_a_text_between_the_tokenizers_own_ends(tmp_path: Path) -> None:
    """Five tokens where a row of five has room for three: two rows, of which none holds a token of the other."""
    save_encoder(tmp_path, "bert")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("w1 w2 w3 w4 zz", add_special_tokens=False)["input_ids"]
    assert tokenizer.bos_token_id is None and (tokenizer.cls_token_id, tokenizer.sep_token_id) == (1, 2)
    assert list(document_rows(tokenizer, ["w1 w2 w3 w4 zz", ""], 5, True)) == [[[1, *ids[:3], 2], [1, *ids[3:], 2]], []]
    counts = chunked(tokenizer, ["w1 w2 w3 w4 zz"], 5, encoder=True)[1]
    assert (counts.chunks, counts.several, counts.tokens, counts.unknown) == (2, 1, 5, 1)


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_the_losses_are_those_of_the_encoder_before_and_of_the_one_that_is_written(family: str, tmp_path: Path) -> None:
    found = trained(tmp_path, family)
    for suffix, folder in (("_before", tmp_path / "given"), ("", tmp_path / "out/model")):
        lm: Any = AutoModelForMaskedLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = [row for rows in document_rows(tokenizer, TEXTS[25:], 12, True) for row in rows]
        nats, count = 0.0, 0
        for row in MaskedTokens.of(tokenizer, 0).held_out(rows):
            with torch.no_grad():
                logprobs = lm(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
            for place, target in zip(row.places, row.targets, strict=True):
                nats, count = nats - float(logprobs[place, target]), count + 1
        assert found[f"held_out_masked_nll{suffix}"] == pytest.approx(nats / count, rel=1e-5)
    low, high = found["held_out_change_ci95"]
    assert low < found["held_out_change"] < high < 0 and "held_out_nll" not in found
    assert found["held_out_curves"]["base"]["unit"] == "nats a hidden token"
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "given", tmp_path / "out/model"))
    assert before.keys() == after.keys()
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert not [name for name in same if before[name].ndim == 2 and "position" not in name and "type" not in name]


def test_losses_are_compared_by_hand() -> None:
    """12 nats of 6 hidden tokens became 6: 2 and 1 a token, however many bytes there are."""
    before, after = (Losses(nats, (4, 2), (99, 1), hidden=True) for nats in ((8.0, 4.0), (4.0, 2.0)))
    found = compared(before, after)
    assert found == {"held_out_masked_nll_before": 2.0, "held_out_masked_nll": 1.0, "held_out_change": -1.0}
    assert "held-out loss 2 nats a hidden token before, 1 after" in judged(before, after, CONFIG)["text"]
    assert compared(Losses(), Losses(hidden=True)) == {"held_out_masked_nll_before": None, "held_out_masked_nll": None}


def test_an_encoder_without_a_mask_token_and_one_that_is_to_learn_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"continued\.added_vocabulary: base tiny is an encoder"):
        trained(tmp_path, "bert", CONFIG.model_copy(update={"added_vocabulary": 5}))
    (tmp_path / "more").mkdir()
    save_encoder(tmp_path / "more/given", "bert")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more/given")
    tokenizer.mask_token = None
    with pytest.raises(UserError, match=r"continued: base tiny is an encoder, .* has no mask token"):
        continued.masking_of("tiny", tokenizer, CONFIG, 0)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    save_encoder(tmp_path / "bert", "bert")
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return RECIPE | {
        "base": str(tmp_path / "bert"),
        "data": RECIPE["data"] | {"documents": f"{tmp_path}/documents.jsonl"},
    }


def manifest(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "continued/manifest.json").read_text())["metrics"])


def test_a_run_counts_as_its_plan_does_resumes_and_needs_no_export(recipe: dict[str, Any], tmp_path: Path) -> None:
    pipeline = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run")
    (plan,) = pipeline.plan()
    pipeline.run()
    for group in ("counts", "held_out_counts"):
        assert plan.details[group] == manifest(tmp_path / "run")[group]
    with killed_at(3):
        Pipeline.from_recipe(recipe, run_dir=tmp_path / "again").run()
    Pipeline.from_recipe(recipe, run_dir=tmp_path / "again").run()
    assert manifest(tmp_path / "again") == manifest(tmp_path / "run")
    weights = "continued/model/model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "run" / weights).read_bytes()
    with pytest.raises(UserError, match=r"continued/model: is an encoder, .*: take it as it is"):
        export_stage(tmp_path / "run", "continued", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_writes_does_not_stand_on_it(recipe: dict[str, Any], tmp_path: Path) -> None:
    more = recipe | {"stages": ["continued", "sft"]}
    more["data"] = recipe["data"] | {"demonstrations": "demo-task?rows=20"}
    with pytest.raises(UserError, match=r"is an encoder, .* writes no text.*train it further alone"):
        Pipeline.from_recipe(more, run_dir=tmp_path / "run").run()


def test_one_from_scratch_is_trained_further_in_one_recipe_and_carries_a_reward_model(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    shape = {"layers": 1, "width": 16, "feed_forward": 24, "heads": 2, "context": 12}
    scratch = {"objective": "masked", "tokenizer": "words", "vocabulary": 40, "steps": 3, "batch": 4, "model": shape}
    both = recipe | {"base": {"pretrain": scratch}, "stages": ["pretrain", "continued"]}
    Pipeline.from_recipe(both, run_dir=tmp_path / "encoder").run()
    first = json.loads((tmp_path / "encoder/pretrain/manifest.json").read_text())["metrics"]
    assert manifest(tmp_path / "encoder")["vocabulary"] == first["vocabulary"]
    rankings = [{"prompt": t, "chosen": "w1 w1 w2", "rejected": "w5"} for t in sorted(set(TEXTS))]
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rankings))
    ranked = {
        "name": "ranked", "base": {"pretrain": scratch | {"objective": "causal"}}, "template": "dialogue",
        "data": {"documents": f"{tmp_path}/documents.jsonl", "rankings": f"{tmp_path}/rankings.jsonl", "held_out": 0.3},
        "reward": {"base": f"{tmp_path}/encoder/continued/model", "epochs": 1, "batch": 8, "max_tokens": 12},
        "stages": ["pretrain", "reward"], "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    Pipeline.from_recipe(ranked, run_dir=tmp_path / "ranked").run()
    assert json.loads((tmp_path / "ranked/reward/manifest.json").read_text())["metrics"]["rankings"] > 0
