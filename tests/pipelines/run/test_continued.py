"""Continued pretraining in a run: from a given base and from one made from scratch, planned, resumed and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.common.errors import UserError
from models.backbone.artifacts import read_artifact
from pipelines.export.stage import export_stage
from pipelines.loading.load import load_recipe
from pipelines.report.page import write_report
from pipelines.run.pipeline import Pipeline
from stages.safe_points.checkpoints import Checkpoints
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.killed import killed_at
from tests.support.recipes import RECIPE

SETTINGS = {"steps": 8, "batch": 4, "context": 16, "learning_rate": 1e-3}
KEPT = ("name", "base", "template", "data", "adapter", "sft", "runtime")
FROM_SCRATCH = {k: v for k, v in RECIPE.items() if k in KEPT}
SCRATCH: dict[str, Any] = FROM_SCRATCH | {"continued": SETTINGS, "stages": ["pretrain", "continued", "sft"]}


def recipe_on(base: Path, **changes: Any) -> dict[str, Any]:
    tiny_lm(initializer_range=0.1).save_pretrained(base)
    word_tokenizer().save_pretrained(base)
    settings = SETTINGS | {"added_vocabulary": 5}
    return SCRATCH | {"base": str(base), "stages": ["continued", "sft"], "continued": settings} | changes


def manifest(run: Path, stage: str) -> dict[str, Any]:
    return json.loads((run / stage / "manifest.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a given base whose tokenizer does not know the documents' words."""
    folder = tmp_path_factory.mktemp("continued")
    Pipeline.from_recipe(recipe_on(folder / "base"), run_dir=folder / "run").run()
    return folder


def test_later_stages_stand_on_the_new_base(done: Path) -> None:
    run = done / "run"
    pipeline = Pipeline.from_recipe(recipe_on(done / "base"), run_dir=run)
    made = pipeline.loaded.base()
    before = recipe_on(done / "base", continued=None, stages=["sft"])
    before["data"] = {k: v for k, v in before["data"].items() if k != "documents"}
    given = Pipeline.from_recipe(before).loaded.base()
    assert made.fingerprint != given.fingerprint
    assert manifest(run, "sft")["base_fingerprint"] == made.fingerprint
    assert manifest(run, "continued")["base_fingerprint"] is None
    assert manifest(run, "continued")["metrics"]["added_tokens"] == 5
    assert len(made.tokenizer) == len(given.tokenizer) + 5
    assert all(p.status == "cached" for p in pipeline.plan())


def test_changes_make_it_stale_with_what_stands_on_it(done: Path) -> None:
    def plan(**changes: Any) -> dict[str, str]:
        recipe = recipe_on(done / "base")
        recipe["continued"] = recipe["continued"] | changes
        return {p.name: p.status for p in Pipeline.from_recipe(recipe, run_dir=done / "run").plan()}

    assert plan(steps=9) == {"continued": "stale", "sft": "stale"}
    assert plan(max_skipped_steps=3) == {"continued": "cached", "sft": "cached"}
    other = tiny_lm(seed=1)
    base = done / "other"
    other.save_pretrained(base)
    word_tokenizer().save_pretrained(base)
    recipe = recipe_on(done / "base") | {"base": str(base)}
    found = {p.name: p.status for p in Pipeline.from_recipe(recipe, run_dir=done / "run").plan()}
    assert found == {"continued": "stale", "sft": "stale"}


def test_the_plan_counts_by_the_tokenizer_of_the_base(done: Path, tmp_path: Path) -> None:
    """Nothing has been run, so what stands on the new base is not counted, and the chunks of documents are."""
    plans = {p.name: p for p in Pipeline.from_recipe(recipe_on(done / "base"), run_dir=tmp_path / "new").plan()}
    counts = plans["continued"].details["counts"]
    there = manifest(done / "run", "continued")["metrics"]["counts"]
    assert counts["documents"] == there["documents"] and counts["chunks_read"] == 32
    assert counts["tokens"] == there["tokens"]  # a word is a token, known or not
    assert plans["continued"].details["steps"] == 8 and plans["continued"].details["takes"].memory > 0
    assert plans["sft"].details["counts"] == {}


def test_it_resumes_where_it_was_stopped(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run = recipe_on(done / "base") | {"checkpoint": {"every_minutes": 0}}, tmp_path / "run"
    real = Checkpoints.safe_point

    with killed_at(5):
        Pipeline.from_recipe(recipe, run_dir=run).run(only=["continued"])
    first: list[int] = []

    def noted(self: Checkpoints, step: int, *args: Any, **kwargs: Any) -> None:
        first.append(step)
        real(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "safe_point", noted)
    Pipeline.from_recipe(recipe, run_dir=run).run(only=["continued"])
    assert first == [6, 7, 8]
    names = ("model.safetensors", "tokenizer.json", "config.json")
    for name in names:
        assert (run / "continued/model" / name).read_bytes() == (done / "run/continued/model" / name).read_bytes()
    assert manifest(run, "continued")["metrics"] == manifest(done / "run", "continued")["metrics"]


def test_it_is_exported_as_a_plain_folder(done: Path, tmp_path: Path) -> None:
    export_stage(done / "run", "continued", tmp_path / "out")
    lm: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert lm.get_input_embeddings().weight.shape[0] == len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 45
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`base`, a local folder, trained further by the run `least` (continued pretraining)" in card
    assert "continued.steps" in card


def test_the_report_shows_the_loss_before_and_after(done: Path) -> None:
    page = write_report(done / "run").read_text()
    assert "Continued pretraining" in page
    metrics = manifest(done / "run", "continued")["metrics"]
    assert metrics["held_out_nll_per_byte"] < metrics["held_out_nll_per_byte_before"]
    assert "held out nll per byte before" in page.replace("_", " ")
    assert "Did continued pretraining learn?" in page and "nats a byte before" in page


def test_a_base_from_scratch_is_trained_further_in_one_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    Pipeline.from_recipe(SCRATCH | {"continued": {"steps": 2}}, run_dir=run).run()
    scratch, further, sft = (manifest(run, stage) for stage in ("pretrain", "continued", "sft"))
    assert further["parents"] == {"pretrain": scratch["key"]} and sft["parents"] == {"continued": further["key"]}
    assert further["metrics"]["held_out_nll_before"] == pytest.approx(scratch["metrics"]["held_out_nll"], rel=1e-5)
    assert read_artifact(run / "continued") is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ["pretrain", "sft"]}, r"continued: there are settings, but stages has no 'continued'"),
        ({"continued": None}, r"'continued' needs the settings `continued`"),
        ({"continued": SETTINGS | {"context": 999}}, r"continued\.context: 999 tokens do not fit into the base's"),
        ({"continued": SETTINGS | {"step": 3}}, r"continued\.step: no such setting.*'steps'"),
        (
            {"data": {"demonstrations": "demo-task?rows=20"}},
            r"continued: trains on data\.documents",
        ),
        ({"pretrain": {"steps": 3}}, r"pretrain: no such setting.*base: .pretrain: .*continued: "),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(SCRATCH | changes)
