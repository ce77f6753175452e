"""Masked language modelling: which tokens are hidden, the loss against Transformers' own, and the stage as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from data.common.errors import UserError
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import generator
from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from stages import pretrain
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import PretrainConfig
from stages.training.masked import MaskedRow, MaskedTokens, hide, masked_nll
from stages.training.next_token import backward
from tests.support.recipes import RECIPE
from tests.support.training import pretrain_context

SPECIAL, MASK = frozenset({0, 1, 2, 3, 4}), 4
ORDINARY = range(5, 40)
SHAPE = {"layers": 2, "width": 32, "feed_forward": 48, "heads": 4, "context": 32}
DOCUMENTS = [" ".join(f"w{(i + j) % 7} w{(i + j) % 7}" for j in range(9)) for i in range(40)]
RECIPE_MASKED: dict[str, Any] = {
    "name": "encoder",
    "base": {"pretrain": {**RECIPE["base"]["pretrain"], "objective": "masked", "steps": 8}},  # type: ignore[index]
    "data": {"documents": "demo-task?rows=60", "held_out": 0.2},
    "stages": ["pretrain"],
    "runtime": {"device": "cpu", "threads": 1},
}


def config(**changes: Any) -> PretrainConfig:
    settings = {"objective": "masked", "tokenizer": "words", "vocabulary": 40, "model": SHAPE, "steps": 3, "batch": 5}
    return PretrainConfig.model_validate(settings | changes)


def test_a_seventh_of_a_row_is_chosen_and_special_tokens_never() -> None:
    """18 ordinary tokens: round(0.15 * 18) = 3; where a row has one or two, one; where it has none, none."""
    row = [1, *range(5, 23), 3, 2]
    for step in range(50):
        found = hide(row, SPECIAL, MASK, ORDINARY, generator(0, "test", step))
        assert len(found.places) == 3 and list(found.places) == sorted(set(found.places))
        assert found.targets == [row[i] for i in found.places] and not SPECIAL & set(found.targets)
        assert all(a == b for i, (a, b) in enumerate(zip(found.ids, row, strict=True)) if i not in found.places)
    assert len(hide([1, 9, 2], SPECIAL, MASK, ORDINARY, generator(0, "test")).places) == 1
    assert hide([1, 2], SPECIAL, MASK, ORDINARY, generator(0, "test")) == MaskedRow([1, 2], [], [])


def test_eight_of_ten_are_masked_one_is_another_token_and_one_stays() -> None:
    """Of 15,000 chosen tokens, with four standard deviations: 0.0131 of 0.8, 0.0098 of 0.1."""
    row = [20] * 1000
    rows = [hide(row, SPECIAL, MASK, ORDINARY, generator(1, "test", i)) for i in range(100)]
    found = torch.tensor([r.ids[i] for r in rows for i in r.places])
    assert len(found) == 15_000
    assert (found == MASK).float().mean() == pytest.approx(0.8, abs=0.0131)
    assert ((found != MASK) & (found != 20)).float().mean() == pytest.approx(0.1 * 34 / 35, abs=0.0098)
    assert not set(found.tolist()) & (SPECIAL - {MASK}) and len(set(found.tolist())) == 36  # every ordinary one
    places = torch.zeros(1000).index_add(0, torch.tensor([i for r in rows for i in r.places]), torch.ones(15_000))
    assert places.max() < 15 + 6 * 15**0.5 and places[:500].sum() == pytest.approx(7500, abs=4 * 15_000**0.5 / 2)


def test_masks_are_those_of_the_step_and_held_out_ones_stay() -> None:
    masking = MaskedTokens(seed=3, special=SPECIAL, mask_id=MASK, ordinary=ORDINARY)
    rows = [[1, *range(5, 30), 2]] * 4
    assert masking.examples(rows, 7) == masking.examples(rows, 7) != masking.examples(rows, 8)
    assert masking.held_out(rows) == masking.held_out(rows)
    assert len({tuple(r.places) for r in masking.examples(rows, 7)}) > 1  # the same row, hidden otherwise


def test_loss_and_gradient_are_those_of_transformers() -> None:
    """Rows of unequal length, padded, against labels in Transformers' own model, one row at a time."""
    tokenizer = pretrain.train_tokenizer(DOCUMENTS, config())
    lm: Any = pretrain.new_model(tokenizer, config(), 0)
    masking = MaskedTokens.of(tokenizer, 0)
    assert masking.special == {0, 1, 2, 3, 4} and masking.mask_id == 4
    rows = [tokenizer(text)["input_ids"][: 9 + 4 * i] for i, text in enumerate(DOCUMENTS[:4])]
    examples = masking.examples(rows, 0)
    count = sum(map(masking.predicted, examples))
    loss = backward(lm, examples, count, 3, masking)
    ours = {n: p.grad.clone() for n, p in lm.named_parameters()}
    lm.zero_grad()
    total = torch.zeros(())
    for example in examples:
        labels = torch.full((1, len(example.ids)), -100)
        labels[0, list(example.places)] = torch.tensor(example.targets)
        total = total + lm(input_ids=torch.tensor([example.ids]), labels=labels).loss * len(example.places)
    (total / count).backward()
    assert_close(loss, (total / count).detach(), atol=1e-5, rtol=1e-5)
    for name, p in lm.named_parameters():
        assert_close(ours[name], p.grad, atol=1e-5, rtol=1e-4)
    nll = masked_nll(lm, examples, torch.device("cpu"), OOMRetry("rows", lambda text: None), batch=2)
    assert nll == pytest.approx((total / count).item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["words", "bpe", "wordpiece", "unigram", "characters"])
