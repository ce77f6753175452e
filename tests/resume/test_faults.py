"""Faults that are really made: a disk that is full, a folder that cannot be written, functions that fail, a second
process, clocks that jump, damaged checkpoints. Nothing that is finished is lost."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from data.common.errors import CheckpointError, UserError
from models.backbone.artifacts import finish_publishing, publish
from models.backbone.processes import Processes
from pipelines.cli.exit_codes import StageFailed, summary_of, write_traceback
from pipelines.workspace.run_folder import RunFolder
from stages.safe_points.checkpoints import Checkpoints, State
from stages.settings import CheckpointConfig
from stages.stage import MetricsLog
from tests.support.exits import exit_code_of
from tests.support.faults import NEVER, Ppo

# -- disks and folders -------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A real file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Not a byte is left."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@pytest.mark.parametrize("moment", ["checkpoint", "final"])
def test_a_disk_that_is_full_loses_nothing(whole_ppo, disk, moment):
    stage = Ppo(disk / "run")
    last = 9

    def at_point(number):
        stage.points.wait()
        if number == (4 if moment == "checkpoint" else last):
            fill(disk)

    def failing() -> None:
        try:
            stage.run(at_point)
        except Exception as error:
            raise StageFailed(summary_of(error)) from error

    with pytest.raises(StageFailed, match="No space left on device") as error:
        failing()
    assert "make room" in str(error.value).lower() and exit_code_of(failing) == 3
    assert stage.points.steps()[0] == (4 if moment == "checkpoint" else last)
    (disk / "ballast").unlink()
    assert stage.run() == whole_ppo and not stage.told


def test_a_disk_that_is_full_at_the_manifest_keeps_the_checkpoints_and_a_kill_before_the_rename_nothing_back(disk):
    part, final = disk / ".ppo.partial", disk / "ppo"
    (part / "checkpoints/step_1").mkdir(parents=True)
    (part / "checkpoints/step_1/state.json").write_text("{}")
    (part / "weights").write_bytes(b"x" * 1000)
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        publish(part, final, {"key": "k" * 64, "described": {"a": "b" * 9000}}, scratch="checkpoints")
    assert (part / "checkpoints/step_1/state.json").is_file() and not final.exists()
    assert not finish_publishing(part, final, "k" * 64, "checkpoints")
    (disk / "ballast").unlink()
    made = publish(part, final, {"key": "k" * 64}, scratch="checkpoints")
    assert set(made.manifest["files"]) == {"weights"} and not (final / "checkpoints").exists()
    os.replace(final, part)  # as a kill between manifest and rename leaves it
    (part / "checkpoints").mkdir()
    assert not finish_publishing(part, final, "another", "checkpoints")
    assert finish_publishing(part, final, "k" * 64, "checkpoints") and (final / "weights").is_file()


def test_the_log_of_a_failure_goes_elsewhere_where_the_disk_is_full(disk):
    fill(disk)
    try:
        raise ValueError("first")
    except ValueError:
        path = write_traceback(disk)
    assert path is not None and path.parent != disk and "ValueError: first" in path.read_text()


def test_a_folder_that_becomes_read_only_is_told_and_nothing_is_lost(whole_ppo):
    """As an ordinary user, since root may write everywhere."""
    folder = Path(tempfile.mkdtemp(prefix="trivet-read-only-"))
    user = os.geteuid()
    try:
        folder.chmod(0o777)
        if user == 0:
            os.seteuid(65534)
        stage = Ppo(folder / "run")

        def at_point(number):
            stage.points.wait()
            if number == 4:
                stage.points.folder.chmod(0o555)

        with pytest.raises(CheckpointError, match=r"Permission denied.*step_4 is intact.*fix the folder"):
            stage.run(at_point)
        stage.points.folder.chmod(0o755)
        assert stage.run() == whole_ppo
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


# -- the user's function, another process, clocks ----------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raise OSError('the judge is gone')", "raise SystemExit(0)"])
def test_a_function_that_fails_in_the_midst_keeps_finished_updates(tmp_path, fault):
    source = f"""
