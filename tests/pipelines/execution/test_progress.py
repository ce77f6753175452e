"""Progress: readable lines in a file, silence in other processes, nothing lost on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import pipelines.execution.progress as progress_module
from pipelines.execution.progress import Progress, duration, number


def test_a_file_gets_plain_lines_at_every_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(console=Console(file=out)).stage("ppo", 100) as bar:
        for step in range(1, 101):
            now[0] += 0.5
            bar.advance(step, {"kl": step / 7, "reward": 0.0001234}, tokens=50)
    lines = out.getvalue().splitlines()
    assert len(lines) == 11 and "\x1b" not in out.getvalue() and "\r" not in out.getvalue()
    assert lines[0] == "ppo 10/100 (10%)  100 tokens/s  45 s left  kl 1.429  reward 0.000123"
    assert lines[-1].startswith("ppo: done in 50 s  kl 14.29")


def test_the_time_left_of_a_resumed_stage_counts_its_own_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(console=Console(file=out)).stage("sft", 100, resumed_at=50) as bar:
        for step in (50, 55, 60):  # the first says what is there, and takes no time of this process's steps
            now[0] += 10.0 * (step > 50)
            bar.advance(step)
    assert out.getvalue().splitlines()[:2] == ["sft 55/100 (55%)  1 min 30 s left", "sft 60/100 (60%)  1 min 20 s left"]


def test_slow_steps_are_told_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(console=Console(file=out)).stage("rankings") as bar:
        for step in range(1, 7):
            now[0] += 4
            bar.advance(step)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["3", "6", "done"]


def test_a_terminal_gets_a_bar_and_keeps_the_last_line() -> None:
    out = io.StringIO()
    progress = Progress(console=Console(file=out, force_terminal=True, width=100))
    with progress.stage("sft", 2) as bar:
        assert bar.live is not None and progress.current == "sft"
        bar.advance(1, {"loss": 2.5}, tokens=10)
        progress.say("half way [done]")
    assert "half way [done]" in out.getvalue() and "sft: done in" in out.getvalue() and progress.current == ""


def test_other_processes_are_silent() -> None:
    out = io.StringIO()
    progress = Progress(active=False, console=Console(file=out))
    with progress.stage("sft", 2) as bar:
        bar.advance(2, {"loss": 1.0})
        progress.warn("nobody hears this")
    assert out.getvalue() == ""


def test_a_failed_stage_is_not_called_done() -> None:
    out = io.StringIO()
    progress = Progress(console=Console(file=out))
    with pytest.raises(RuntimeError), progress.stage("ppo", 3):
        raise RuntimeError
    assert "done" not in out.getvalue() and progress.current == "ppo"


def test_numbers_and_durations() -> None:
    assert [number(v) for v in (3, 0.123456, 1e-5, 12345.678, 2.0)] == ["3", "0.1235", "1e-05", "1.235e+04", "2"]
    assert [duration(s) for s in (9.6, 200, 7500)] == ["10 s", "3 min 20 s", "2 h 05 min"]


def test_more_steps_than_planned_are_no_share_above_the_whole() -> None:
    from pipelines.execution.progress import Bar, Progress

    bar = Bar(Progress(active=False), "reward", 3)
    bar.advance(3)
    assert "3/3 (100%)" in bar.line()
    bar.advance(4)
    assert "%" not in bar.line() and "4" in bar.line()


def test_a_phase_has_a_total_and_a_time_left_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(console=Console(file=out)).stage("reward", 3) as bar:
        bar.advance(3)
        told = bar.phase("held-out rankings", 40)
        for _ in range(4):
            now[0] += 5
            told(10)
    assert out.getvalue().splitlines() == [
        "reward, held-out rankings 10/40 (25%)  15 s left",
        "reward, held-out rankings 20/40 (50%)  10 s left",
        "reward, held-out rankings 30/40 (75%)  5 s left",
        "reward, held-out rankings 40/40 (100%)",
        "reward: done in 20 s",
    ]