def test_each_kind_of_tokenizer_has_a_mask_token_and_marks_the_ends(kind: str, tmp_path: Path) -> None:
    if kind == "unigram":
        pytest.importorskip("sentencepiece", reason="SentencePiece is not installed: pip install 'trivet[unigram]'")
    settings = config(tokenizer=kind, vocabulary=310)
    pretrain.train_tokenizer([*DOCUMENTS, "the cat sat"], settings).save_pretrained(tmp_path)
    made = AutoTokenizer.from_pretrained(tmp_path)
    assert (made.mask_token, made.mask_token_id) == ("<mask>", 4) and len(made) <= 310
    own = made("w1", add_special_tokens=False)["input_ids"]
    assert made("w1")["input_ids"] == [1, *own, 2] and made("w1", "w1")["input_ids"] == [1, *own, 2, *own, 2]
    assert made("<mask>", add_special_tokens=False)["input_ids"] == [4]


def test_an_encoder_learns_and_is_opened_by_transformers(tmp_path: Path) -> None:
    """Each word of a document comes twice in a row, so that a hidden one stands beside its like."""
    said: list[str] = []
    context = pretrain_context(tmp_path, DOCUMENTS, DOCUMENTS[::4], say=said.append)
    found = pretrain.run(context, config(steps=80, batch=16, learning_rate=3e-3)).metrics
    assert found["held_out_masked_nll"] < 0.5 * found["held_out_masked_nll_before"]
    assert found["held_out_masked_nll_before"] == pytest.approx(torch.tensor(12.0).log(), abs=1.0)  # 7 words, 5 special
    assert "held_out_nll" not in found and found["vocabulary"] == 12
    assert said[-1] == (
        f"pretraining: held-out loss {found['held_out_masked_nll_before']:.4g} before, "
        f"{found['held_out_masked_nll']:.4g} nats a hidden token after 80 steps"
    )
    lm: Any = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    masking = MaskedTokens.of(tokenizer, context.seed)
    held_out = masking.held_out([tokenizer(text)["input_ids"] for text in DOCUMENTS[::4]])
    nll = masked_nll(lm, held_out, torch.device("cpu"), OOMRetry("rows", lambda text: None))
    assert nll == pytest.approx(found["held_out_masked_nll"], rel=1e-4)
    words = DOCUMENTS[0].split()
    words[6] = "<mask>"
    best = pipeline("fill-mask", model=lm, tokenizer=tokenizer)(" ".join(words))[0]
    assert best["token_str"] == "w3" == DOCUMENTS[0].split()[6]


def test_it_resumes_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the fifth of eight steps: the same bytes as of a run that nobody stopped, and the same metrics."""

    class Killed(BaseException):
        pass

    recipe = RECIPE_MASKED | {"checkpoint": {"every_minutes": 0}}
    Pipeline.from_recipe(recipe, run_dir=tmp_path / "whole").run()
    real, steps = Checkpoints.safe_point, list[int]()

    def safe_point(self: Checkpoints, step: int, *args: Any, **kwargs: Any) -> None:
        real(self, step, *args, **kwargs)
        steps.append(step)
        if steps == [1, 2, 3, 4, 5]:
            self.wait()
            raise Killed

    monkeypatch.setattr(Checkpoints, "safe_point", safe_point)
    with pytest.raises(Killed):
        Pipeline.from_recipe(recipe, run_dir=tmp_path / "run").run()
    Pipeline.from_recipe(recipe, run_dir=tmp_path / "run").run()
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "run/pretrain/model" / name).read_bytes() == (
            tmp_path / "whole/pretrain/model" / name
        ).read_bytes()
    mine, whole = (json.loads((tmp_path / run / "pretrain/manifest.json").read_text()) for run in ("run", "whole"))
    assert mine["metrics"] == whole["metrics"]


def test_a_plan_counts_and_estimates_it(tmp_path: Path) -> None:
    (plan,) = Pipeline.from_recipe(RECIPE_MASKED, run_dir=tmp_path / "run").plan()
    counts = [plan.details[name]["documents"] for name in ("counts", "held_out_counts")]
    assert sum(counts) == 60 and plan.details["takes"].memory > 0


def test_no_other_stage_stands_on_it() -> None:
    with pytest.raises(
        UserError, match=r"objective: 'masked' makes an encoder, on which sft cannot stand: write stages"
    ):
        load_recipe(RECIPE_MASKED | {"stages": ["pretrain", "sft"], "data": RECIPE["data"]})
