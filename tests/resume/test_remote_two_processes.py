"""Two processes, of which one gets no score from a remote scorer: both end, plainly, and the run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.backbone.artifacts import files_of
from reward.terms.server import serving
from tests.support.recipes import RECIPE

ROOT = Path(__file__).parents[2]
UPDATES, ROLLOUTS = 4, 8


class Scorer:
    """One request a process and update; from the third update on every second request fails, so one process's does."""

    def __init__(self, fails: bool) -> None:
        self.fails, self.asked, self.lock = fails, 0, threading.Lock()

    def __call__(self, rows):
        with self.lock:
            self.asked += 1
            number = self.asked
        if self.fails and number > 2 * 2 and number % 2 == 0:
            raise RuntimeError("the scorer is out of memory")
        return [float(len(r["completion"]) % 7) for r in rows]


def launch(folder: Path, address: str) -> subprocess.CompletedProcess:
    """As a user would: torchrun on a CPU. A run that hangs raises TimeoutExpired."""
    judge = {"source": address, "name": "judge", "normalise": True, "remote": {"retries": 0, "batch": ROLLOUTS}}
    recipe: dict[str, Any] = {k: v for k, v in RECIPE.items() if k not in ("rankings", "evaluation")}
    recipe["stages"] = ["pretrain", "sft", "ppo"]
    recipe["ppo"] |= {"updates": UPDATES, "rollouts": ROLLOUTS, "value": {"init": "sft"}, "self_check": False}
    recipe["ppo"] |= {"reward": [judge]}
    file = folder.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    return subprocess.run(
        [*torchrun, "pipelines", "run", str(file), "--run-dir", str(folder)],
        capture_output=True, text=True, timeout=150, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_a_scorer_that_fails_one_of_two_processes_ends_both_and_costs_no_update(tmp_path: Path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    scorer = Scorer(fails=True)
    with serving(scorer) as address:
        failed = launch(folder, address)
        assert failed.returncode != 0 and scorer.asked == 6  # it was asked by both, and by nobody again
        assert "exitcode  : 3" in failed.stderr, failed.stderr[-3000:]  # torchrun may stop the other one before it ends
        for said in ("it answered 500", "the scorer is out of memory", "2 of 4 updates are done and saved"):
            assert said in failed.stderr
        shutil.copytree(folder, whole, ignore=shutil.ignore_patterns(".ppo*"))
        scorer.fails = False
        assert (gone_on := launch(folder, address)).returncode == 0, gone_on.stderr[-3000:]
        assert scorer.asked == 6 + 2 * (UPDATES - 2)
        assert launch(whole, address).returncode == 0
    mine, theirs = files_of(folder / "ppo"), files_of(whole / "ppo")
    assert mine == theirs and mine
