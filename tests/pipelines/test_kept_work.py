"""Work is deleted only when its stage is finished or with --fresh; what is replaced can be had again."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.backbone.artifacts import previous_folder, publish, put_back, put_in_place, read_artifact, settle
from pipelines.cli import main as cli
from pipelines.report.page import write_report
from pipelines.run.pipeline import Pipeline
from pipelines.workspace.gc import leftovers, remove
from pipelines.workspace.verify import verify_run
from stages.safe_points.checkpoints import Checkpoints
from stages.safe_points.stopped import CHECKPOINTS, note_work, read_work, take_up
from tests.support.killed import Killed, killed_at
from tests.support.recipes import RECIPE

SFT: dict[str, Any] = copy.deepcopy(RECIPE) | {"stages": ["pretrain", "sft"], "checkpoint": {"every_minutes": 0}}
for unused in ("rankings", "reward", "ppo", "evaluation"):
    SFT.pop(unused)
SFT["sft"] = {"learning_rate": 3e-3, "batch": 8, "micro_batch": 8}
SFT["runtime"] = {"device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "base"
    Pipeline.from_recipe(SFT, run_dir=folder).run(only=["pretrain"])
    return folder


def made(base: Path, folder: Path, *changes: str) -> Pipeline:
    return Pipeline.from_recipe(SFT, changes, run_dir=folder, inputs={"pretrain": str(base / "pretrain")})


def weights(folder: Path) -> bytes:
    return (folder / "sft/adapter/adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "whole"
    made(base, folder).run(only=["sft"])
    return folder


def stop_at(base: Path, folder: Path, step: int, *changes: str) -> None:
    """Run SFT until its ``step``-th safe point is saved, and kill it there."""
    with killed_at(step):
        made(base, folder, *changes).run(only=["sft"])


def plan_of(pipeline: Pipeline) -> str:
    return next(p.reason for p in pipeline.plan() if p.name == "sft")


def steps_of(pipeline: Pipeline) -> int:
    return int(next(p.details["steps"] for p in pipeline.plan() if p.name == "sft"))


def test_other_settings_tried_in_between_cost_no_checkpoint(
    base: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(base, tmp_path, 3)
    other = made(base, tmp_path, "sft.batch=4", "sft.micro_batch=4")
    told = plan_of(other)
    assert "starts again because sft.batch (8 -> 4) changed; the checkpoints of before (step_3) stay in .sft." in told
    stop_at(base, tmp_path, 2, "sft.batch=4", "sft.micro_batch=4")
    assert "starts again because sft.batch (8 -> 4) changed" in " ".join(capsys.readouterr().out.split())
    stop_at(base, tmp_path, 1, "sft.learning_rate=0.001")
    assert len(list(tmp_path.glob(".sft.stopped-*"))) == 2
    assert plan_of(made(base, tmp_path)) == f"resumes at step 4 of {steps_of(made(base, tmp_path))}"
    assert "resumes at step 3 of " in plan_of(other)
    assert leftovers(tmp_path) == []  # nothing goes unasked
    kept = made(base, tmp_path).kept()
    assert len(kept) == 2 and all("stopped at step_" in what for what in kept.values())
    made(base, tmp_path).run(only=["sft"])
    told = capsys.readouterr().out
    assert "resumes at step 4 of " in told and "checkpoint step_" not in told
    assert weights(tmp_path) == weights(whole)
    assert len(list(tmp_path.glob(".sft.stopped-*"))) == 2 and not (tmp_path / ".sft.partial").exists()
    assert cli.main(["ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(".sft.stopped-") == 2
    assert {one.path.name[:12] for one in leftovers(tmp_path, unfinished=True)} == {".sft.stopped"}
    other.run(only=["sft"])
    assert "resumes at step 3 of " in capsys.readouterr().out


def test_fresh_takes_its_own_checkpoints_alone(base: Path, whole: Path, tmp_path: Path) -> None:
    stop_at(base, tmp_path, 2, "sft.learning_rate=0.001")
    stop_at(base, tmp_path, 3)
    made(base, tmp_path).run(only=["sft"], fresh=True)
    assert weights(tmp_path) == weights(whole)
    assert plan_of(made(base, tmp_path, "sft.learning_rate=0.001")).count("resumes at step 3 of ") == 1


def test_a_damaged_checkpoint_is_set_aside(
    base: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(base, tmp_path, 3)
    file = tmp_path / ".sft.partial/checkpoints/step_3/state.json"
    file.write_text(file.read_text() + " ")
    stop_at(base, tmp_path, 1)
    told = capsys.readouterr()
    assert "step_3 is refused" in " ".join((told.out + told.err).split())
    assert (tmp_path / ".sft.partial/checkpoints/refused_step_3/state.json").is_file()
    made(base, tmp_path).run(only=["sft"])
    assert weights(tmp_path) == weights(whole) and not (tmp_path / ".sft.partial").exists()


def test_a_replaced_stage_is_kept_and_put_back(
    base: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(base, tmp_path).run(only=["sft"])
    made(base, tmp_path, "sft.learning_rate=0.001").run(only=["sft"])
    told = " ".join(capsys.readouterr().out.split())
    assert "learning_rate (0.003 -> 0.001); the finished sft of before stays in .sft.previous" in told
    second = weights(tmp_path)
    assert second != weights(whole)
    assert plan_of(made(base, tmp_path)) == "finished before, and kept in .sft.previous"
    made(base, tmp_path).run(only=["sft"])
    assert weights(tmp_path) == weights(whole)
    there = read_artifact(tmp_path / "sft")
    assert there is not None and json.loads((tmp_path / "run.json").read_text())["stages"]["sft"]["key"] == there.key
    made(base, tmp_path, "sft.learning_rate=0.001").run(only=["sft"])
    assert weights(tmp_path) == second
    assert cli.main(["ls", str(tmp_path)]) == 0 and ".sft.previous" in capsys.readouterr().out
    file = tmp_path / ".sft.previous/adapter/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert any(".sft.previous" in text for text in verify_run(tmp_path))
    assert "changed" in plan_of(made(base, tmp_path))  # a damaged one is not put back
    assert [one.path.name for one in remove(leftovers(tmp_path))[0]] == [".sft.previous"]


def finished(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "w").write_text(text)
    return folder


@pytest.mark.parametrize("renames", range(5))
@pytest.mark.parametrize("what", ["replace", "put back"])
def test_a_kill_between_any_two_renames_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, renames: int
) -> None:
    final = tmp_path / "sft"
    put_in_place(finished(tmp_path / "a", "one"), final)
    put_in_place(finished(tmp_path / "b", "two"), final)
    real, done = os.replace, list[Path]()

    def replace(a: Path, b: Path) -> None:
        if len(done) == renames:
            raise Killed
        done.append(b)
        real(a, b)

    with monkeypatch.context() as patch:
        patch.setattr("models.backbone.artifacts.os.replace", replace)
        with contextlib.suppress(Killed):
            put_back(final) if what == "put back" else put_in_place(finished(tmp_path / "c", "three"), final)
    settle(final)
    there = [p / "w" for p in (final, previous_folder(final), tmp_path / "c") if (p / "w").is_file()]
    texts = {p.read_text() for p in there}
    assert (final / "w").is_file()
    assert texts >= ({"one", "two"} if what == "put back" else {"two", "three"})


def test_a_finished_stage_that_was_not_yet_renamed_is_not_lost_to_other_settings(tmp_path: Path) -> None:
    out, final = tmp_path / ".sft.partial", tmp_path / "sft"
    (out / CHECKPOINTS).mkdir(parents=True)
    (out / "w").write_text("one")
    publish(out, tmp_path / "elsewhere", {"key": "a" * 64})
    (tmp_path / "elsewhere").rename(out)
    aside = take_up(final, "b" * 64)
    assert aside is not None and (aside / "w").read_text() == "one" and not out.exists()
    take_up(final, "a" * 64)
    assert (out / "w").read_text() == "one"


def test_what_is_no_work_is_not_taken_for_any(tmp_path: Path) -> None:
    out = tmp_path / ".sft.partial"
    note_work(out, "a" * 64, {}, {"threads": 3})
    assert read_work(out) is None and take_up(tmp_path / "sft", "b" * 64) is None and out.is_dir()


def test_another_report_is_kept(run: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(run, tmp_path / "r", ignore=shutil.ignore_patterns("report.html")))
    told: list[str] = []
    page = write_report(folder, told.append)
    write_report(folder, told.append)
    assert told == [] and not (folder / ".report.html.previous").exists()
    page.write_text("mine")
    write_report(folder, told.append)
    assert (folder / ".report.html.previous").read_text() == "mine" and ".report.html.previous" in told[0]
    assert [one.path.name for one in leftovers(folder) if "report" in one.path.name] == [".report.html.previous"]


# -- settings of speed, and threads -----------------------------------------------------------------------------------


def test_a_finished_stage_stays_when_memory_and_speed_alone_change(
    base: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["sft.micro_batch=2", "runtime.gradient_checkpointing=true"]
    assert plan_of(made(base, whole, *other)) == (
        "finished and unchanged; made with runtime.gradient_checkpointing false (now true), sft.micro_batch 8 (now 2)"
    )
    assert plan_of(made(base, whole, "sft.micro_batch=16", "sft.batch_tokens=64")).startswith(
        "finished and unchanged; made with sft.batch_t"
    )
    before = weights(whole)
    made(base, whole, *other).run(only=["sft"])
    assert "skipped; made with" in " ".join(capsys.readouterr().out.split()) and weights(whole) == before
    assert plan_of(made(base, whole)) == "finished and unchanged"
    stop_at(base, tmp_path, 3)
    made(base, tmp_path, *other).run(only=["sft"])
    assert "resumes at step 4 of " in capsys.readouterr().out
    from safetensors.torch import load_file

    ours, theirs = (load_file(f / "sft/adapter/adapter_model.safetensors") for f in (tmp_path, whole))
    assert all(torch.allclose(ours[n].double(), theirs[n].double(), atol=2e-4) for n in ours)


def test_with_dropout_the_cut_of_a_batch_changes_the_result(base: Path, whole: Path) -> None:
    first = [s.key for s in made(base, whole, "adapter.dropout=0.1").states()]
    assert first != [s.key for s in made(base, whole, "adapter.dropout=0.1", "sft.micro_batch=2").states()]


def test_threads_are_recorded_and_a_stopped_stage_resumes_with_its_own(
    base: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_artifact(whole / "sft")
    assert found is not None and found.manifest["made_with"]["threads"] == 1
    stop_at(base, tmp_path, 2)
    used: list[int] = []
    real = Checkpoints.safe_point

    def safe_point(*given: Any, **named: Any) -> None:
        used.append(torch.get_num_threads())
        real(*given, **named)

    torch.set_num_threads(2)
    try:
        assert plan_of(made(base, whole)) == "finished and unchanged; made with threads 1 (now 2)"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "safe_point", safe_point)
            made(base, tmp_path).run(only=["sft"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert used and set(used) == {1}
    assert "resumes with CPU threads: 1, as before (here it would be 2)" in " ".join(capsys.readouterr().out.split())
    assert weights(tmp_path) == weights(whole)


def test_the_processor_is_recorded_and_another_one_is_told_by_plan_and_where_a_stage_resumes(
    base: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last places of sums depend on the width of the instructions; no key holds them."""
    found = read_artifact(whole / "sft")
    own = f"CPU {torch.backends.cpu.get_cpu_capability()}"
    assert found is not None and found.manifest["made_with"]["processor"] == own
    stop_at(base, tmp_path, 2)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    assert plan_of(made(base, whole)) == (f'finished and unchanged; made with processor "{own}" (now "CPU OTHER")')
    made(base, tmp_path).run(only=["sft"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"sft: resumes on CPU OTHER, and what was done before was computed on {own}: its result will differ" in told


def test_a_stage_of_when_the_key_held_settings_of_speed_stays_valid(base: Path, tmp_path: Path) -> None:
    from pipelines.stages.keys import hash_of

    pipeline = made(base, tmp_path)
    described = next(iter(s for s in pipeline.states() if s.name == "sft")).described
    old = described | {
        "settings": described["settings"] | {"micro_batch": 8, "batch_tokens": None},
        "runtime": described["runtime"] | {"gradient_checkpointing": False},
    }
    part = tmp_path / ".sft.partial"
    finished(part, "old")
    publish(part, tmp_path / "sft", {"stage": "sft", "key": hash_of(old), "described": old})
    assert plan_of(made(base, tmp_path, "sft.micro_batch=2")) == "finished and unchanged"
    assert "learning_rate" in plan_of(made(base, tmp_path, "sft.learning_rate=1"))
