"""A stage that is stopped anywhere goes on from its checkpoint and ends in the same bytes, without any pickle."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch

from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from stages.safe_points.checkpoints import Checkpoints
from stages.safe_points.interrupts import INTERRUPTS
from tests.support.killed import killed_at
from tests.support.recipes import RECIPE, metrics, results

ALWAYS = [
    "rankings.batch=4",
    "checkpoint.every_minutes=0",
    "ppo.epochs=2",
    "ppo.minibatches=2",
    "adapter.dropout=0.1",
    "sft.micro_batch=8",
    "sft.keep=best",
    "sft.patience=9",
    "reward.keep=best",
    "reward.held_out_every=1",
]
PROMISED = ("pretrain", "sft", "rankings", "reward", "ppo", "evaluate")
FOLDERS = {name: stage.folder for name, stage in STAGES.items()}


def slowly(*values) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


OTHER_STOPS = [("pretrain", 5), ("sft", 1), ("rankings", 1), ("reward", 1), ("ppo", 1), ("ppo", 8), ("evaluate", 3)]
STOPS = [("sft", 3), ("ppo", 4), *(slowly(*stop) for stop in OTHER_STOPS)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nobody stops, and how often each stage could have been."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    Pipeline.from_recipe(RECIPE, [*ALWAYS, "checkpoint.every_minutes=null"], run_dir=folder).run()
    return folder


def inputs_from(run: Path, stage: str) -> dict[str, str]:
    before = PROMISED[: PROMISED.index(stage)]
    return {name: str(run / name) for name in before if stage not in ("ppo", "evaluate") or name != "rankings"}


def go(whole: Path, folder: Path, stage: str, *changes: str, fresh: bool = False) -> None:
    Pipeline.from_recipe(RECIPE, [*ALWAYS, *changes], run_dir=folder, inputs=inputs_from(whole, stage)).run(
        only=[stage], fresh=fresh
    )


def same(whole: Path, folder: Path, stage: str) -> None:
    stage = FOLDERS[stage]
    assert results(folder) == {k: v for k, v in results(whole).items() if k.startswith(stage + "/")}
    assert metrics_of(folder, stage) == metrics_of(whole, stage)
    manifests = [json.loads((f / stage / "manifest.json").read_text())["metrics"] for f in (whole, folder)]
    assert manifests[0] == manifests[1]


def metrics_of(folder: Path, stage: str):
    rows = metrics(folder)[stage]
    return [{k: v for k, v in r.items() if k != "memory/peak"} for r in rows]


@pytest.mark.parametrize(("stage", "number"), STOPS)
def test_a_stage_that_is_killed_ends_in_the_same_bytes(whole, tmp_path, monkeypatch, stage, number):
    """Also without torch.load, torch.save and pickle."""

    def refuse(*_, **__):
        raise AssertionError("training state is never pickled")

    for module, name in [(torch, "load"), (torch, "save"), *((pickle, n) for n in ("load", "loads", "dump", "dumps"))]:
        monkeypatch.setattr(module, name, refuse)
    with killed_at(number):
        go(whole, tmp_path, stage)
    assert len(list((tmp_path / f".{FOLDERS[stage]}.partial/checkpoints").glob("step_*"))) == min(number, 2)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".pt", ".pth", ".bin", ".pkl")]
    told: list[str] = []
    monkeypatch.setattr(Checkpoints, "resume", resumed(Checkpoints.resume, told))
    go(whole, tmp_path, stage)
    assert told == ["resumed"]
    same(whole, tmp_path, stage)
    took = [json.loads((f / "run.json").read_text())["stages"][stage] for f in (whole, tmp_path)]
    assert took[0]["tokens"] == took[1]["tokens"]
    assert not (tmp_path / FOLDERS[stage] / "checkpoints").exists()


def resumed(real, told):
    def resume(self):
        found = real(self)
        told.append("resumed" if found is not None else "from the beginning")
        return found

    return resume


@pytest.mark.parametrize("damage", ["truncated", *map(slowly, ("altered", "missing", "manifest", "metrics"))])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    whole, tmp_path, monkeypatch, capsys, damage
):
    with killed_at(6):
        go(whole, tmp_path, "ppo")
    partial = tmp_path / ".ppo.partial"
    newest = sorted((partial / "checkpoints").glob("step_*"), key=lambda p: int(p.name[5:]))[-1]
    file = {"manifest": newest / "manifest.json", "missing": newest / "state.json"}.get(
        damage, newest / "tensors.safetensors"
    )
    if damage in ("manifest", "missing"):
        file.unlink()
    elif damage == "metrics":
        (partial / "metrics.jsonl").write_text("")
    else:
        data = file.read_bytes()
        file.write_bytes(data[:-9] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    go(whole, tmp_path, "ppo")
    out = capsys.readouterr().out
    assert f"checkpoint {newest.name} is refused" in out
    assert ("metrics.jsonl" if damage == "metrics" else file.name) in out.replace("\n", "")
    same(whole, tmp_path, "ppo")


@pytest.mark.slow
def test_checkpoints_of_other_settings_and_with_fresh_are_left(whole, tmp_path, monkeypatch, capsys):
    with killed_at(5):
        go(whole, tmp_path, "ppo", "ppo.kl_coef=0.3")
    go(whole, tmp_path, "ppo")
    assert "resuming" not in capsys.readouterr().out
    same(whole, tmp_path, "ppo")


def test_the_newest_is_chosen_by_number(tmp_path):
    for number in (9, 10, 100):
        (tmp_path / f"step_{number}").mkdir()
    assert Checkpoints(tmp_path).steps() == [100, 10, 9]


@pytest.mark.parametrize(("number", "code"), [slowly(signal.SIGINT, 130), slowly(signal.SIGTERM, 143)])
def test_a_signal_saves_at_the_next_safe_point(whole, tmp_path, monkeypatch, capfd, number, code):
    from tests.support.exits import exit_code_of

    real = Checkpoints.safe_point
    seen: list[int] = []

    def safe_point(self, *args, **kwargs):
        seen.append(args[0])
        if len(seen) == 4:
            os.kill(os.getpid(), number)
        real(self, *args, **kwargs)

    never = "checkpoint.every_minutes=null"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "safe_point", safe_point)
        assert exit_code_of(lambda: go(whole, tmp_path, "ppo", never)) == code
    assert "the same command resumes" in capfd.readouterr().err and not INTERRUPTS.asked
    assert [p.name for p in (tmp_path / ".ppo.partial/checkpoints").glob("step_*")] == [f"step_{seen[-1]}"]

    def planned(*settings: str) -> str:
        given = {"run_dir": tmp_path, "inputs": inputs_from(whole, "ppo")}
        return {p.name: p.reason for p in Pipeline.from_recipe(RECIPE, [*ALWAYS, *settings], **given).plan()}["ppo"]

    each = 2 * 2 + 1  # safe points of an update: after its rollout, and behind each minibatch
    assert planned(never) == f"resumes at update {seen[-1] // each + 1} of {RECIPE['ppo']['updates']}"
    assert planned(never, "ppo.learning_rate=0.5") == "not run yet"
    go(whole, tmp_path, "ppo", never)
    assert "ppo: resumes at update" in capfd.readouterr().out
    same(whole, tmp_path, "ppo")


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(whole, tmp_path, monkeypatch):
    """A real small file system, where one may be mounted."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        from data.common.errors import StageError
        from stages.safe_points.checkpoints import State

        points = Checkpoints(disk / "checkpoints", "key")
        points.save(1, State(tensors={"x": torch.ones(1000)}))
        points.wait()
        points.save(2, State(tensors={"x": torch.ones(1_000_000)}))
        with pytest.raises(StageError, match=r"step_1 is intact.*Make room"):
            points.wait()
        assert points.steps() == [1] and not list((disk / "checkpoints").glob(".*"))
        assert points.tidy(disk / "metrics.jsonl") == 0  # intact
        shutil.rmtree(disk / "checkpoints")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_intervals_follow_a_clock_that_does_not_jump(tmp_path, monkeypatch):
    import time

    points = Checkpoints(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert not points._due(None)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 601)
    assert points._due(None)
