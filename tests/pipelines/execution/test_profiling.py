"""``--profile``: a trace and a table of each stage, and no other result than without it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from pipelines.execution.profiling import profiled, table
from pipelines.execution.progress import Bar, Progress


def work(bar: Bar, steps: int) -> None:
    for step in range(1, steps + 1):
        with torch.profiler.record_function("trivet/work"):
            torch.randn(64, 64) @ torch.randn(64, 64)
        bar.advance(step, {"loss": 1.0 / step}, 10)


def test_two_steps_after_the_first_are_recorded(tmp_path: Path) -> None:
    said: list[str] = []
    bar = Bar(Progress(active=False), "ppo", 5)
    with profiled(bar, tmp_path / "profile", said.append) as watched:
        work(watched, 5)
    assert bar.step == 5 and bar.tokens == 50
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "ppo.json.gz").read_bytes()))["traceEvents"]
    assert sum(e.get("name") == "trivet/work" and e.get("cat") == "user_annotation" for e in trace) == 2
    text = (tmp_path / "profile" / "ppo.txt").read_text()
    assert "trivet/work" in text and "aten::mm" in text and "peak memory" in text
    assert len(said) == 1 and "ppo.txt" in said[0]


def test_a_stage_of_too_few_steps_leaves_nothing_and_does_not_fail(tmp_path: Path) -> None:
    said: list[str] = []
    with profiled(Bar(Progress(active=False), "sft", 1), tmp_path / "profile", said.append) as watched:
        work(watched, 1)
    assert not (tmp_path / "profile").exists() and said == ["sft: no profile, which takes 3 steps"]


def test_shares_are_of_all_operations(tmp_path: Path) -> None:
    with torch.profiler.profile() as profiler, torch.profiler.record_function("trivet/outer"):
        torch.randn(200, 200) @ torch.randn(200, 200)
    rows = [line.split() for line in table(profiler.key_averages(), torch.device("cpu")).splitlines()]
    outer = next(r for r in rows if r and r[0] == "trivet/outer")
    assert outer[-2].endswith("%") and int(outer[-2][:-1]) > 50 and outer[-1] == "1"


def test_progress_profiles_the_stages_of_a_run(tmp_path: Path) -> None:
    progress = Progress(active=True, profile=tmp_path / "profile")
    with progress.stage("ppo", 4) as bar:
        work(bar, 4)
    assert (tmp_path / "profile" / "ppo.txt").is_file()
