"""A base from scratch with a tokenizer that is there: taken as it is, known by its files, counted by the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from data.common.errors import UserError
from models.hub.load import given_tokenizer
from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from pipelines.stages.shapes import shape_of
from pipelines.stages.tallies import pretrain
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.encoders import save_encoder

TEXTS = [" ".join(f"w{(i + j) % 9}" for j in range(4 + i % 9)) + " zz" * (i % 10 == 0) for i in range(40)]
SHAPE = {"layers": 1, "width": 16, "feed_forward": 24, "heads": 2, "context": 8}


def recipe(folder: Path, given: Path, **changes: Any) -> dict[str, Any]:
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    settings = {"given_tokenizer": str(given), "steps": 3, "batch": 4, "model": SHAPE} | changes
    return {
        "name": "given", "base": {"pretrain": settings}, "stages": ["pretrain"], "template": "auto",
        "data": {"documents": f"{folder}/documents.jsonl", "held_out": 0.3}, "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip


@pytest.fixture(params=["tokenizer alone", "with a model"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    word_tokenizer().save_pretrained(folder)
    if request.param == "with a model":
        tiny_lm().save_pretrained(folder)
    return folder


def test_it_is_taken_as_it_is_and_the_plan_counts_with_it(given: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.from_recipe(recipe(tmp_path, given), run_dir=tmp_path / "run")
    (plan,) = pipeline.plan()
    pipeline.run()
    found = json.loads((tmp_path / "run/pretrain/manifest.json").read_text())["metrics"]
    tokenizer = word_tokenizer()
    assert found["vocabulary"] == len(tokenizer) and plan.details["counts"] == found["counts"]
    train = [d.text for d in pipeline.corpus.documents.train]
    assert found["counts"]["tokens"] == sum(len(text.split()) + 1 for text in train)  # with the end
    assert found["counts"]["unknown_tokens"] == sum(text.split().count("zz") for text in train) > 0
    made = AutoTokenizer.from_pretrained(tmp_path / "run/pretrain/model")
    assert made.get_vocab() == tokenizer.get_vocab() and made.eos_token_id == tokenizer.eos_token_id
    lm: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "run/pretrain/model")
    assert lm.get_input_embeddings().weight.shape[0] == len(tokenizer) and lm.config.eos_token_id == made.eos_token_id
    shape = shape_of(pipeline.recipe)
    assert shape is not None and shape.vocabulary == len(tokenizer) and shape.parameters == lm.num_parameters()


def test_other_files_of_it_make_the_base_stale(given: Path, tmp_path: Path) -> None:
    asked = recipe(tmp_path, given)
    Pipeline.from_recipe(asked, run_dir=tmp_path / "run").run()

    def status() -> str:
        return Pipeline.from_recipe(asked, run_dir=tmp_path / "run").plan()[0].status

    assert status() == "cached"
    word_tokenizer(words=["<pad>", "<bos>", "<eos>", "<unk>", "w0", "w1"]).save_pretrained(given)
    assert status() == "stale"


@pytest.mark.parametrize("alone", [False, True])
def test_an_encoder_takes_that_of_a_bert(tmp_path: Path, alone: bool) -> None:
    """Whose ends of a text are its class and separator tokens."""
    save_encoder(tmp_path / "bert", "bert")
    if alone:
        (tmp_path / "bert/config.json").unlink()
    asked = recipe(tmp_path, tmp_path / "bert", objective="masked")
    Pipeline.from_recipe(asked, run_dir=tmp_path / "run").run()
    folder = tmp_path / "run/pretrain/model"
    lm: Any = AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w1")["input_ids"][0] == tokenizer.cls_token_id and lm.config.vocab_size > tokenizer.mask_token_id


def test_a_plan_fetches_none(tmp_path: Path) -> None:
    asked = load_recipe(recipe(tmp_path, Path("someone/elsewhere")))
    assert given_tokenizer("someone/elsewhere", tmp_path, fetch=False) is None
    pipeline = Pipeline(asked, tmp_path / "run")
    assert pretrain(asked, pipeline.corpus) == {} and shape_of(asked) is not None


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match=r"given_tokenizer: .*plain has no mask token, which objective 'masked' needs"):
        Pipeline.from_recipe(recipe(tmp_path, tmp_path / "plain", objective="masked"), run_dir=tmp_path / "run").run()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(UserError, match=r"given_tokenizer: endless has no token that ends a text"):
        given_tokenizer("endless", tmp_path)
    with pytest.raises(UserError, match="nothing-there"):
        given_tokenizer("nothing-there", tmp_path)
    with pytest.raises(UserError, match=r"base\.pretrain\.given_tokenizer: .*nothing-there"):
        Pipeline.from_recipe(recipe(tmp_path, Path("nothing-there")), run_dir=tmp_path / "run").plan()
    for setting in ({"tokenizer": "words"}, {"vocabulary": 400}):
        with pytest.raises(UserError, match=r"has no effect: no tokenizer is trained: base\.pretrain\.given_tokenizer"):
            load_recipe(recipe(tmp_path, tmp_path / "plain", **setting))