import pathlib
calls = pathlib.Path(__file__).with_name("calls")
def reward(prompts, completions):
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    if len(calls.read_text()) == 3:
        {fault}
    return [float(len(c)) for c in completions]
"""
    stages = [Ppo(tmp_path / n, NEVER, reward=[{"source": "mine.py:reward"}]) for n in ("whole", "run")]
    for stage in stages:
        stage.folder.mkdir()
        (stage.folder / "mine.py").write_text(source)
    (tmp_path / "whole/calls").write_text("xxx")
    expected = stages[0].run()
    with pytest.raises(UserError, match=r"(?s)mine\.py:reward failed in line 7 of mine\.py.*2 of 3 updates are done"):
        stages[1].run()
    found = stages[1].run()
    assert len((tmp_path / "run/calls").read_text()) == 4  # the one that failed, and the last
    assert {k: v for k, v in found.items() if k != "calls"} == {k: v for k, v in expected.items() if k != "calls"}


def test_a_second_process_on_a_run_folder_is_told_who_holds_it(tmp_path):
    script = "import fcntl, os, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); " \
        "f.write(str(os.getpid())); f.flush(); print('held', flush=True); sys.stdin.read()"  # fmt: skip
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    folder = RunFolder(tmp_path, Processes("cpu"))
    with pytest.raises(UserError, match=f"another run holds this folder.*process {holder.pid}"), folder.held():
        pass
    holder.kill()  # the lock goes with it
    holder.communicate()
    with folder.held():
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_clocks_that_jump_change_nothing(whole_ppo, tmp_path, monkeypatch):
    jumps = itertools.cycle([1e12, -1e9, 0.0, 4e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    stage = Ppo(tmp_path / "run", settings=CheckpointConfig(every_minutes=60))
    assert stage.run() == whole_ppo and stage.points.steps() == []  # an hour by a clock that does not jump


# -- damaged checkpoints -----------------------------------------------------------------------------------------

DAMAGES = {
    "missing": lambda file: file.unlink(),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "empty": lambda file: file.write_bytes(b""),
    "altered": lambda file: file.write_bytes(
        re.sub(rb"\d", lambda m: b"2" if m[0] == b"1" else b"1", file.read_bytes(), count=1)
    ),
    "other": lambda file: file.write_bytes(b"[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json", "metrics.jsonl"])
def test_every_damage_of_every_file_is_refused_by_name_and_the_one_before_is_used(tmp_path, name, damage):
    told: list[str] = []
    log = MetricsLog(tmp_path / "metrics.jsonl")
    points = Checkpoints(tmp_path / "checkpoints", "key1", warn=told.append)
    points.metrics = log
    for number in (1, 2):
        if number == 2:
            log.write(number, {"loss": 1.0})
        points.save(number, State(tensors={"x": torch.full((64,), 1.1)}, numbers={"step": 11}))
        points.wait()
    DAMAGES[damage](tmp_path / ("" if name == "metrics.jsonl" else "checkpoints/step_2") / name)
    assert points.tidy(tmp_path / "metrics.jsonl") == 0
    assert len(told) == 1 and "step_2 is refused" in told[0] and name in told[0]
    found = points.resume()
    points.close()
    assert points.steps() == [1] and found is not None and torch.equal(found.tensors["x"], torch.full((64,), 1.1))


def test_a_file_that_does_not_belong_to_it_is_noticed(tmp_path):
    told: list[str] = []
    points = Checkpoints(tmp_path / "checkpoints", "key", warn=told.append)
    points.save(1, State(tensors={"x": torch.ones(2)}))
    points.wait()
    (tmp_path / "checkpoints/step_1/extra.bin").write_bytes(b"x")
    assert points.tidy(tmp_path / "metrics.jsonl") is None and "extra.bin" in told[0]
