"""Distillation in a run: another run's stages as teachers, plans, keys, evaluation, chat, export and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from evaluation.systems import parse
from pipelines.export.stage import export_stage
from pipelines.loading.load import load_recipe
from pipelines.report.page import write_report
from pipelines.run.chat_models import open_room
from pipelines.run.pipeline import Pipeline
from pipelines.run.teachers import teacher_shape
from pipelines.stages import efforts, workloads
from pipelines.stages.estimates import Estimator
from tests.conftest import tiny_lm, word_tokenizer

WIDE: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 96}
DATA = {"demonstrations": "demo-task?rows=60", "prompts": "demo-task?rows=80", "held_out": 0.25}
PLAIN: dict[str, Any] = {
    "template": "dialogue", "data": DATA, "adapter": {"rank": 4, "alpha": 8},
    "sft": {"epochs": 1, "learning_rate": 3e-3, "batch": 16}, "runtime": {"device": "cpu", "threads": 1},
}  # fmt: skip
DISTIL = {"learning_rate": 3e-3, "batch": 16, "epochs": 1, "max_new_tokens": 8}


def base_in(folder: Path, **changes: Any) -> str:
    tiny_lm(initializer_range=0.1, max_position_embeddings=128, **changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def manifest(run: Path, stage: str) -> dict[str, Any]:
    return json.loads((run / stage / "manifest.json").read_text())


def student(folder: Path, teacher: str = "large/sft", **changes: Any) -> dict[str, Any]:
    settings = DISTIL | {"teacher": str(folder / teacher)} | changes
    systems = {"systems": ["base", "sft", "distil"], "prompts": 6, "bootstrap": 50, "max_new_tokens": 8}
    return PLAIN | {"name": "small", "base": str(folder / "small-base"), "distil": settings, "evaluation": systems}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large run of SFT, and a small one that learns from it by distributions."""
    folder = tmp_path_factory.mktemp("distilled")
    large = PLAIN | {"name": "large", "base": base_in(folder / "large-base", **WIDE), "stages": ["sft"]}
    Pipeline.from_recipe(large, run_dir=folder / "large").run()
    base_in(folder / "small-base")
    Pipeline.from_recipe(student(folder, loss="logits"), run_dir=folder / "small").run()
    return folder


def test_the_stages_follow_from_the_settings(done: Path) -> None:
    assert load_recipe(student(done)).stages == ("sft", "distil", "evaluate")


def test_the_teacher_is_the_other_runs_stage(done: Path) -> None:
    made = manifest(done / "small", "distil")
    assert made["metrics"]["teacher_fingerprint"] == manifest(done / "large", "sft")["base_fingerprint"]
    assert made["base_fingerprint"] == manifest(done / "small", "sft")["base_fingerprint"]
    assert made["metrics"]["held_out_curves"]["distilled"]["change"] < 0
    assert set(made["parents"]) == {"sft"} and made["lineage"]["prompts"] > 0


def test_it_is_evaluated_talked_to_and_exported(done: Path, tmp_path: Path) -> None:
    assert parse("distil").value == "distil"
    results = json.loads((done / "small/evaluation/results.json").read_text())
    assert set(results["systems"]) == {"base", "sft", "distil"}
    room = open_room(str(done / "small"), "distil")
    assert (room.speakers[0].name, room.speakers[0].role) == ("distil", "distilled")
    export_stage(done / "small", "distil", tmp_path / "out", merge=True)
    card = (tmp_path / "out/README.md").read_text()
    assert "(Distillation)" in card and "distil.loss" in card


def test_the_report_shows_its_curves(done: Path) -> None:
    page = write_report(done / "small").read_text()
    assert "Distillation" in page and "agreement before" in page.replace("_", " ")


def test_a_changed_teacher_makes_it_stale(done: Path, tmp_path: Path) -> None:
    def plan(**changes: Any) -> dict[str, str]:
        recipe = student(done, **{"loss": "logits"} | changes)
        return {p.name: p.status for p in Pipeline.from_recipe(recipe, run_dir=done / "small").plan()}

    finished = {"sft": "cached", "distil": "cached", "evaluate": "cached"}
    assert plan() == plan(micro_batch=4, sampling_batch=8) == finished
    stale = finished | {"distil": "stale", "evaluate": "stale"}
    assert plan(temperature=2.0) == stale
    file = done / "large/sft/manifest.json"
    before = file.read_text()
    file.write_text(before + "\n")
    assert plan() == stale
    file.write_text(before)
    assert plan() == finished


