"""Runs as child processes: started once a folder, stopped by an interrupt, left alone by the server's end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.common.errors import UserError
from pipelines.ui.children import Children, log_of, tail_of
from pipelines.workspace.run_folder import holding

WAIT = 120  # seconds


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_child_is_stopped_as_by_ctrl_c(run: Path, tmp_path: Path) -> None:
    """A server of ours, which ends with code 0 on Ctrl-C and on nothing else."""
    folder = Path(shutil.copytree(run, tmp_path / "runs" / "demo"))
    children = Children()
    child = children.start(["watch", str(folder), "--port", "0"], folder)
    until(lambda: "watch it at" in tail_of(log_of(folder)))
    assert child.alive and os.getpgid(child.process.pid) == child.process.pid != os.getpgid(0)
    with pytest.raises(UserError, match="goes into this folder already"):
        children.start(["models"], folder)
    assert f"kill -INT -{child.process.pid}" in children.farewell()[0]
    children.stop(folder)
    children.wait(WAIT)
    assert child.process.returncode == 0 and not children.alive() and children.farewell() == []
    with pytest.raises(UserError, match="has ended already"):
        children.stop(folder)


def test_lines_of_each_start_are_added(tmp_path: Path) -> None:
    folder, children = tmp_path / "runs" / "a b", Children()
    for _ in range(2):
        child = children.start(["models", "no-such-model"], folder)
        children.wait(WAIT)
        assert child.process.returncode == 2
    text = tail_of(log_of(folder))
    assert text.count("$ trivet models no-such-model\n") == 2 and text.count("trivet: base 'no-such-model'") == 2
    assert child.line == f"trivet models no-such-model >> '{tmp_path}/runs/a b.log' 2>&1"
    assert not folder.exists()


def test_runs_of_others_are_only_followed(tmp_path: Path) -> None:
    children = Children()
    with holding(tmp_path / "demo"), pytest.raises(UserError, match="goes into this folder already"):
        children.start(["models"], tmp_path / "demo")
    with pytest.raises(UserError, match="not started from this page"):
        children.stop(tmp_path / "demo")


def test_a_long_log_is_cut_at_a_line(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    log.write_text("".join(f"line {i}\n" for i in range(20_000)))
    text = tail_of(log)
    assert text.startswith("line 1") and text.endswith("line 19999\n") and len(text) <= 40_000
    assert tail_of(tmp_path / "none.log") == ""