def test_the_plan_knows_its_steps_and_memory(done: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.from_recipe(student(done), run_dir=tmp_path / "new")
    [plan] = [p for p in pipeline.plan() if p.name == "distil"]
    prompts = pipeline.corpus.prompts
    assert plan.status == "new"
    assert plan.details["steps"] == 1 + -(-len(prompts.train) // 16)  # all prompts are one block
    assert plan.details["takes"].memory > 0 and plan.details["takes"].tokens > 8 * len(prompts.train)


@pytest.mark.parametrize("teacher", ["large/sft", "large-base", "adapter"])
def test_the_plan_counts_the_teacher_by_its_own_base(done: Path, tmp_path: Path, teacher: str) -> None:
    """It is 48 wide where the student is 32; its base lies in memory, samples, and is compared with."""
    if teacher == "adapter":
        export_stage(done / "large", "sft", done / "adapter")
    recipe = load_recipe(student(done, teacher, loss="logits"))
    pipeline = Pipeline(recipe, tmp_path / "new")
    shape = teacher_shape(recipe)
    assert shape is not None and (shape.width, shape.inner, shape.parameters) == (
        48,
        96,
        tiny_lm(**WIDE).num_parameters(),
    )
    assert pipeline.details.estimator.teacher == shape
    estimator = Estimator(recipe, pipeline.corpus, teacher=shape)
    work, effort, own = workloads.distil(estimator), efforts.distil(estimator), estimator.shape
    assert own is not None
    parts = {part.what: part.bytes for part in estimator.memory(work, own).always}
    assert parts["teacher"] == 4 * shape.parameters > parts["base"]
    assert [one.by for one in effort.passes] == [None, shape] and [one.by for one in effort.sampled] == [shape]
    assert work.sampler == shape


def test_a_teacher_that_is_not_here_has_no_shape(done: Path) -> None:
    assert teacher_shape(load_recipe(student(done, "nothing"))) is None
    assert teacher_shape(load_recipe(PLAIN | {"base": "gpt2", "stages": ["sft"]})) is None


@pytest.mark.parametrize("kind", ["base", "adapter", "merged"])
def test_other_kinds_of_teacher(done: Path, tmp_path: Path, kind: str) -> None:
    """A plain model, an adapter that names its base, and a merged export."""
    teacher = done / "large-base"
    if kind != "base":
        teacher = tmp_path / "teacher"
        export_stage(done / "large", "sft", teacher, merge=kind == "merged")
    recipe = student(done, str(teacher), loss="logits", epochs=0.1) | {"stages": ["distil"]}
    recipe = {k: v for k, v in recipe.items() if k not in ("sft", "evaluation")}
    Pipeline.from_recipe(recipe, run_dir=tmp_path / "run").run()
    found = manifest(tmp_path / "run", "distil")["metrics"]
    expected = manifest(done / "large", "sft")["base_fingerprint"]
    assert (found["teacher_fingerprint"] == expected) == (kind != "merged")


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("nothing", r"distil\.teacher: base 'nothing' is not a known name"),
        ("large", r"large: is a run; name the folder of one of its stages pretrain, continued, sft, distil, ppo"),
    ],
)
def test_what_is_no_teacher_is_refused(done: Path, tmp_path: Path, teacher: str, message: str) -> None:
    recipe = student(done, loss="logits") | {"stages": ["distil"]}
    recipe = {k: v for k, v in recipe.items() if k not in ("sft", "evaluation")}
    recipe["distil"] = recipe["distil"] | {"teacher": str(done / teacher) if teacher == "large" else teacher}
    with pytest.raises(UserError, match=message):
        Pipeline.from_recipe(recipe, run_dir=tmp_path / "run").run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ["sft"], "distil": {"teacher": "x"}}, r"distil: there are settings, but stages has no 'distil'"),
        ({"distil": {"loss": "logits"}}, r"distil\.teacher: "),
        ({"distil": DISTIL | {"teacher": "x", "temperature": 2.0}}, r"distil\.temperature: has no effect: it softens"),
        ({"distil": DISTIL | {"teacher": "x", "supervise": "last"}}, r"distil\.supervise: has no effect"),
        ({"distil": DISTIL | {"teacher": "x", "loss": "logit"}}, r"distil\.loss: must be .*'logits'"),
        ({"distil": DISTIL | {"teacher": "x", "responses": "demonstrations"}}, r"takes nothing from the teacher"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(PLAIN | {"base": "gpt2"} | changes)
